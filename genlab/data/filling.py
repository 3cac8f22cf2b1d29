"""Fill a cache from encoded images: decoded by threads, in order, a chunk at a time."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from genlab.data.base import SourceSplit, refuse_lost_class
from genlab.data.cache import CacheWriter
from genlab.data.decoding import Decoded, Decoder, Rule, warnings_of_pillow
from genlab.data.progress import progress
from genlab.errors import DataError

Unreadable = Literal["refuse", "skip"]

_CHUNK = 256


class Encoded(NamedTuple):
    """An image that is not decoded: what errors call it, its file or its bytes, and its label."""

    title: str
    content: Path | bytes
    label: int


class Part(NamedTuple):
    """The images of a split, and their number."""

    number: int
    images: Iterator[Encoded]


@dataclass(frozen=True)
class Filler:
    """Decodes the images of a data set into a cache.

    Args:
        decoder: of every image.
        unreadable: whether to "refuse" or to "skip" (and count) images that cannot be decoded.

    Raises:
        ValueError: if a value is out of range.
    """

    decoder: Decoder
    unreadable: Unreadable

    def __post_init__(self) -> None:
        if self.unreadable not in get_args(Unreadable):
            raise ValueError(
                f"unreadable={self.unreadable}: give one of {', '.join(get_args(Unreadable))}"
            )

    def __call__(
        self,
        writer: CacheWriter,
        title: str,
        classes: Sequence[str],
        parts: Mapping[SourceSplit, Part],
    ) -> None:
        """Write all images, and notes on what became of them.

        Args:
            title: of the data set, in errors.
            classes: names of the labels, of each of which a training image is needed.

        Raises:
            DataError: if an image is refused, or a class has none left.
        """
        rules: Counter[Rule] = Counter()
        skipped: list[str] = []
        # Pillow releases the GIL while it decodes and resizes.
        workers = min(8, len(os.sched_getaffinity(0)))
        total = sum(part.number for part in parts.values())
        with (
            progress(f"decoding {title}", total) as advance,
            warnings_of_pillow(),
            ThreadPoolExecutor(workers) as threads,
        ):
            for split, part in parts.items():
                while chunk := list(islice(part.images, _CHUNK)):
                    kept = []
                    decoded = threads.map(self.decoder, [image.content for image in chunk])
                    for image, result in zip(chunk, decoded, strict=True):
                        advance(1)
                        if isinstance(result, Decoded):
                            rules.update(result.rules)
                            kept.append((result.pixels, image.label))
                        else:
                            skipped.append(self._skip(image.title, result))
                    if kept:
                        pixels, labels = zip(*kept, strict=True)
                        writer.append(split, np.stack(pixels), np.array(labels, dtype=np.int64))
                if not len(writer.labels(split)):
                    raise DataError(f"{title}: no {split} image can be read")
                if split == "train":
                    refuse_lost_class(title, classes, writer.labels(split))
        writer.notes += [self.decoder.explain(rule, rules[rule]) for rule in sorted(rules)]
        if skipped:
            few = ", ".join(skipped[:10])
            writer.notes.append(f"{len(skipped):,} unreadable images skipped: {few}")

    def _skip(self, title: str, reason: str) -> str:
        if self.unreadable == "refuse":
            raise DataError(
                f"{title} cannot be read ({reason}): replace or remove it, or set "
                "data.source.unreadable=skip"
            )
        return f"{title} ({reason})"
