"""Metrics: the table of names, and metrics that do not depend on the model family."""
