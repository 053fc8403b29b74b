"""Differentiable operations of the networks: one public function, one reference and one kernel each."""
