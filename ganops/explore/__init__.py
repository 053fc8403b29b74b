"""Looking into a trained generator: images, mixing, interpolation, projection, directions; one tool each (docs/tools.md)."""
