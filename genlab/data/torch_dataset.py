"""A user's own `torch.utils.data.Dataset`, read once into memory."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence, Sized
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from genlab.data.base import (
    Fingerprint,
    Images,
    ImageSource,
    SourceSplit,
    refuse_lost_class,
    share_of_test,
    test_part,
)
from genlab.data.decoding import Decoded, Decoder, Fit, Rule, height_and_width, warnings_of_pillow
from genlab.data.progress import progress
from genlab.errors import DataError
from genlab.protocols import ImageSpec

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

log = logging.getLogger(__name__)


class TorchDataset(ImageSource):
    """Images of map-style datasets of torch, each read once, in order, without shuffling.

    An item is an image, a pair of an image and a label, or a dict of `image` and `label`. An image
    is one of Pillow's, an array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W); uint8, or
    float in [0, 1]. A random transform is applied once. The images are in memory, not in a cache:
    nobody can tell whether a dataset still gives the same.

    Args:
        train: the training images.
        val: the validation images; None to set some of `train` apart.
        test: the test images; None to make a fixed part of `train` the test set.
        classes: names of the labels; None for the attribute `classes` of `train`, as torchvision's
            datasets have, or else no labels.
        image_size, channels, fit, background, test_fraction: as in `ImageFolder`.
    """

    name = "dataset"

    def __init__(
        self,
        train: Dataset[Any],
        image_size: int | list[int],
        val: Dataset[Any] | None = None,
        test: Dataset[Any] | None = None,
        classes: list[str] | None = None,
        channels: int = 3,
        fit: Fit = "crop",
        background: str = "white",
        test_fraction: float = 0.1,
    ) -> None:
        self._decoder = Decoder(*height_and_width(image_size), channels, fit, background)
        self._datasets: dict[SourceSplit, Dataset[Any]] = {"train": train}
        for split, dataset in (("val", val), ("test", test)):
            if dataset is not None:
                self._datasets[cast(SourceSplit, split)] = dataset
        for split, dataset in self._datasets.items():
            if not isinstance(dataset, Dataset) or not isinstance(dataset, Sized):
                raise ValueError(
                    f"{split}={type(dataset).__name__}: give a subclass of "
                    "torch.utils.data.Dataset with a length"
                )
        own: Sequence[str] = getattr(train, "classes", ()) if classes is None else classes
        self._classes, self._test_fraction = tuple(map(str, own)), share_of_test(test_fraction)

    @property
    def spec(self) -> ImageSpec:
        return self._decoder.spec(self._classes)

    def prepare(self, data_dir: Path) -> None:
        """Do nothing: every process reads the images itself."""

    def splits(self, data_dir: Path) -> frozenset[SourceSplit]:
        return frozenset({"test", *self._datasets})

    def load(self, data_dir: Path, split: SourceSplit) -> Images:
        if split in self._datasets and (split != "train" or "test" in self._datasets):
            images = self._read(split)
        else:
            is_test = test_part(len(self._whole.labels), self._test_fraction)
            chosen = is_test if split == "test" else ~is_test
            images = Images(self._whole.pixels[chosen], self._whole.labels[chosen])
        if split == "train":
            refuse_lost_class("data.source.train", self._classes, images.labels)
        return images

    def fingerprint(self, data_dir: Path) -> Fingerprint:
        """Return the numbers of images alone: what they show is known only once they are read."""
        counts = {split: len(cast(Sized, dataset)) for split, dataset in self._datasets.items()}
        return Fingerprint(counts, "", "")

    @cached_property
    def _whole(self) -> Images:
        """The images that are both for training and for the test."""
        return self._read("train")

    def _read(self, split: SourceSplit) -> Images:
        dataset = self._datasets[split]
        number = len(cast(Sized, dataset))
        pixels = np.empty((number, *self.spec.shape), dtype=np.uint8)
        labels = np.zeros(number, dtype=np.int64)
        rules: Counter[Rule] = Counter()
        with progress(f"reading {type(dataset).__name__}", number) as advance, warnings_of_pillow():
            for i in range(number):
                title = f"image {i} of {type(dataset).__name__} ({split})"
                image, label = _parts(dataset[i])
                decoded = self._decoder.convert(_as_pillow(image, title))
                if not isinstance(decoded, Decoded):
                    raise DataError(f"{title} cannot be used ({decoded}): change the dataset")
                pixels[i] = decoded.pixels
                rules.update(decoded.rules)
                if self._classes:
                    labels[i] = self._label(label, title)
                advance(1)
        for rule in sorted(rules):
            log.warning("%s", self._decoder.explain(rule, rules[rule]))
        return Images(pixels, labels)

    def _label(self, label: Any, title: str) -> int:
        try:
            number = int(label)
        except (TypeError, ValueError):
            number = -1
        if not 0 <= number < len(self._classes):
            raise DataError(
                f"{title} has the label {label!r}: give whole numbers from 0 to "
                f"{len(self._classes) - 1}, or other data.source.classes"
            )
        return number


def _parts(item: Any) -> tuple[Any, Any]:
    """Return the image and the label of an item; None for no label."""
    if isinstance(item, dict):
        return item.get("image"), item.get("label")
    if isinstance(item, tuple | list):
        return (*item, None, None)[:2]
    return item, None


def _as_pillow(image: Any, title: str) -> PILImage:
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    if isinstance(image, torch.Tensor):
        pixels: npt.NDArray[Any] = image.numpy(force=True)
        pixels = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels
    elif isinstance(image, np.ndarray):
        pixels = image
    else:
        raise DataError(
            f"{title} is a {type(image).__name__}: give an image of Pillow, an array or a tensor"
        )
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype.kind == "f":
        if not (pixels.size and pixels.min() >= 0 and pixels.max() <= 1):
            raise DataError(
                f"{title} has real pixels outside [0, 1]: leave out what normalises them"
            )
        pixels = (255 * pixels).round().astype(np.uint8)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise DataError(
            f"{title} has the shape {tuple(image.shape)} and the type {image.dtype}: give uint8, "
            "or float in [0, 1], with 1 or 3 channels, last in an array and first in a tensor"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))
