"""What a data set is to the rest of genlab."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from genlab.errors import ConfigError
from genlab.protocols import ImageSpec

SourceSplit = Literal["train", "test"]

PixelArray = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
"""(N, C, H, W), uint8, or float32 where pixels are real numbers."""


class Images(NamedTuple):
    """The images and the labels of one official split.

    Attributes:
        pixels: (N, C, H, W), uint8 or float32; the caller may write to it if it is writable.
        labels: (N,) int64, from 0.
    """

    pixels: PixelArray
    labels: npt.NDArray[np.int64]


class ImageSource(ABC):
    """A data set: where it comes from and how it is decoded, not how it is split or ordered.

    To add one, write a subclass and a YAML in `conf/data/` that names it.
    """

    name: str
    """Also the folder under `data.data_dir` where its files are looked for."""

    @property
    @abstractmethod
    def spec(self) -> ImageSpec:
        """Shape and kind of the images, known without reading any."""

    @abstractmethod
    def prepare(self, data_dir: Path) -> None:
        """Bring the data to this machine; one process does it for all. Raises DataError."""

    @abstractmethod
    def load(self, data_dir: Path, split: SourceSplit) -> Images:
        """Read, and verify, an official split. Raises DataError."""


def at_least(key: str, value: int, minimum: int) -> int:
    """`value`, or a ConfigError if it is not a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{key}={value!r}: give a whole number of at least {minimum}")
    return value
