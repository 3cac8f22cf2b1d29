"""Training: configs, runs, checkpoints, signals and optimizers."""
