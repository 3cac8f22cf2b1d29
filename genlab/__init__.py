"""genlab: generative image models whose knobs can be compared with one another."""

__version__ = "0.1.0"
