"""Images in arrays of NumPy, .npy or .npz, streamed once into a memory-mapped cache."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from genlab.data.base import (
    SPLIT_NAMES,
    Fingerprint,
    SourceSplit,
    refuse_lost_class,
    share_of_test,
    test_part,
)
from genlab.data.cache import (
    CachedSource,
    CacheWriter,
    ImageCache,
    cache_key,
    default_cache_dir,
    fingerprint,
)
from genlab.data.progress import progress
from genlab.errors import DataError, GenlabError
from genlab.protocols import ImageSpec
from genlab.runs.reading import open_regular

Layout = Literal["NHW", "NHWC", "NCHW"]

# Part of the cache's key: increase it when the reading changes.
_RULES = 1
_CHUNK_BYTES = 1 << 24
_IMAGES = ("images", "x", "data", "imgs", "arr_0")
_LABELS = ("labels", "y", "targets", "arr_1")


class _Header(NamedTuple):
    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype[np.generic]


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, read in pieces.

    Attributes:
        title: says in errors which array it is.
        file: the file that holds it.
        open: opens its .npy content.
    """

    title: str
    file: Path
    open: Callable[[], IO[bytes]]

    @cached_property
    def header(self) -> _Header:
        """Shape, order and dtype, without reading the values. Raises DataError."""
        with self._stream() as stream:
            return _read_header(stream)

    def rows(self) -> Iterator[npt.NDArray[np.generic]]:
        """Yield the array in order, some rows at a time. Raises DataError."""
        shape, by_columns, dtype = self.header
        if by_columns and len(shape) > 1:
            raise DataError(
                f"{self.title} is stored by columns: save np.ascontiguousarray of it again"
            )
        row = max(1, math.prod(shape[1:]) * dtype.itemsize)
        step = max(1, _CHUNK_BYTES // row)
        with self._stream() as stream:
            _read_header(stream)
            for start in range(0, shape[0], step):
                count = min(step, shape[0] - start)
                data = stream.read(count * row)
                if len(data) < count * row:
                    raise ValueError(f"it ends after {start:,} of {shape[0]:,} rows")
                yield np.frombuffer(data, dtype=dtype).reshape(count, *shape[1:])

    @contextmanager
    def _stream(self) -> Iterator[IO[bytes]]:
        with _readable(self.title), self.open() as stream:
            yield stream


class ArrayFile(CachedSource):
    """uint8 images in an .npz, an .npy, or a folder of .npy files, with or without labels.

    In an .npz or a folder, the names say what an array is: `images` and `labels`, `x` and `y`, or
    `arr_0` and `arr_1`; of several splits `train_images`, `x_train`, ... (`val`, `test` likewise).
    Without test images a fixed part of the others becomes the test set.

    Args:
        path: the file or folder.
        labels: an .npy with the labels of `path`, if that is an .npy.
        layout: order of the axes, "NHW", "NHWC" or "NCHW"; None if the shape leaves no choice.
        test_fraction: the share of test images if there are none; in (0, 1).
        cache_dir: None for `$XDG_CACHE_HOME/genlab`, or `~/.cache/genlab` if that is not set.
    """

    name = "array"

    def __init__(
        self,
        path: str,
        labels: str | None = None,
        layout: Layout | None = None,
        test_fraction: float = 0.1,
        cache_dir: str | None = None,
    ) -> None:
        if layout is not None and layout not in get_args(Layout):
            raise ValueError(f"layout={layout}: give one of {', '.join(get_args(Layout))}, or null")
        self.path = Path(path).expanduser()
        self._labels_path = Path(labels).expanduser() if labels is not None else None
        if self._labels_path is not None and self.path.suffix != ".npy":
            raise ValueError(
                f"labels={labels}: give it with an .npy as path; in an .npz or a folder, labels "
                "are the array named labels"
            )
        self._layout, self._test_fraction = layout, share_of_test(test_fraction)
        self.cache_dir = default_cache_dir(cache_dir)

    @property
    def spec(self) -> ImageSpec:
        """Spec from the header of the training images and from the labels. Raises DataError."""
        _, (channels, height, width) = self._axes(self._images["train"])
        labels = self._labels.get("train")
        classes = () if labels is None else tuple(map(str, range(int(labels.max()) + 1)))
        return ImageSpec(channels, height, width, classes=classes)

    def fingerprint(self, data_dir: Path) -> Fingerprint:
        numbers = {split: array.header.shape[0] for split, array in self._images.items()}
        files = {array.file: name for name, array in self._arrays.items()}
        return fingerprint(numbers, ((n, file) for file, n in sorted(files.items())), reads=True)

    @cached_property
    def _arrays(self) -> dict[str, StoredArray]:
        """Every array by its name in lower case."""
        path = self.path
        if path.is_dir():
            found = {file.stem.lower(): _in_npy(file) for file in sorted(path.glob("*.npy"))}
        elif not path.is_file():
            raise DataError(f"data.source.path={path}: there is no such file or folder")
        elif path.suffix == ".npy":
            found = {"images": _in_npy(path)}
            if self._labels_path is not None:
                found["labels"] = _in_npy(self._labels_path)
        else:
            found = _in_npz(path)
        return found

    @cached_property
    def _images(self) -> dict[SourceSplit, StoredArray]:
        found = self._named(_IMAGES)
        if "train" not in found:
            names = ", ".join(self._arrays) or "none"
            raise DataError(
                f"data.source.path={self.path} has no array named images or train_images (x, "
                f"x_train, arr_0), but {names}: name it so"
            )
        for array in found.values():
            axes, shape = self._axes(array)
            first = self._axes(found["train"])
            if (axes, shape) != first:
                raise DataError(
                    f"{array.title} has images of {_times(shape)} instead of {_times(first[1])} "
                    "(channels, height, width) as in training: make them equal"
                )
        return found

    @cached_property
    def _labels(self) -> dict[SourceSplit, npt.NDArray[np.int64]]:
        found = self._named(_LABELS)
        if not found:
            return {}
        if missing := sorted(set(self._images) - set(found)):
            raise DataError(
                f"data.source.path={self.path} has labels, but none of its {missing[0]} images: "
                "add them, or remove the others"
            )
        read = {s: _read_labels(found[s], self._images[s]) for s in self._images}
        classes = int(read["train"].max()) + 1
        for label in range(classes):
            if label not in read["train"]:
                raise DataError(
                    f"{found['train'].title} has no image of class {label}, but labels up to "
                    f"{classes - 1}: number the classes from 0 without gaps"
                )
        for split, labels in read.items():
            if labels.max() >= classes:
                raise DataError(
                    f"{found[split].title} has the label {labels.max()}, but those of training end "
                    f"at {classes - 1}: remove these images, or add some to train with"
                )
        return read

    def _named(self, kinds: tuple[str, ...]) -> dict[SourceSplit, StoredArray]:
        """Find the array of every split by its name; one without a split is of training."""
        names = {
            name: split
            for word, split in SPLIT_NAMES.items()
            for kind in kinds
            for name in (f"{word}_{kind}", f"{kind}_{word}", *((kind,) if word == "train" else ()))
        }
        found: dict[SourceSplit, StoredArray] = {}
        for name, array in self._arrays.items():
            split = names.get(name)
            if split in found:
                raise DataError(
                    f"{found[split].title} and {array.title} are both {split} {kinds[0]}: keep one"
                )
            if split is not None:
                found[split] = array
        return found

    def _axes(self, array: StoredArray) -> tuple[Layout, tuple[int, int, int]]:
        """Return the order of the axes and (C, H, W) of the images in an array."""
        shape, _, dtype = array.header
        if dtype != np.uint8:
            raise DataError(
                f"{array.title} has pixels of type {dtype}: save them as uint8, from 0 to 255"
            )
        fitting: dict[Layout, tuple[int, int, int]] = {}
        if len(shape) == 3:
            fitting["NHW"] = (1, *shape[1:])
        elif len(shape) == 4 and shape[3] in (1, 3):
            fitting["NHWC"] = (shape[3], *shape[1:3])
        if len(shape) == 4 and shape[1] in (1, 3):
            fitting["NCHW"] = shape[1:]
        if self._layout is not None:
            fitting = {k: v for k, v in fitting.items() if k == self._layout}
        if len(fitting) == 1 and min(shape) > 0:
            return next(iter(fitting.items()))
        told = f"{array.title} has the shape {_times(shape)}"
        if len(fitting) > 1:
            raise DataError(f"{told}: set data.source.layout to {' or '.join(fitting)}")
        wanted = "" if self._layout is None else f" (data.source.layout={self._layout})"
        raise DataError(
            f"{told}: give images of N x H x W, N x H x W x C or N x C x H x W with 1 or 3 "
            f"channels{wanted}"
        )

    @cached_property
    def _cache(self) -> ImageCache:
        settings = [_RULES, str(self.path.resolve()), self._layout, self._test_fraction]
        arrays = sorted((name, array.file) for name, array in self._arrays.items())
        key = cache_key(settings, arrays)
        cache = ImageCache(self.cache_dir / self.name, key, self.spec.shape)
        cache.make(self._fill)
        return cache

    def _fill(self, writer: CacheWriter) -> None:
        numbers = {split: array.header.shape[0] for split, array in self._images.items()}
        with progress(f"reading {self.path}", sum(numbers.values())) as advance:
            for split, array in self._images.items():
                labels = self._labels.get(split, np.zeros(numbers[split], dtype=np.int64))
                is_test = np.zeros(numbers[split], dtype=np.bool_)
                if split == "train" and "test" not in numbers:
                    is_test = test_part(numbers[split], self._test_fraction)
                    refuse_lost_class(str(self.path), self.spec.classes, labels[~is_test])
                layout, _ = self._axes(array)
                start = 0
                for rows in array.rows():
                    place = slice(start, start + len(rows))
                    start += len(rows)
                    pixels = _channels_first(rows.view(np.uint8), layout)
                    parts: list[tuple[SourceSplit, npt.NDArray[np.bool_]]] = [
                        (split, ~is_test[place]),
                        ("test", is_test[place]),
                    ]
                    for part, chosen in parts:
                        if chosen.any():
                            writer.append(part, pixels[chosen], labels[place][chosen])
                    advance(len(rows))


def _in_npy(path: Path) -> StoredArray:
    return StoredArray(str(path), path, lambda: open_regular(path.resolve()))


def _in_npz(path: Path) -> dict[str, StoredArray]:
    with _readable(str(path)), zipfile.ZipFile(path) as packed:
        names = [name for name in packed.namelist() if name.endswith(".npy")]
    return {name.removesuffix(".npy").lower(): _in_member(path, name) for name in names}


def _in_member(path: Path, name: str) -> StoredArray:
    # an open member keeps the file of its archive open, and closes it
    title = f"{name.removesuffix('.npy')} in {path}"
    return StoredArray(title, path, lambda: zipfile.ZipFile(path).open(name))


def _read_header(stream: IO[bytes]) -> _Header:
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"its .npy version is {version[0]}.{version[1]}, not 1.0 or 2.0")
    return _Header(*readers[version](stream))


