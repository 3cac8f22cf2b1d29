"""Where metrics go: the run directory's own record, and Weights & Biases."""
