"""Randomness as a function of counters.

There is no state: a number that depends on (seed, epoch, position) is the same in an uninterrupted
run and in one that was killed and resumed twenty times. So no generator state is saved. A model
gets a `Noise` and draws only from it: `BatchNoise` for a training batch, which several processes
may share, or `ImageNoise` if the draws of an image must not depend on its batch.
"""

from __future__ import annotations

import math
import random
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 63) - 1
#: The fractional parts of consecutive multiples of this number fill [0, 1) evenly.
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def fold_in(seed: int, *counters: int | str) -> int:
    """Derive a seed in [0, 2^63) from a seed and counters; other counters give unrelated seeds.

    >>> fold_in(0, 1, 2) == fold_in(0, 1, 2), fold_in(0, 1, 2) == fold_in(0, 2, 1)
    (True, False)
    """
    digest = blake2b(struct.pack("<q", seed), digest_size=8)
    for counter in counters:
        word = counter.encode() if isinstance(counter, str) else struct.pack("<q", counter)
        digest.update(struct.pack("<i", len(word)) + word)
    return int.from_bytes(digest.digest(), "little") & _MASK


def generator(
    seed: int, *counters: int | str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Create a torch generator with the seed `fold_in(seed, *counters)`."""
    return torch.Generator(device).manual_seed(fold_in(seed, *counters))


def numpy_generator(seed: int, *counters: int | str) -> np.random.Generator:
    """Create a numpy generator with the seed `fold_in(seed, *counters)`."""
    return np.random.Generator(np.random.PCG64(fold_in(seed, *counters)))


def reseed(seed: int, *counters: int | str) -> None:
    """Seed torch's default generators with `fold_in(seed, *counters)`, fast enough for every step.

    `torch.manual_seed` takes 25 times as long on a CPU, since it visits every possible backend.
    """
    value = fold_in(seed, *counters)
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)


class Noise(ABC):
    """A source of random numbers for the B images of a batch, the first axis of every draw.

    Each call continues the random stream of the previous one.
    """

    @abstractmethod
    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers, (B, *shape), float32."""

    @abstractmethod
    def uniform(self, *shape: int) -> Tensor:
        """Draw uniform numbers in [0, 1), (B, *shape), float64."""

    @abstractmethod
    def spread(self) -> Tensor:
        """Draw a uniform number in [0, 1) per image, evenly spread over images, (B,), float64."""


class BatchNoise(Noise):
    """The noise of every `world`-th image, from `rank` on, of a batch that the processes share.

    Every process draws for the whole batch and keeps its rows, so the number of processes only
    changes rounding.

    Args:
        images: B, the number of images of this process, the same in every process.
        seed: seed of the batch; None for torch's default generator.
        device: device of the random numbers.
        rank, world: number of this process, and number of processes.
    """

    def __init__(
        self,
        images: int,
        seed: int | None = None,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._total, self._rows = images * world, slice(rank, None, world)
        self._device = device
        self._generator = None if seed is None else torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        size = (self._total, *shape)
        return torch.randn(size, generator=self._generator, device=self._device)[self._rows]

    def uniform(self, *shape: int) -> Tensor:
        return self._uniform(self._total, *shape)[self._rows]

    def spread(self) -> Tensor:
        places = torch.arange(self._total, dtype=torch.float64, device=self._device)
        return ((places / self._total + self._uniform(1)) % 1)[self._rows]

    def _uniform(self, *size: int) -> Tensor:
        return torch.rand(size, generator=self._generator, device=self._device, dtype=torch.float64)


class ImageNoise(Noise):
    """Noise with a separate stream for each image, a function of (seed, counters, index).

    So the numbers of an image do not depend on its batch. They are drawn on the CPU.

    Args:
        seed: seed of the run, or of a sample.
        *counters: the purpose of the noise, such as the name of a split.
        indices: the number of each of the B images.
        device: device to which the numbers are moved.
    """

    def __init__(
        self,
        seed: int,
        *counters: int | str,
        indices: Iterable[int],
        device: torch.device | str = "cpu",
    ) -> None:
        self._indices = [int(i) for i in indices]
        self._generators = [generator(seed, *counters, i) for i in self._indices]
        self._shared = generator(seed, *counters, "shared")
        self._device = device

    def normal(self, *shape: int) -> Tensor:
        drawn = torch.empty(len(self._generators), *shape)
        for row, of_image in zip(drawn, self._generators, strict=True):
            row.normal_(generator=of_image)
        return drawn.to(self._device)

    def uniform(self, *shape: int) -> Tensor:
        drawn = torch.empty(len(self._generators), *shape, dtype=torch.float64)
        for row, of_image in zip(drawn, self._generators, strict=True):
            row.uniform_(generator=of_image)
        return drawn.to(self._device)

    def spread(self) -> Tensor:
        # A Kronecker sequence: any consecutive indices are nearly as even as equal steps.
        places = torch.tensor(self._indices, dtype=torch.float64)
        start = torch.rand((), generator=self._shared, dtype=torch.float64)
        return ((places * _GOLDEN_RATIO + start) % 1).to(self._device)


class TurnedNoise(ImageNoise):
    """Noise cos(turn) a + sin(turn) b for each image, where a and b are the noise of two seeds.

    Args:
        turn: the angle in radians.
        seed: the seed of a; `seed` + 1 is that of b. The others are as for `ImageNoise`.
    """

    def __init__(
        self,
        turn: float,
        seed: int,
        *counters: int | str,
        indices: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(seed, *counters, indices=indices, device=device)
        self._other = ImageNoise(seed + 1, *counters, indices=indices, device=device)
        self._turn = turn

    def normal(self, *shape: int) -> Tensor:
        a, b = super().normal(*shape), self._other.normal(*shape)
        return math.cos(self._turn) * a + math.sin(self._turn) * b


def or_default(noise: Noise | None, x: Tensor) -> Noise:
    """Return the noise, or where there is none that of torch's default generator for images x."""
    return BatchNoise(len(x), device=x.device) if noise is None else noise


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch at the start of a run; initial weights depend on it."""
    random.seed(fold_in(seed, "python"))
    np.random.seed(fold_in(seed, "numpy") % (1 << 32))
    reseed(seed, "torch")
