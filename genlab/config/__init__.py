"""Configs: composition by Hydra, checks against signatures, and construction of objects."""
