"""Distances between two sets of images."""

from __future__ import annotations

import torch
from torch import Tensor


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Estimate 2 E|x - y| - E|x - x'| - E|y - y'| of images (N, C, H, W), |.| the Euclidean norm.

    The distance is zero if and only if both distributions are equal (Székely and Rizzo 2013). The
    estimate is unbiased, so it can be negative if they are equal.
    """
    x, y = x.flatten(1).double(), y.flatten(1).double()

    def within(z: Tensor) -> Tensor:
        return torch.cdist(z, z).sum() / (len(z) * (len(z) - 1))

    return float(2 * torch.cdist(x, y).mean() - within(x) - within(y))
