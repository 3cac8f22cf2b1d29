"""The interface of a data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from genlab.errors import DataError
from genlab.protocols import ImageSpec
from genlab.seeding import numpy_generator

SourceSplit = Literal["train", "val", "test"]

PixelArray = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
"""(N, C, H, W), uint8, or float32 if pixels are real numbers."""


#: The splits by the names that people give them, in lower case.
SPLIT_NAMES: dict[str, SourceSplit] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


class Images(NamedTuple):
    """The images and the labels of one official split.

    Attributes:
        pixels: (N, C, H, W), uint8 or float32; the caller may modify it if it is writable.
        labels: (N,) int64, from 0.
    """

    pixels: PixelArray
    labels: npt.NDArray[np.int64]


class Fingerprint(NamedTuple):
    """Counts and digests by which a change of the images of a data set is noticed.

    Attributes:
        images: the number of images that each split has on the disk.
        files: a digest of their names, classes and sizes.
        times: a digest of their modification times, which a copy of the same files changes.
    """

    images: dict[SourceSplit, int]
    files: str
    times: str


class ImageSource(ABC):
    """A data set: its origin and its decoding, but not its validation split or its order.

    To add one, write a subclass and a YAML file in `conf/data/` that names it.
    """

    name: str
    """Name of the data set, and of the folder of its files under `data.data_dir`."""

    @property
    @abstractmethod
    def spec(self) -> ImageSpec:
        """Shape and kind of the images, known without reading an image."""

    @abstractmethod
    def prepare(self, data_dir: Path) -> None:
        """Bring the data to this machine; only one process calls it. Raises DataError."""

    def splits(self, data_dir: Path) -> frozenset[SourceSplit]:
        """Return the splits that `load` gives; a `val` replaces the images set apart."""
        return frozenset({"train", "test"})

    @abstractmethod
    def load(self, data_dir: Path, split: SourceSplit) -> Images:
        """Read and verify an official split. Raises DataError."""

    def fingerprint(self, data_dir: Path) -> Fingerprint | None:
        """Return what tells a change of the images, without reading them. Raises DataError.

        None for a data set that cannot change: each of its files is verified, or it is computed.
        """
        return None


def share_of_test(fraction: float) -> float:
    """Return the share of test images of a data set that has none; ValueError if it is none."""
    if not 0 < fraction < 1:
        raise ValueError(f"test_fraction={fraction}: give a fraction between 0 and 1")
    return fraction


def test_part(images: int, fraction: float) -> npt.NDArray[np.bool_]:
    """Return which of the images are test images, (N,), where a data set has none; always the same.

    Raises:
        DataError: if no image, or every image, would be one.
    """
    tests = round(fraction * images)
    if not 0 < tests < images:
        raise DataError(
            f"data.source.test_fraction={fraction} of {images:,} images leaves {tests:,} to test "
            f"and {images - tests:,} to train with: give more images, images of their own to test "
            "with, or another fraction"
        )
    chosen = np.zeros(images, dtype=np.bool_)
    chosen[numpy_generator(0, "test part").permutation(images)[:tests]] = True
    return chosen


def refuse_lost_class(title: str, classes: Sequence[str], labels: npt.NDArray[np.int64]) -> None:
    """Raise a DataError, which begins with the title, if a class has no training image."""
    for label, name in enumerate(classes):
        if label not in labels:
            raise DataError(
                f"{title}: the class {name} has no training image left after the test part and "
                "unreadable images: add images, or remove the class"
            )
