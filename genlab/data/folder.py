"""A tree of image files, decoded once into a memory-mapped cache."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from genlab.data.base import Images, ImageSource, SourceSplit, test_part
from genlab.data.cache import CacheWriter, ImageCache, cache_key, default_cache_dir
from genlab.data.decoding import RULES, Decoded, Decoder, Fit, Rule, warnings_of_pillow
from genlab.data.progress import progress
from genlab.data.tree import (
    Files,
    ImageFile,
    Layout,
    describe_left_out,
    find_images,
    read_layout,
)
from genlab.errors import DataError, whole
from genlab.protocols import ImageSpec

log = logging.getLogger(__name__)

Unreadable = Literal["refuse", "skip"]

_CHUNK = 256


class ImageFolder(ImageSource):
    """Image files in `root/{train,val,test}/<class>/`, `root/<class>/`, or without class folders.

    The splits may be named in any case; `valid` and `validation` are `val`. Without a folder of
    test images a fixed part of the others becomes the test set. Files and folders that systems
    leave behind (`.DS_Store`, `__MACOSX`, ...) are not looked at.

    The images are decoded once into a cache. The key of the cache is a digest of this
    configuration, of the rules of decoding, and of the list of files with their sizes and
    modification times.

    Args:
        root: the tree; folders below a class folder belong to that class.
        image_size: height and width in pixels of the images that the model gets, or one number.
        channels: 1 for grey, 3 for colour.
        fit: "crop" resizes the shorter side and cuts out the centre, "stretch" resizes both sides,
            "exact" refuses any other size.
        background: the colour that is seen through transparent pixels.
        unreadable: whether to "refuse" or to "skip" (and count) images that cannot be decoded.
        test_fraction: the share of test images if there is no `test` folder; in (0, 1).
        cache_dir: None for `$XDG_CACHE_HOME/genlab`, or `~/.cache/genlab` if that is not set.
    """

    name = "folder"

    def __init__(
        self,
        root: str,
        image_size: int | list[int],
        channels: int = 3,
        fit: Fit = "crop",
        background: str = "white",
        unreadable: Unreadable = "refuse",
        test_fraction: float = 0.1,
        cache_dir: str | None = None,
    ) -> None:
        if unreadable not in get_args(Unreadable):
            raise ValueError(
                f"unreadable={unreadable}: give one of {', '.join(get_args(Unreadable))}"
            )
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction={test_fraction}: give a fraction between 0 and 1")
        self._decoder = Decoder(*_height_and_width(image_size), channels, fit, background)
        self.root = Path(root).expanduser()
        self._unreadable, self._test_fraction = unreadable, test_fraction
        self.cache_dir = default_cache_dir(cache_dir)

    @property
    def spec(self) -> ImageSpec:
        """Spec whose `classes` are the names of the folders; empty if `root` does not exist."""
        classes = self._layout.classes if self.root.is_dir() else ()
        size = self._decoder.height, self._decoder.width
        return ImageSpec(self._decoder.channels, *size, classes=classes)

    def prepare(self, data_dir: Path) -> None:
        notes = self._cache.notes
        left_out = describe_left_out(self._layout, self._files.left_out)
        for sentence in filter(None, (left_out, *notes)):
            log.warning("%s", sentence)

    def splits(self, data_dir: Path) -> frozenset[SourceSplit]:
        return self._cache.splits()

    def load(self, data_dir: Path, split: SourceSplit) -> Images:
        """Read a split from the cache, as in `ImageSource`; `pixels` is a read-only memory map."""
        return self._cache.load(split)

    @cached_property
    def _layout(self) -> Layout:
        if not self.root.is_dir():
            raise DataError(f"data.source.root={self.root}: there is no such folder")
        return read_layout(self.root)

    @cached_property
    def _files(self) -> Files:
        return self._scan()

    @cached_property
    def _cache(self) -> ImageCache:
        """The cache, which is filled if it does not exist."""
        images = self._files.images
        cache = ImageCache(self.cache_dir / "folder", self._key(images), self.spec.shape)
        cache.make(self._fill)
        return cache

    def _scan(self) -> Files:
        images, left_out = find_images(self._layout)
        if "test" not in images:
            held_out = test_part(len(images["train"]), self._test_fraction)
            pairs = list(zip(images["train"], held_out, strict=True))
            images["test"] = [file for file, is_test in pairs if is_test]
            images["train"] = [file for file, is_test in pairs if not is_test]
        return Files(images, left_out)

    def _key(self, splits: dict[SourceSplit, list[ImageFile]]) -> str:
        settings = [RULES, str(self.root.resolve()), asdict(self._decoder), self._unreadable]
        files = ((split, file) for split in sorted(splits) for file in splits[split])
        return cache_key(settings, ((f"{split} {file.label}", file.path) for split, file in files))

    def _fill(self, writer: CacheWriter) -> None:
        images = self._files.images
        rules: Counter[Rule] = Counter()
        skipped: list[str] = []
        # Pillow releases the GIL while it decodes and resizes.
        workers = min(8, len(os.sched_getaffinity(0)))
        with (
            progress(f"decoding {self.root}", sum(map(len, images.values()))) as advance,
            warnings_of_pillow(),
            ThreadPoolExecutor(workers) as threads,
        ):
            for split, files in images.items():
                for chunk in (files[at : at + _CHUNK] for at in range(0, len(files), _CHUNK)):
                    kept = []
                    for file, decoded in zip(chunk, threads.map(self._decode, chunk), strict=True):
                        advance(1)
                        if isinstance(decoded, Decoded):
                            rules.update(decoded.rules)
                            kept.append((decoded.pixels, file.label))
                        else:
                            skipped.append(self._skip(file, decoded))
                    if kept:
                        pixels, labels = zip(*kept, strict=True)
                        writer.append(split, np.stack(pixels), np.array(labels, dtype=np.int64))
                self._check_labels(split, writer.labels(split))
        writer.notes += [self._decoder.explain(rule, rules[rule]) for rule in sorted(rules)]
        if skipped:
            few = ", ".join(skipped[:10])
            writer.notes.append(f"{len(skipped):,} unreadable images skipped: {few}")

    def _skip(self, file: ImageFile, reason: str) -> str:
        if self._unreadable == "refuse":
            raise DataError(
                f"{file.path} cannot be read ({reason}): replace or remove it, or set "
                "data.source.unreadable=skip"
            )
        return f"{file.path} ({reason})"

    def _check_labels(self, split: SourceSplit, labels: npt.NDArray[np.int64]) -> None:
        if not len(labels):
            raise DataError(f"{self.root}: no {split} image can be read")
        if split != "train":
            return
        for label, name in enumerate(self._layout.classes):
            if label not in labels:
                raise DataError(
                    f"data.source.root={self.root}: the class {name} has no training image left "
                    "after the test part and unreadable images: add images, or remove the class"
                )

    def _decode(self, file: ImageFile) -> Decoded | str:
        return self._decoder(file.path)


def _height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    sides = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
    if len(sides) != 2:
        raise ValueError(f"image_size={sides}: give one number, or height and width")
    height, width = (whole("image_size", side, 1) for side in sides)
    return height, width
