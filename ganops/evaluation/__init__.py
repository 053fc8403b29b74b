"""Whole evaluations: of the pipeline's samples, and of any folder of images."""
