"""Decoded images on disk: written once, in one pass, then memory-mapped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, get_args

import numpy as np
import numpy.typing as npt

from genlab.data.base import Fingerprint, Images, ImageSource, SourceSplit
from genlab.data.download import exclusive
from genlab.errors import DataError, is_full
from genlab.runs.text import printable

log = logging.getLogger(__name__)

_NOTES = "notes.json"
_BLOCK = 4096


def default_cache_dir(cache_dir: str | None) -> Path:
    """Return `cache_dir`, or for None `$XDG_CACHE_HOME/genlab`, or else `~/.cache/genlab`."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(cache_dir).expanduser() if cache_dir else home / "genlab"


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise a DataError that names the file in the place of an OSError."""
    try:
        yield
    except OSError as error:
        is_gone = isinstance(error, FileNotFoundError)
        reason = "it was removed meanwhile" if is_gone else error.strerror
        raise DataError(
            f"{path} cannot be read ({reason}): leave the images alone while they are read, and "
            "start again"
        ) from error


def fingerprint(
    images: dict[SourceSplit, int], files: Iterable[tuple[str, Path]], *, reads: bool = False
) -> Fingerprint:
    """Take the fingerprint of files, of which each comes with a text that says what it is.

    Args:
        reads: for a few large files, which keep their sizes when they are written anew: take 256
            blocks of their content as well, spread evenly.

    Raises:
        DataError: if a file is not there any more.
    """
    names, times = hashlib.sha256(), hashlib.sha256()
    for text, path in files:
        with readable(path):
            stat = path.stat()
            names.update(os.fsencode(f"{text} {stat.st_size}\n"))
            times.update(f"{stat.st_mtime_ns}\n".encode())
            if reads:
                with path.open("rb") as file:
                    for start in range(0, stat.st_size, max(_BLOCK, stat.st_size // 256)):
                        file.seek(start)
                        names.update(file.read(_BLOCK))
    return Fingerprint(images, names.hexdigest()[:32], times.hexdigest()[:32])


def cache_key(settings: object, files: Iterable[tuple[str, Path]]) -> str:
    """Compute the key of a cache from what was decoded and how.

    Args:
        settings: all that the pixels depend on beside the files; written as JSON.
        files: a text and a path each; the size and the modification time of the file count.

    Raises:
        DataError: if a file is not there any more.
    """
    digest = hashlib.sha256(json.dumps(settings).encode())
    for text, path in files:
        with readable(path):
            stat = path.stat()
        digest.update(os.fsencode(f"{text} {path} {stat.st_size} {stat.st_mtime_ns}\n"))
    return digest.hexdigest()[:32]


class CacheWriter:
    """The unfinished cache: images are appended to its splits, in any turn.

    Attributes:
        notes: sentences about what became of the images, told again at every start.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], files: ExitStack) -> None:
        self._folder, self._shape, self._files = folder, shape, files
        self._pixels: dict[SourceSplit, BinaryIO] = {}
        self._labels: dict[SourceSplit, list[npt.NDArray[np.int64]]] = {}
        self.notes: list[str] = []

    def append(
        self, split: SourceSplit, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]
    ) -> None:
        """Append images (N, C, H, W) and labels (N,)."""
        if split not in self._pixels:
            file = (self._folder / f"{split}_pixels.npy").open("wb")
            self._pixels[split] = self._files.enter_context(file)
            self._labels[split] = []
            _write_header(file, (0, *self._shape))
        self._pixels[split].write(pixels.tobytes())
        self._labels[split].append(labels)

    def labels(self, split: SourceSplit) -> npt.NDArray[np.int64]:
        """Return the labels (N,) of the images so far."""
        return np.concatenate([np.zeros(0, dtype=np.int64), *self._labels.get(split, [])])

    def finish(self) -> None:
        """Write the number of images, the labels and the notes."""
        for split, file in self._pixels.items():
            labels = self.labels(split)
            _write_header(file, (len(labels), *self._shape))
            file.flush()
            os.fsync(file.fileno())
            np.save(self._folder / f"{split}_labels.npy", labels)
        (self._folder / _NOTES).write_text(json.dumps(self.notes))


class ImageCache:
    """The images of a data set, decoded once for a key.

    Args:
        folder: holds one folder per key.
        key: from `cache_key`.
        shape: (C, H, W) of every image.
    """

    def __init__(self, folder: Path, key: str, shape: tuple[int, int, int]) -> None:
        self.path, self._shape = folder / key, shape

    def make(self, fill: Callable[[CacheWriter], None]) -> None:
        """Fill the cache unless it exists; one process does, and the others wait for it.

        Raises:
            DataError: if the cache cannot be written, or `fill` raises it. Nothing is left then.
        """
        if self.path.is_dir():
            return
        with exclusive(self.path.parent):
            if self.path.is_dir():
                return
            for debris in self.path.parent.glob(".*"):  # of a process that was killed
                shutil.rmtree(debris, ignore_errors=True)
            self._fill(fill)

    def _fill(self, fill: Callable[[CacheWriter], None]) -> None:
        temporary = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        try:
            with ExitStack() as files:
                writer = CacheWriter(temporary, self._shape, files)
                fill(writer)
                writer.finish()
            temporary.chmod(0o755)
            temporary.replace(self.path)
        except OSError as error:
            remedy = "make room, or set" if is_full(error) else "set"
            raise DataError(
                f"the cache {self.path} cannot be written ({error.strerror}): {remedy} "
                "data.source.cache_dir"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @property
    def notes(self) -> list[str]:
        """Sentences about what became of the images. Raises DataError."""
        with self._readable():
            return [str(note) for note in json.loads((self.path / _NOTES).read_text())]

    def splits(self) -> frozenset[SourceSplit]:
        """Return the splits that have images."""
        return frozenset(s for s in get_args(SourceSplit) if self._file(s, "pixels").exists())

    def load(self, split: SourceSplit) -> Images:
        """Return a split; its pixels are a read-only memory map.

        Raises:
            DataError: if it cannot be read.
        """
        with self._readable():
            pixels = np.load(self._file(split, "pixels"), mmap_mode="r")
            labels = np.load(self._file(split, "labels"))
        return Images(pixels, labels)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"the cache {self.path} cannot be read ({error}): delete it and it is made again"
            ) from error

    def _file(self, split: SourceSplit, what: str) -> Path:
        return self.path / f"{split}_{what}.npy"


class CachedSource(ImageSource):
    """A data set whose images are decoded once into a cache."""

    @property
    @abstractmethod
    def _cache(self) -> ImageCache:
        """The cache, which is filled if it does not exist."""

    def prepare(self, data_dir: Path) -> None:
        for note in self._notes():
            log.warning("%s", printable(note))

    def splits(self, data_dir: Path) -> frozenset[SourceSplit]:
        return self._cache.splits()

    def load(self, data_dir: Path, split: SourceSplit) -> Images:
        """Read a split from the cache, as in `ImageSource`; `pixels` is a read-only memory map."""
        return self._cache.load(split)

    def _notes(self) -> list[str]:
        """Return what is told at every start."""
        return self._cache.notes


def _write_header(out: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write or overwrite the header of an .npy file; numpy pads it, so the count may change."""
    out.seek(0)
    np.lib.format.write_array_header_1_0(
        out, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
