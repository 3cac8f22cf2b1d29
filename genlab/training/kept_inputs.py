"""Keep what frozen networks make of the training images, so that they run once."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genlab.data.cache import default_cache_dir
from genlab.data.datamodule import ImageData
from genlab.data.download import exclusive
from genlab.data.progress import progress
from genlab.errors import DataError, RunDirectoryError, is_full
from genlab.protocols import KeepsInputs
from genlab.runs.reading import refuse_special
from genlab.tensors import to_unit_interval

_BATCH = 256

Inputs = npt.NDArray[np.float32]


def kept_inputs(
    model: Any, data: ImageData, known: str, device: str | torch.device = "cpu"
) -> Inputs | None:
    """Return the model's inputs of all training images, (1, N, ...), memory-mapped.

    With `data.flip` they are (2, N, ...): second those of the mirrored images. One process computes
    them, and the others wait; they are kept for every run with the same images and networks.

    Args:
        known: text that tells these images and these networks from all others.
        device: where they are computed; the model returns to the CPU.

    Returns:
        None if the model keeps none.

    Raises:
        DataError: they cannot be written or read.
    """
    if not isinstance(model, KeepsInputs) or not model.keeps_inputs:
        return None
    key = hashlib.sha256(f"{known} {data.flip}".encode()).hexdigest()[:32]
    path = default_cache_dir(None) / "inputs" / f"{key}.npy"
    shape = (1 + data.flip, data.size("train"), *_of_images(model, data, range(1)).shape[1:])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(path.parent):
            if not os.path.lexists(path):
                _compute(model, data, path, shape, torch.device(device))
    except OSError as error:
        remedy = "make room" if is_full(error) else "make the folder writable"
        needed = 4 * math.prod(shape)
        raise DataError(
            f"the {needed:,} bytes of {path} cannot be written ({error.strerror}): {remedy}, or "
            "set XDG_CACHE_HOME to another one"
        ) from error
    try:
        refuse_special(path, os.lstat(path).st_mode)
        found: Inputs = np.load(path, mmap_mode="r")
        if found.shape != shape or found.dtype != np.float32:
            raise ValueError(f"it does not hold float32 of the shape {list(shape)}")
    except (OSError, EOFError, ValueError, RunDirectoryError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): delete it, and it is made again"
        ) from error
    return found


def batches(inputs: Inputs) -> Iterator[Tensor]:
    """Yield all inputs in batches (B, ...), those of mirrored images too."""
    for orientation in inputs:
        for start in range(0, len(orientation), _BATCH):
            yield torch.from_numpy(np.array(orientation[start : start + _BATCH]))


def _compute(
    model: Any, data: ImageData, path: Path, shape: tuple[int, ...], device: torch.device
) -> None:
    model.to(device)
    temporary = path.with_suffix(".tmp")  # of a process that was killed, or of none: it is locked
    kept = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
    with temporary.open("r+b") as file:  # a hole that cannot be filled would end the process
        os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END))
    with progress("encoding the training images", shape[0] * shape[1]) as advance:
        for row in range(shape[0]):
            for start in range(0, shape[1], _BATCH):
                places = range(start, min(start + _BATCH, shape[1]))
                kept[row, start : places.stop] = _of_images(model, data, places, row == 1, device)
                advance(len(places))
    model.to("cpu")
    kept.flush()
    del kept
    temporary.replace(path)


@torch.no_grad()
def _of_images(
    model: Any,
    data: ImageData,
    places: range,
    flip: bool = False,
    device: torch.device | None = None,
) -> npt.NDArray[np.float32]:
    """Compute the inputs of training images by their places."""
    x = to_unit_interval(torch.from_numpy(data.gather("train", np.array(places))))
    found: Tensor = model.inputs((x.flip(3) if flip else x).to(device))
    return np.asarray(found.float().cpu().numpy())
