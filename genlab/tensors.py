"""Shapes and units: the only place where nats become bits/dim."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import Tensor

Number = TypeVar("Number", float, Tensor)


def sum_except_batch(x: Tensor) -> Tensor:
    """(B, ...) to (B,): the sum over everything that is not the batch."""
    return x.flatten(1).sum(1)


def like_images(x: Tensor, images: Tensor) -> Tensor:
    """Per-sample scalars (B,) to (B, 1, 1, 1), so that they broadcast against images."""
    return x.reshape(-1, *([1] * (images.ndim - 1)))


def nats_to_bits_per_dim(nats: Number, dims: int) -> Number:
    """nats per image / (D ln 2)."""
    return nats / (dims * math.log(2.0))
