"""Randomness as a function of counters.

Nothing here has a history: a number that depends on (seed, epoch, position) is the same whether
the run came there in one go or was killed and resumed twenty times. So no generator state is saved.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_MASK = (1 << 63) - 1


class _Share(NamedTuple):
    """Every `world`-th of a global batch's `rows`, from `rank` on."""

    rank: int
    world: int
    rows: int

    @property
    def places(self) -> slice:
        return slice(self.rank, self.rows, self.world)

    def __len__(self) -> int:
        return len(range(self.rank, self.rows, self.world))


_share: _Share | None = None


def fold_in(seed: int, *counters: int | str) -> int:
    """A seed in [0, 2^63) for the place that `counters` name, independent between places.

    >>> fold_in(0, 1, 2) == fold_in(0, 1, 2), fold_in(0, 1, 2) == fold_in(0, 2, 1)
    (True, False)
    """
    digest = hashlib.blake2b(struct.pack("<q", seed), digest_size=8)
    for counter in counters:
        word = counter.encode() if isinstance(counter, str) else struct.pack("<q", counter)
        digest.update(struct.pack("<i", len(word)) + word)
    return int.from_bytes(digest.digest(), "little") & _MASK


def generator(
    seed: int, *counters: int | str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A torch generator for the place that `counters` name."""
    return torch.Generator(device).manual_seed(fold_in(seed, *counters))


def numpy_generator(seed: int, *counters: int | str) -> np.random.Generator:
    """A numpy generator for the place that `counters` name."""
    return np.random.Generator(np.random.PCG64(fold_in(seed, *counters)))


def reseed(seed: int, *counters: int | str) -> None:
    """Put torch's default generators at the place that `counters` name, cheaply, at every step.

    `torch.manual_seed` costs 25 times as much on a CPU, since it visits every possible backend.
    """
    value = fold_in(seed, *counters)
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)


@contextmanager
def dealt(rank: int, world: int, rows: int) -> Iterator[None]:
    """What is drawn here for a batch is this process's share of what one process would draw.

    Of `world` processes with the same seed each has every `world`-th of a global batch's `rows`.
    A random tensor with as many rows as this process has is drawn for all of them and cut, so that
    the number of processes changes nothing but rounding. Dropout is not covered.
    """
    global _share
    before, _share = _share, _Share(rank, world, rows)
    try:
        with _Dealt(_share):
            yield
    finally:
        _share = before


def batch_fractions(rows: int, device: torch.device | str = "cpu") -> Tensor:
    """i / n for each of a batch's `rows`, (rows,) in float64; under `dealt` those of the share."""
    places = torch.arange(rows, dtype=torch.float64, device=device)
    if _share is None:
        return places / rows
    return (_share.rank + _share.world * places) / _share.rows


class _Dealt(TorchFunctionMode):
    """Draws for the global batch and keeps a share, in torch's functions that draw by shape."""

    def __init__(self, share: _Share) -> None:
        super().__init__()
        self.share = share

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.rand, torch.randn):
            shape = torch.Size(args[0] if len(args) == 1 and not isinstance(args[0], int) else args)
            return self._cut(shape, lambda whole: func(whole, **kwargs))
        if func in (torch.rand_like, torch.randn_like):
            like = {"dtype": args[0].dtype, "device": args[0].device, **kwargs}
            draw = torch.rand if func is torch.rand_like else torch.randn
            return self._cut(args[0].shape, lambda whole: draw(whole, **like))
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            tensor, *rest = args
            drawn = self._cut(
                tensor.shape, lambda whole: func(tensor.new_empty(whole), *rest, **kwargs)
            )
            return tensor.copy_(drawn)
        return func(*args, **kwargs)

    def _cut(self, shape: torch.Size, draw: Callable[[torch.Size], Tensor]) -> Tensor:
        """The batch may be the second axis too, after that of several samples of each image."""
        for axis in range(min(2, len(shape))):
            if shape[axis] == len(self.share):
                whole = torch.Size([*shape[:axis], self.share.rows, *shape[axis + 1 :]])
                drawn = draw(whole)
                mine = drawn[self.share.places] if axis == 0 else drawn[:, self.share.places]
                return mine.contiguous()
        return draw(shape)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch at the start of a run (initial weights depend on it)."""
    random.seed(fold_in(seed, "python"))
    np.random.seed(fold_in(seed, "numpy") % (1 << 32))
    reseed(seed, "torch")
