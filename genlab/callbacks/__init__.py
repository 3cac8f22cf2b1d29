"""Callbacks that draw pictures and videos of a model, and update the run's status file."""
