"""The order of the images: a function of (seed, epoch), so no state needs to be saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from genlab.seeding import numpy_generator

Indices = npt.NDArray[np.int64]


class BatchIndex(NamedTuple):
    """The positions of the images of a batch, and the counters that determine its randomness."""

    epoch: int
    number: int
    """Number of the batch within the epoch, the same on every rank."""
    rank: int
    world: int
    """Number of ranks; each has every `world`-th image of the global batch."""
    positions: Indices
    """(B,), positions of the images in their split."""


class TrainOrder(Sampler[BatchIndex]):
    """Whole batches of a new permutation in every epoch; the remainder is dropped.

    A global batch is `world * batch_size` consecutive elements of the permutation, assigned to the
    ranks in turn. So all ranks together get the same images as a single process.

    Args:
        batches_seen: returns the number of batches of this rank since epoch 0. It is called at the
            start of every iteration, which begins at that batch and ends with that epoch.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        seed: int,
        batches_seen: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._images, self._batch_size, self._seed = images, batch_size, seed
        self._batches_seen, self._rank, self._world = batches_seen, rank, world

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch, even if an iteration begins later."""
        return self._images // (self._batch_size * self._world)

    def __iter__(self) -> Iterator[BatchIndex]:
        epoch, offset = divmod(self._batches_seen(), len(self))
        permutation = numpy_generator(self._seed, "order", epoch).permutation(self._images)
        step = self._batch_size * self._world
        return (
            BatchIndex(
                epoch,
                number,
                self._rank,
                self._world,
                permutation[number * step + self._rank : (number + 1) * step : self._world],
            )
            for number in range(offset, len(self))
        )


class EvalOrder(Sampler[BatchIndex]):
    """Every image once, in order, assigned to the ranks in turn; the last batch may be short."""

    def __init__(self, images: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self._mine: Indices = np.arange(rank, images, world)
        self._batch_size, self._rank, self._world = batch_size, rank, world

    def __len__(self) -> int:
        return -(-len(self._mine) // self._batch_size)

    def __iter__(self) -> Iterator[BatchIndex]:
        size = self._batch_size
        return (
            BatchIndex(
                0, number, self._rank, self._world, self._mine[number * size : (number + 1) * size]
            )
            for number in range(len(self))
        )
