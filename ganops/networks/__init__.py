"""Networks and their snapshots."""
