"""Training: losses, schedule, EMA, the run directory, logs and the loop."""
