"""The interface of a data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from genlab.protocols import ImageSpec

SourceSplit = Literal["train", "test"]

PixelArray = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
"""(N, C, H, W), uint8, or float32 if pixels are real numbers."""


class Images(NamedTuple):
    """The images and the labels of one official split.

    Attributes:
        pixels: (N, C, H, W), uint8 or float32; the caller may modify it if it is writable.
        labels: (N,) int64, from 0.
    """

    pixels: PixelArray
    labels: npt.NDArray[np.int64]


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

    @abstractmethod
    def load(self, data_dir: Path, split: SourceSplit) -> Images:
        """Read and verify an official split. Raises DataError."""
