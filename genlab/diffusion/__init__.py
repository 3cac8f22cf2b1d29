"""Denoising diffusion: noise schedules, the forward process, the bound by its terms, samplers."""
