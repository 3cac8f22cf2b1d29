"""Codecs: maps between images and the arrays that a diffusion model diffuses."""
