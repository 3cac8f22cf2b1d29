"""IDX files for the tests: the bytes of an array, and a small data set of such files."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt

from genlab.data.sources import IDXSource
from genlab.protocols import ImageSpec


def idx_bytes(array: npt.NDArray[Any]) -> bytes:
    """The IDX file of an array of bytes."""
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_source(
    folder: Path, pixels: npt.NDArray[Any], labels: npt.NDArray[Any]
) -> type[IDXSource]:
    """A data set of the same images for train and test, and its class."""
    folder.mkdir(parents=True, exist_ok=True)
    digests = {}
    for prefix in ("train", "t10k"):
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            content = idx_bytes(array)
            name = f"{prefix}-{kind}-ubyte"
            (folder / name).write_bytes(content)
            digests[name] = hashlib.sha256(content).hexdigest()

    class Small(IDXSource):
        name = folder.name
        image_spec = ImageSpec(1, 2, 3, classes=("a", "b"))
        mirrors = ()
        sha256: ClassVar[dict[str, str]] = digests

    return Small
