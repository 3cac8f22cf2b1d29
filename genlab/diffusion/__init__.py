"""Denoising diffusion: noise schedules, the forward process, the terms of the bound, samplers."""
