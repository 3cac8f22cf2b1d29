"""CIFAR-10 in its binary version: records of one label byte and 3072 pixels, without pickle."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np

from genlab.data.base import Images, ImageSource, SourceSplit
from genlab.data.download import exclusive, fetch
from genlab.data.idx import check_labels
from genlab.errors import DataError
from genlab.protocols import ImageSpec
from genlab.runs.files import sha256

_ARCHIVE = "cifar-10-binary.tar.gz"
_FOLDER = "cifar-10-batches-bin"


class CIFAR10(ImageSource):
    """50,000 + 10,000 colour photographs, 32 x 32, in ten classes (Krizhevsky 2009).

    `data_dir/cifar10/` holds either the published archive or its unpacked `.bin` files (directly or
    in `cifar-10-batches-bin/`). The digest of the archive is verified; for files that were unpacked
    by the user, only the sizes and the labels are checked.
    """

    name = "cifar10"
    mirrors: ClassVar[tuple[str, ...]] = (
        "https://www.cs.toronto.edu/~kriz/",
        "https://cave.cs.toronto.edu/kriz/",
    )
    # Digest of the archive, which has one version only (MD5 c32a1d4ab5d03f1284b67883e8d87530 on its
    # home page); no digest of its uncompressed content is published.
    sha256: ClassVar[str] = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    records_per_file: ClassVar[int] = 10_000
    files: ClassVar[dict[SourceSplit, tuple[str, ...]]] = {
        "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        "test": ("test_batch.bin",),
    }

    @property
    def spec(self) -> ImageSpec:
        return ImageSpec(
            3,
            32,
            32,
            classes=(
                "airplane",
                "automobile",
                "bird",
                "cat",
                "deer",
                "dog",
                "frog",
                "horse",
                "ship",
                "truck",
            ),
        )

    def prepare(self, data_dir: Path) -> None:
        folder = data_dir / self.name
        if self._unpacked(folder) is not None:
            return
        archive = folder / _ARCHIVE
        if archive.is_file():
            with exclusive(folder):
                if self._unpacked(folder) is None:
                    self._unpack(archive, folder / _FOLDER)
        else:
            fetch(
                folder / _FOLDER,
                [f"{mirror}{_ARCHIVE}" for mirror in self.mirrors],
                self._unpack,
                lambda: self._unpacked(folder) is not None,
            )

    def load(self, data_dir: Path, split: SourceSplit) -> Images:
        home = data_dir / self.name
        folder = self._unpacked(home)
        if folder is None:
            raise DataError(
                f"{home} holds neither {_ARCHIVE} nor its .bin files: put one of them there, or "
                "set data.data_dir"
            )
        files, n = self.files[split], self.records_per_file
        pixels = np.empty((len(files) * n, *self.spec.shape), dtype=np.uint8)
        labels = np.empty(len(files) * n, dtype=np.int64)
        for i, file in enumerate(files):
            path = folder / file
            size, expected = path.stat().st_size, n * (1 + self.spec.dims)
            if size != expected:
                raise DataError(
                    f"{path} has {size:,} bytes instead of {expected:,}: delete {folder} and it is "
                    "unpacked or downloaded again"
                )
            records = np.fromfile(path, dtype=np.uint8).reshape(n, 1 + self.spec.dims)
            check_labels(records[:, 0], len(self.spec.classes), path)
            rows = slice(i * n, (i + 1) * n)
            labels[rows] = records[:, 0]
            pixels[rows] = records[:, 1:].reshape(n, *self.spec.shape)
        return Images(pixels, labels)

    def _names(self) -> list[str]:
        return [name for names in self.files.values() for name in names]

    def _unpacked(self, folder: Path) -> Path | None:
        for candidate in (folder / _FOLDER, folder):
            if all((candidate / name).is_file() for name in self._names()):
                return candidate
        return None

    def _unpack(self, archive: Path, target: Path) -> None:
        """Verify the archive and extract its `.bin` files to the folder `target`."""
        digest = sha256(archive)
        if digest != self.sha256:
            raise DataError(
                f"{archive} is truncated or altered: its SHA-256 is {digest} instead of "
                f"{self.sha256}; delete it and it is downloaded again"
            )
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            _extract(archive, set(self._names()), temporary)
            target.mkdir(exist_ok=True)
            for name in self._names():
                (temporary / name).replace(target / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _extract(archive: Path, names: set[str], folder: Path) -> None:
    """Extract only the regular files with these names, without subfolders, to `folder`.

    Raises:
        DataError: if the archive is damaged, lacks a file, or has a member outside of its folder.
    """
    missing = set(names)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise DataError(
                        f"{archive} has a member {member.name!r} that would be written outside of "
                        "its folder: replace the archive"
                    )
                content = tar.extractfile(member) if member.isreg() else None
                if path.name in missing and content is not None:
                    with (folder / path.name).open("wb") as out:
                        shutil.copyfileobj(content, out)
                        os.fsync(out.fileno())
                    missing.remove(path.name)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive} cannot be unpacked ({error}): replace the archive") from error
    if missing:
        raise DataError(f"{archive} lacks {', '.join(sorted(missing))}: replace the archive")
