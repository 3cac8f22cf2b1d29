"""Data sets of the Hugging Face hub, or in its formats, through the `datasets` library."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from genlab.data.base import SPLIT_NAMES, Fingerprint, SourceSplit, share_of_test, test_part
from genlab.data.cache import (
    CachedSource,
    CacheWriter,
    ImageCache,
    cache_key,
    default_cache_dir,
    fingerprint,
)
from genlab.data.decoding import RULES, Decoder, Fit, height_and_width
from genlab.data.filling import Encoded, Filler, Part, Unreadable
from genlab.errors import ConfigError, DataError
from genlab.protocols import ImageSpec

if TYPE_CHECKING:
    from datasets import Dataset


class _Columns(NamedTuple):
    image: str
    label: str | None
    classes: tuple[str, ...]


class HuggingFace(CachedSource):
    """A data set of images that `datasets.load_dataset` or `load_from_disk` reads.

    Its splits `train`, `validation` and `test` are used; without a test split a fixed part of the
    training images becomes the test set. Images are decoded once, by the rules of `ImageFolder`.

    Args:
        path: name on the hub, a folder, or a folder that `save_to_disk` wrote.
        subset: name of the configuration, if the data set has several.
        revision: commit or tag on the hub; None for the newest.
        image: column of the images; None for the only one.
        label: column of the labels, of the type ClassLabel; None for the only one, if there is one.
        image_size, channels, fit, background, unreadable, test_fraction, cache_dir: as in
            `ImageFolder`.
    """

    name = "huggingface"

    def __init__(
        self,
        path: str,
        image_size: int | list[int],
        subset: str | None = None,
        revision: str | None = None,
        image: str | None = None,
        label: str | None = None,
        channels: int = 3,
        fit: Fit = "crop",
        background: str = "white",
        unreadable: Unreadable = "refuse",
        test_fraction: float = 0.1,
        cache_dir: str | None = None,
    ) -> None:
        self._decoder = Decoder(*height_and_width(image_size), channels, fit, background)
        self._filler = Filler(self._decoder, unreadable)
        self.path, self._subset, self._revision = path, subset, revision
        self._image, self._label = image, label
        self._test_fraction = share_of_test(test_fraction)
        self.cache_dir = default_cache_dir(cache_dir)

    @property
    def spec(self) -> ImageSpec:
        """Spec whose `classes` are the names of the labels; loads the data set to know them."""
        return self._decoder.spec(self._columns.classes)

    def fingerprint(self, data_dir: Path) -> Fingerprint:
        counts = {split: len(table) for split, table in self._tables.items()}
        return fingerprint(counts, self._arrow_files(), reads=True)

    @cached_property
    def _tables(self) -> dict[SourceSplit, Dataset]:
        """The rows of each split, with images as bytes or paths; a test part is set apart."""
        try:
            import datasets
        except ImportError as error:
            raise ConfigError(
                "data=huggingface needs the package datasets: pip install 'genlab[huggingface]'"
            ) from error
        path = Path(self.path).expanduser()
        try:
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                loaded: Any = datasets.load_from_disk(str(path))
            else:
                where = str(path) if path.exists() else self.path
                loaded = datasets.load_dataset(where, self._subset, revision=self._revision)
        # the library, and what it reads and downloads with, raise many kinds of exceptions
        except Exception as error:
            given = {"path": self.path, "subset": self._subset, "revision": self._revision}
            keys = [f"data.source.{key}={value}" for key, value in given.items() if value]
            message = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{', '.join(keys)}: {message}") from error
        if isinstance(loaded, datasets.Dataset):
            loaded = {"train": loaded}
        tables = {SPLIT_NAMES[n]: table for n, table in loaded.items() if n in SPLIT_NAMES}
        if "train" not in tables:
            raise DataError(
                f"data.source.path={self.path} has no split train, but {', '.join(loaded)}: give "
                "another data set, or a subset with one"
            )
        if "test" not in tables:
            is_test = test_part(len(tables["train"]), self._test_fraction)
            whole = tables["train"]
            tables["train"] = whole.select(np.flatnonzero(~is_test))
            tables["test"] = whole.select(np.flatnonzero(is_test))
        return tables

    @cached_property
    def _columns(self) -> _Columns:
        from datasets import ClassLabel, Image

        features = self._tables["train"].features
        image = self._column(features, "image", self._image, Image)
        if image is None:
            raise DataError(
                f"data.source.path={self.path} has no column of images, but "
                f"{', '.join(features)}: give another data set"
            )
        label = self._column(features, "label", self._label, ClassLabel)
        return _Columns(image, label, () if label is None else tuple(features[label].names))

    def _column(
        self, features: dict[str, Any], key: str, name: str | None, kind: type[Any]
    ) -> str | None:
        fitting = [column for column, feature in features.items() if isinstance(feature, kind)]
        if name is None and len(fitting) < 2:
            return fitting[0] if fitting else None
        if name not in fitting:
            raise ConfigError(
                f"data.source.{key}={'null' if name is None else name}: give a column of the type "
                f"{kind.__name__}, of {', '.join(fitting) or 'which there is none'}"
            )
        return name

    @cached_property
    def _cache(self) -> ImageCache:
        settings = [
            *(RULES, self.path, asdict(self._decoder), self._filler.unreadable),
            *(self._columns, self._test_fraction),
        ]
        key = cache_key(settings, self._arrow_files())
        cache = ImageCache(self.cache_dir / self.name, key, self.spec.shape)
        cache.make(self._fill)
        return cache

    def _arrow_files(self) -> list[tuple[str, Path]]:
        """List the files that the tables are mapped from, each with its split."""
        return [
            (split, Path(file["filename"]))
            for split in sorted(self._tables)
            for file in self._tables[split].cache_files
        ]

    def _fill(self, writer: CacheWriter) -> None:
        parts = {split: Part(len(rows), self._rows(split)) for split, rows in self._tables.items()}
        self._filler(writer, self.path, self._columns.classes, parts)

    def _rows(self, split: SourceSplit) -> Iterator[Encoded]:
        from datasets import Image

        image, label, classes = self._columns
        table = self._tables[split].select_columns([image, *([label] if label else [])])
        for number, row in enumerate(table.cast_column(image, Image(decode=False))):
            title = f"image {number} of {split} in {self.path}"
            content = row[image]["bytes"]
            if content is None:
                content = Path(row[image]["path"])
            value = row[label] if label else 0
            if label and (value is None or not 0 <= value < len(classes)):
                raise DataError(
                    f"{title} has no label: set data.source.label to a column that is complete"
                )
            yield Encoded(title, content, value)
