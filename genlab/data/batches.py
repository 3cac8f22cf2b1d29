"""Batches from arrays: gathering, flips, binarisation, and the loader."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from genlab.data.base import PixelArray
from genlab.data.order import BatchIndex, Indices
from genlab.seeding import numpy_generator

Batch = dict[str, Tensor]
"""`image` (B, C, H, W) uint8, or float32 if pixels are real numbers; `label` (B,) int64;
`index` (B,) int64, the image's position in its split; `inputs` (B, ...), if a model keeps some."""

# Number of images that share one random stream. The bits depend on it, so it must not change.
_BLOCK = 512


def _uniform(shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw independent levels, uniform on 0 ... 254, so that P(u < x) is exactly x / 255."""
    size = math.prod(shape)
    # Draws 64-bit words, and redraws the bytes that are 255: three times faster than drawing bytes.
    words = random.integers(0, 1 << 64, -(-size // 8), dtype=np.uint64)
    u = words.view(np.uint8)[:size]
    again = np.flatnonzero(u == 255)
    u[again] = random.integers(0, 255, len(again), dtype=np.uint8)
    return u.reshape(shape)


def _binarised(pixels: npt.NDArray[np.uint8], u: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    # True is 1, and -1 in eight bits is 255: twice as fast as a multiplication.
    return np.negative((u < pixels).view(np.uint8))


def binarise(
    pixels: npt.NDArray[np.uint8], random: np.random.Generator, rank: int = 0, world: int = 1
) -> npt.NDArray[np.uint8]:
    """Binarise every pixel x: 255 with probability x / 255, else 0.

    `pixels` are every `world`-th image of a batch from `rank` on; they get the same bits as if the
    whole batch were binarised.
    """
    u = _uniform((len(pixels) * world, *pixels.shape[1:]), random)
    return _binarised(pixels, u[rank::world])


def binarise_static(
    pixels: npt.NDArray[np.uint8], rows: Indices, seed: int, split: str
) -> npt.NDArray[np.uint8]:
    """Binarise the images `rows` (ascending) of an official split, once for the whole run.

    A bit is a function of (seed, split, row, pixel) alone, whatever the other rows are. The result
    is written in place if `rows` are all rows of a writable array.
    """
    in_place = len(rows) == len(pixels) and pixels.flags.writeable
    out = pixels if in_place else np.empty((len(rows), *pixels.shape[1:]), dtype=np.uint8)
    for start in range(0, len(pixels), _BLOCK):
        low, high = np.searchsorted(rows, (start, start + _BLOCK))
        if low < high:
            random = numpy_generator(seed, "static binarisation", split, start)
            u = _uniform((_BLOCK, *pixels.shape[1:]), random)
            out[low:high] = _binarised(pixels[rows[low:high]], u[rows[low:high] - start])
    return out


@dataclass(frozen=True)
class Split:
    """The images of train, val or test: rows of arrays that two splits may share."""

    pixels: PixelArray
    labels: npt.NDArray[np.int64]
    rows: Indices | None
    """None for all rows."""

    def __len__(self) -> int:
        return len(self.pixels if self.rows is None else self.rows)

    def gather(self, positions: Indices) -> tuple[PixelArray, npt.NDArray[np.int64]]:
        """Copy the images (B, C, H, W) and the labels (B,) at `positions` in the split."""
        rows = positions if self.rows is None else self.rows.take(positions)
        # `take` is many times faster than indexing on small batches.
        pixels = cast(PixelArray, np.asarray(self.pixels.take(rows, axis=0)))
        return pixels, self.labels.take(rows)


class Batches(Dataset[Batch]):
    """A dataset of whole batches, indexed by `BatchIndex`.

    Args:
        flip: mirror each image left to right with probability 1/2.
        binarised: draw new bits in every epoch.
        inputs: what a model made of each image, (1, N, ...), or with `flip` (2, N, ...).
        device: where the whole split is held and batches are gathered; None gathers them from the
            arrays, on the CPU. With a device there are neither `binarised` bits nor `inputs`.

    Flips and bits are functions of (seed, epoch, batch number, place in the global batch).
    """

    def __init__(
        self,
        split: Split,
        seed: int,
        *,
        flip: bool = False,
        binarised: bool = False,
        inputs: npt.NDArray[np.float32] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._split, self._seed, self._flip, self._binarised = split, seed, flip, binarised
        self._inputs, self.device = inputs, device
        if device is not None:
            pixels, labels = split.gather(np.arange(len(split)))
            self._pixels = torch.from_numpy(pixels).to(device)
            self._labels = torch.from_numpy(labels).to(device)

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, batch: BatchIndex) -> Batch:
        place = (batch.epoch, batch.number, 0)
        flipped = np.zeros(len(batch.positions), dtype=np.bool_)
        if self._flip:
            random = numpy_generator(self._seed, "flip", *place)
            flipped = random.random(len(flipped) * batch.world)[batch.rank :: batch.world] < 0.5
        if self.device is not None:
            return self._on_device(batch.positions, flipped)
        pixels, labels = self._split.gather(batch.positions)
        if self._flip:
            pixels[flipped] = pixels[flipped, :, :, ::-1]
        if self._binarised:
            random = numpy_generator(self._seed, "binarise", *place)
            levels = cast(npt.NDArray[np.uint8], pixels)
            pixels = binarise(levels, random, batch.rank, batch.world)
        found = {
            "image": torch.from_numpy(pixels),
            "label": torch.from_numpy(labels),
            "index": torch.from_numpy(batch.positions),
        }
        if self._inputs is not None:
            found["inputs"] = torch.from_numpy(self._inputs[flipped.astype(int), batch.positions])
        return found

    def _on_device(self, positions: Indices, flipped: npt.NDArray[np.bool_]) -> Batch:
        index = torch.from_numpy(positions).to(self.device, non_blocking=True)
        image = self._pixels[index]
        if self._flip:
            mirrored = torch.from_numpy(flipped).to(self.device, non_blocking=True)
            image = torch.where(mirrored[:, None, None, None], image.flip(3), image)
        return {"image": image, "label": self._labels[index], "index": index}

    def __getstate__(self) -> dict[str, Any]:
        # For a worker that is not forked, pickle would copy the content of a memory map.
        state, pixels = dict(self.__dict__), self._split.pixels
        if isinstance(self._inputs, np.memmap):
            state["_inputs"], state["_inputs_file"] = None, self._inputs.filename
        if isinstance(pixels, np.memmap):
            state["_split"] = replace(self._split, pixels=np.empty(0, dtype=np.uint8))
            state["_file"] = pixels.filename
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        file = state.pop("_file", None)
        inputs = state.pop("_inputs_file", None)
        self.__dict__.update(state)
        if inputs is not None:
            self._inputs = np.load(inputs, mmap_mode="r")
        if file is not None:
            self._split = replace(self._split, pixels=np.load(file, mmap_mode="r"))


def _as_it_is(batch: Batch) -> Batch:
    return batch


class BatchLoader:
    """An iterable of batches in their order; uses a DataLoader for workers or pinned memory.

    Under DDP or `overfit_batches`, Lightning would replace the sampler of a DataLoader; so it gets
    this object instead.
    """

    def __init__(
        self,
        dataset: Batches,
        order: Sampler[BatchIndex],
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self._dataset, self._order = dataset, order
        self._num_workers, self._pin_memory = num_workers, pin_memory
        self._loader: DataLoader[Batch] | None = None

    def __len__(self) -> int:
        return len(self._order)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        # As a generator this reads the counters only at the first batch: Lightning may create the
        # iterator before it has restored them.
        if self._num_workers == 0 and not self._pin_memory:
            # The overhead of a DataLoader is larger than the time to gather a small batch.
            yield from map(self._dataset.__getitem__, self._order)
            return
        if self._loader is None:
            self._loader = DataLoader(
                self._dataset,
                sampler=self._order,
                batch_size=None,
                num_workers=self._num_workers,
                persistent_workers=self._num_workers > 0,
                pin_memory=self._pin_memory,
                collate_fn=_as_it_is,  # type: ignore[arg-type]
                # Otherwise every iteration would take a number from torch's default generator.
                generator=torch.Generator(),
            )
        yield from self._loader

    def close(self) -> None:
        """End the worker processes; the next iteration starts new ones."""
        self._loader = None

    def state_dict(self) -> dict[str, Any]:
        """Return no state: the position follows from the trainer's counters.

        Without this method Lightning warns when a run is resumed.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