def _read_labels(array: StoredArray, images: StoredArray) -> npt.NDArray[np.int64]:
    shape, _, dtype = array.header
    number = images.header.shape[0]
    if dtype.kind not in "iu" or shape not in ((number,), (number, 1)):
        raise DataError(
            f"{array.title} has the shape {_times(shape)} and the type {dtype}: give one whole "
            f"number for each of the {number:,} images"
        )
    labels = np.concatenate(list(array.rows())).reshape(-1)
    if labels.min() < 0:
        raise DataError(f"{array.title} has the label {labels.min()}: number the classes from 0")
    return labels.astype(np.int64)


def _channels_first(rows: npt.NDArray[np.uint8], layout: Layout) -> npt.NDArray[np.uint8]:
    if layout == "NHW":
        return rows[:, None]
    return rows.transpose(0, 3, 1, 2) if layout == "NHWC" else rows


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "()"


@contextmanager
def _readable(title: str) -> Iterator[None]:
    """Turn whatever a damaged file raises into a DataError."""
    try:
        yield
    except GenlabError:
        raise
    except (
        *(OSError, ValueError, EOFError, KeyError, MemoryError, RuntimeError),
        *(zipfile.BadZipFile, zlib.error),
    ) as error:
        raise DataError(f"{title} cannot be read ({error}): replace the file") from error
