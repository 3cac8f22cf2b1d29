"""Keep what frozen networks make of the training images, so that they run once."""

from __future__ import annotations

import hashlib
import shutil
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
from genlab.errors import DataError, is_full
from genlab.protocols import KeepsInputs
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
    try:
        with exclusive(path.parent):
            if not path.exists():
                _compute(model, data, path, torch.device(device))
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        full = isinstance(error, OSError) and is_full(error)
        raise DataError(
            f"{path} cannot be {'written' if full else 'read'} ({error}): "
            f"{'make room' if full else 'delete it, and it is made again'}"
        ) from error


def batches(inputs: Inputs) -> Iterator[Tensor]:
    """Yield all inputs in batches (B, ...), those of mirrored images too."""
    for orientation in inputs:
        for start in range(0, len(orientation), _BATCH):
            yield torch.from_numpy(np.array(orientation[start : start + _BATCH]))


@torch.no_grad()
def _compute(model: Any, data: ImageData, path: Path, device: torch.device) -> None:
    model.to(device)
    size = data.size("train")
    mirrored = (False, True) if data.flip else (False,)
    temporary = path.with_suffix(".tmp")  # of a process that was killed, or of none: it is locked
    kept: np.memmap[Any, np.dtype[np.float32]] | None = None
    with progress("encoding the training images", size * len(mirrored)) as advance:
        for row, flip in enumerate(mirrored):
            for start in range(0, size, _BATCH):
                places = np.arange(start, min(start + _BATCH, size))
                x = to_unit_interval(torch.from_numpy(data.gather("train", places)))
                found = model.inputs((x.flip(3) if flip else x).to(device)).float().cpu().numpy()
                if kept is None:
                    shape = (len(mirrored), size, *found.shape[1:])
                    needed = 4 * int(np.prod(shape))
                    if shutil.disk_usage(path.parent).free < needed:
                        raise DataError(
                            f"{path.parent} has no room for the {needed:,} bytes of the codes of "
                            "all training images: make room, or set XDG_CACHE_HOME"
                        )
                    kept = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
                kept[row, places] = found
                advance(len(places))
    assert kept is not None
    model.to("cpu")
    kept.flush()
    del kept
    temporary.replace(path)
