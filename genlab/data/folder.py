"""A tree of image files with one folder per class, decoded once into a memory-mapped cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from genlab.data.base import Images, ImageSource, SourceSplit
from genlab.data.download import exclusive
from genlab.data.progress import progress
from genlab.errors import DataError, is_full, whole
from genlab.protocols import ImageSpec
from genlab.runs.reading import open_regular
from genlab.seeding import numpy_generator

log = logging.getLogger(__name__)

Unreadable = Literal["refuse", "skip"]
Fit = Literal["crop", "stretch", "exact"]

_FORMATS = ("PNG", "JPEG", "WEBP")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
# Part of the cache's key: increase it when the decoding changes.
_FORMAT = 1
_CHUNK = 256


class _File(NamedTuple):
    path: Path
    label: int


class ImageFolder(ImageSource):
    """PNG, JPEG and WebP images in `root/{train,test}/<class>/` or in `root/<class>/`.

    In the second form a fixed part of the images becomes the test set. The images are decoded once
    into a cache. The key of the cache is a digest of this configuration and of the list of files
    with their sizes and modification times.

    Args:
        root: the tree; folders below a class folder belong to that class.
        image_size: height and width, in pixels, of the images that the model gets.
        channels: 1 for grey, 3 for colour; an alpha channel is dropped.
        fit: "crop" resizes the shorter side and cuts out the centre, "stretch" resizes both sides,
            "exact" refuses any other size.
        unreadable: whether to "refuse" or to "skip" (and count) images that cannot be decoded.
        test_fraction: the share of test images if there is no `test` folder; in (0, 1).
        cache_dir: None for `$XDG_CACHE_HOME/genlab`, or `~/.cache/genlab` if that is not set.
    """

    name = "folder"

    def __init__(
        self,
        root: str,
        image_size: int,
        channels: int = 3,
        fit: Fit = "crop",
        unreadable: Unreadable = "refuse",
        test_fraction: float = 0.1,
        cache_dir: str | None = None,
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: give 1 (grey) or 3 (colour)")
        for key, value, kind in (("fit", fit, Fit), ("unreadable", unreadable, Unreadable)):
            if value not in get_args(kind):
                raise ValueError(f"{key}={value}: give one of {', '.join(get_args(kind))}")
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction={test_fraction}: give a fraction between 0 and 1")
        whole("image_size", image_size, 1)
        self.root = Path(root).expanduser()
        self._size, self._channels, self._fit = image_size, channels, fit
        self._unreadable, self._test_fraction = unreadable, test_fraction
        cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else cache_home / "genlab"

    @property
    def spec(self) -> ImageSpec:
        """Spec whose `classes` are the names of the folders; empty if `root` does not exist."""
        return ImageSpec(self._channels, self._size, self._size, classes=self._classes())

    def prepare(self, data_dir: Path) -> None:
        self._cache()

    def load(self, data_dir: Path, split: SourceSplit) -> Images:
        """Read a split from the cache, as in `ImageSource`; `pixels` is a read-only memory map."""
        cache = self._cache()
        try:
            pixels = np.load(cache / f"{split}_pixels.npy", mmap_mode="r")
            labels = np.load(cache / f"{split}_labels.npy")
        except (OSError, ValueError) as error:
            raise DataError(
                f"the cache {cache} cannot be read ({error}): delete it and it is made again"
            ) from error
        return Images(pixels, labels)

    def _cache(self) -> Path:
        """Return the folder of the cache; create the cache if it does not exist."""
        splits = self._scan()
        cache = self.cache_dir / "folder" / self._key(splits)
        if not cache.is_dir():
            with exclusive(cache.parent):
                if not cache.is_dir():
                    for debris in cache.parent.glob(".*"):  # of a process that was killed
                        shutil.rmtree(debris, ignore_errors=True)
                    self._decode_all(splits, cache)
        return cache

    @property
    def _class_root(self) -> Path:
        """The folder that holds the class folders."""
        train_root = self.root / "train"
        return train_root if train_root.is_dir() else self.root

    def _classes(self) -> tuple[str, ...]:
        root = self._class_root
        return tuple(sorted(_subfolders(root))) if root.is_dir() else ()

    def _scan(self) -> dict[SourceSplit, list[_File]]:
        if not self.root.is_dir():
            raise DataError(f"data.source.root={self.root}: there is no such folder")
        class_root, test_root = self._class_root, self.root / "test"
        classes = self._classes()
        train = _images(class_root, classes)
        if class_root != self.root and test_root.is_dir():
            if strangers := set(_subfolders(test_root)) - set(classes):
                raise DataError(
                    f"{test_root / min(strangers)} is a class without a folder in {class_root}: "
                    "add or remove it"
                )
            test = _images(test_root, classes)
        else:
            order = numpy_generator(0, "test part").permutation(len(train))
            held_out = set(order[: round(self._test_fraction * len(train))].tolist())
            test = [file for i, file in enumerate(train) if i in held_out]
            train = [file for i, file in enumerate(train) if i not in held_out]
        if not train or not test:
            raise DataError(
                f"data.source.root={self.root} holds {len(train)} training and {len(test)} test "
                "images: put PNG, JPEG or WebP files into one folder per class"
            )
        return {"train": train, "test": test}

    def _key(self, splits: dict[SourceSplit, list[_File]]) -> str:
        digest = hashlib.sha256(
            json.dumps(
                [
                    _FORMAT,
                    str(self.root.resolve()),
                    self._size,
                    self._channels,
                    self._fit,
                    self._unreadable,
                ]
            ).encode()
        )
        for split, files in splits.items():
            for path, label in files:
                try:
                    stat = path.stat()
                except OSError as error:
                    raise DataError(
                        f"{path} cannot be read ({_reason(error)}): leave the images alone while "
                        "they are read, and start again"
                    ) from error
                digest.update(
                    os.fsencode(f"{split} {path} {label} {stat.st_size} {stat.st_mtime_ns}\n")
                )
        return digest.hexdigest()[:32]

    def _decode_all(self, splits: dict[SourceSplit, list[_File]], cache: Path) -> None:
        temporary = Path(tempfile.mkdtemp(prefix=f".{cache.name}.", dir=cache.parent))
        try:
            with progress(f"decoding {self.root}", sum(map(len, splits.values()))) as advance:
                for split, files in splits.items():
                    labels = []
                    with (temporary / f"{split}_pixels.npy").open("wb") as out:
                        _write_header(out, (len(files), *self.spec.shape))
                        for file, pixels in self._decoded(files):
                            advance(1)
                            if pixels is not None:
                                out.write(pixels.tobytes())
                                labels.append(file.label)
                        if not labels:
                            raise DataError(f"{self.root}: no {split} image can be read")
                        _write_header(out, (len(labels), *self.spec.shape))
                        out.flush()
                        os.fsync(out.fileno())
                    np.save(temporary / f"{split}_labels.npy", np.array(labels, dtype=np.int64))
            temporary.chmod(0o755)
            temporary.replace(cache)
        except OSError as error:
            remedy = "make room, or set" if is_full(error) else "set"
            raise DataError(
                f"the cache {cache} cannot be written ({error.strerror}): {remedy} "
                "data.source.cache_dir"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _decoded(self, files: list[_File]) -> Iterator[tuple[_File, npt.NDArray[np.uint8] | None]]:
        """Yield each file, in order, with its pixels (C, H, W), or None if it was skipped."""
        skipped: list[str] = []
        # Pillow releases the GIL while it decodes and resizes.
        workers = min(8, len(os.sched_getaffinity(0)))
        with ThreadPoolExecutor(workers) as threads, _warnings_of_pillow():
            for start in range(0, len(files), _CHUNK):
                chunk = files[start : start + _CHUNK]
                for file, result in zip(chunk, threads.map(self._decode, chunk), strict=True):
                    if isinstance(result, str):
                        if self._unreadable == "refuse":
                            raise DataError(
                                f"{file.path} cannot be read ({result}): replace or remove it, or "
                                "set data.source.unreadable=skip"
                            )
                        skipped.append(f"{file.path} ({result})")
                        yield file, None
                    else:
                        yield file, result
        if skipped:
            log.warning("%d unreadable images skipped: %s", len(skipped), ", ".join(skipped[:10]))

    def _decode(self, file: _File) -> npt.NDArray[np.uint8] | str:
        """Return the pixels (C, H, W), or a description of the error."""
        from PIL import Image, ImageOps

        try:
            if file.path.stat().st_size == 0:
                return "it is empty"
            # the formats that Pillow decodes itself: it gives EPS, under any name, to Ghostscript
            with (
                open_regular(file.path.resolve()) as data,
                Image.open(data, formats=_FORMATS) as opened,
            ):
                if opened.mode.startswith(("I", "F")):
                    return f"its pixels have more than 8 bits, mode {opened.mode}"
                upright = ImageOps.exif_transpose(opened)
                image = upright.convert("L" if self._channels == 1 else "RGB")
            size = (self._size, self._size)
            if image.size != size:
                if self._fit == "exact":
                    return (
                        f"it has {image.width} x {image.height} pixels, not {size[0]} x {size[1]}"
                    )
                if self._fit == "crop":
                    image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
                else:
                    image = image.resize(size, Image.Resampling.LANCZOS)
        # Pillow's decoders raise many kinds of exceptions on a damaged file.
        except Exception as error:
            return _reason(error)
        pixels = np.asarray(image, dtype=np.uint8)
        return pixels[None] if self._channels == 1 else pixels.transpose(2, 0, 1)


@contextmanager
def _warnings_of_pillow() -> Iterator[None]:
    """Make the warning about too many pixels an error, and drop all others."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it was removed meanwhile"
    return str(error) or type(error).__name__


def _subfolders(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]


def _images(folder: Path, classes: tuple[str, ...]) -> list[_File]:
    return [
        _File(path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in _SUFFIXES and path.is_file() and not path.name.startswith(".")
    ]


def _write_header(out: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write or overwrite the header of an .npy file; numpy pads it, so the count may change."""
    out.seek(0)
    np.lib.format.write_array_header_1_0(
        out, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
