"""Shapes, units and devices of tensors; the only module that converts nats to bits/dim."""

from __future__ import annotations

import itertools
import math
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

#: Bits per dimension; a guess among 256 levels takes 8.
_DIVERGED = 100.0

Number = TypeVar("Number", float, Tensor)


def sum_except_batch(x: Tensor) -> Tensor:
    """Sum (B, ...) over all axes but the first, the batch; returns (B,)."""
    return x.flatten(1).sum(1)


def exact_sum(values: Tensor) -> Tensor:
    """Sum rows (N, ...) over the first axis, (...), float64, correctly rounded.

    So the order of the rows, and how batches or processes divide them, do not change a bit.
    """
    columns = values.detach().double().flatten(1).T if values.ndim > 1 else values.double()[None]
    sums = [_exact(column.tolist()) for column in columns]
    return torch.tensor(sums, dtype=torch.float64, device=values.device).view(values.shape[1:])


def _exact(values: list[float]) -> float:
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # beyond the range of numbers, or inf - inf
        return sum(values)


def like_images(x: Tensor, images: Tensor) -> Tensor:
    """Reshape per-sample scalars (B,) to (B, 1, 1, 1), so that they broadcast against images."""
    return x.reshape(-1, *([1] * (images.ndim - 1)))


def nats_to_bits_per_dim(nats: Number, dims: int) -> Number:
    """Convert nats per image to bits per dimension: nats / (D ln 2)."""
    return nats / (dims * math.log(2.0))


def has_diverged(nats: float, dims: int) -> bool:
    """Return whether a model takes so many nats per image that its training has diverged."""
    return not nats_to_bits_per_dim(nats, dims) < _DIVERGED


def to_unit_interval(pixels: Tensor) -> Tensor:
    """Convert stored pixels to float32: uint8 to [0, 1], real numbers unchanged."""
    if pixels.dtype.is_floating_point:
        return pixels.float()
    return pixels.float().div_(255.0)


def to_pixels(x: Tensor) -> Tensor:
    """Convert images in [0, 1] to uint8; values outside are clamped."""
    return x.clamp(0, 1).mul(255.0).round().byte()


def device_of(module: nn.Module) -> torch.device:
    """Return the device of the parameters or buffers of a module; the CPU if it has none."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def all_gather_rows(rows: Tensor) -> Tensor:
    """Gather the rows (B, ...) of all processes in the order of the global batch.

    Row i of process r becomes row i * world + r, as in `BatchNoise` and in the data. Without a
    process group the tensor is returned unchanged.
    """
    if not _is_shared(rows):
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)


def great_circle(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Compute cos(u) a + sin(u) b at evenly spaced angles u of a full turn.

    If a and b are independent and standard normal, so is every point of the walk.

    Args:
        a, b: two draws, (B, d).

    Returns:
        (steps, B, d), from a on.
    """
    turn = torch.linspace(0, 2 * math.pi, steps + 1, device=a.device)[:-1, None, None]
    return turn.cos() * a + turn.sin() * b


def parameter_count(module: nn.Module) -> int:
    """Count the parameters of a module that are trained, not those of frozen networks in it."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def mean_of_all_rows(rows: Tensor) -> Tensor:
    """Return the mean of the rows (B, ...) of all processes, with the gradient of one's own.

    A function of it that is not linear then has the gradient that one process would compute, once
    gradients are averaged over the processes.
    """
    mine = rows.mean(0)
    if not _is_shared(rows):
        return mine
    return mine + (all_gather_rows(rows.detach()).mean(0) - mine.detach())


def _is_shared(rows: Tensor) -> bool:
    return dist.is_available() and dist.is_initialized() and not rows.is_meta
