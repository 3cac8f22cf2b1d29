"""Lightning glue: what a training step, a validation and an optimizer are for each model."""
