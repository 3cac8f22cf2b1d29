"""Loggers: the run directory's own record, Weights & Biases, TensorBoard and MLflow."""
