"""LightningModules: training step, evaluation and optimizer of each model family."""
