"""Inpainting with a model that was not trained for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.diffusion.process import diffuse
from genlab.diffusion.samplers import Draw, Project


def inpaint(known: Tensor, mask: Tensor, noise: Draw) -> Project:
    """Make a projection that replaces the known part of each x_s by a draw of q(x_s | known).

    Song et al. (2021, score SDE), app. I.2; Lugmayr et al. (2022, RePaint) without resampling.

    Args:
        known: (B, C, H, W) in [-1, 1]; its values outside the mask are ignored.
        mask: 1 where the image is known, 0 where it is to be generated; broadcasts against `known`.
        noise: draws standard normal noise, shaped like the images.

    Raises:
        ValueError: if the mask has other values than 0 and 1.
    """
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError("mask: give 1 where the image is known and 0 where it is wanted")

    def project(x: Tensor, log_snr: float) -> Tensor:
        there = known.to(x)
        if log_snr < math.inf:
            at = torch.full((len(x),), log_snr, dtype=torch.float64, device=x.device)
            there = diffuse(there, noise().to(x), at)
        return torch.where(mask.to(x.device).bool(), there, x)

    return project
