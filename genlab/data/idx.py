"""MNIST and similar data sets: files in the IDX format of LeCun, Cortes and Burges."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, ClassVar, cast

import numpy as np
import numpy.typing as npt

from genlab.data.base import Images, ImageSource, SourceSplit
from genlab.data.download import MOST_BYTES, fetch
from genlab.errors import DataError
from genlab.protocols import ImageSpec
from genlab.runs.files import replacing

_GZIP = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08
# Deflate cannot expand data by more than this factor, so a header that claims more is wrong.
_LARGEST_EXPANSION = 1032


def read_idx(path: Path, dimensions: int, sha256: str | None = None) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, plain or gzipped (detected by content, not by name).

    Args:
        dimensions: number of dimensions that the array must have.
        sha256: digest of the uncompressed file; None to skip the check.

    Raises:
        DataError: if the file is not IDX, is truncated, too long or damaged, or has another digest.
    """
    try:
        with _open(path) as stream:
            return _parse(stream, path, dimensions, sha256)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({_reason(error)}): replace the file") from error


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as stream:
        gzipped = stream.read(2) == _GZIP
    return cast(BinaryIO, gzip.open(path)) if gzipped else path.open("rb")


def _reason(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "the gzip stream is truncated"
    if isinstance(error, gzip.BadGzipFile | zlib.error):
        return f"the gzip stream is damaged: {error}"
    return str(error)


def _parse(
    stream: BinaryIO, path: Path, dimensions: int, sha256: str | None
) -> npt.NDArray[np.uint8]:
    header = stream.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, _UNSIGNED_BYTE, dimensions)):
        raise DataError(
            f"{path} is not an IDX file of unsigned bytes in {dimensions} dimensions (it begins "
            f"with {header[:4].hex() or 'nothing'}): replace the file"
        )
    shape = struct.unpack(f">{dimensions}I", header[4:])
    size = math.prod(shape)
    if size == 0:
        sides = " x ".join(map(str, shape))
        raise DataError(f"{path} is empty: its header claims {sides} bytes; replace the file")
    if size > _LARGEST_EXPANSION * path.stat().st_size:
        raise DataError(
            f"{path} is truncated: its header claims {size:,} bytes, which so small a file cannot "
            "hold; replace the file"
        )
    array = np.empty(shape, dtype=np.uint8)
    view = array.reshape(-1).data
    filled = 0
    while filled < size and (count := stream.readinto(view[filled:])):  # type: ignore[attr-defined]
        filled += count
    if filled < size:
        raise DataError(
            f"{path} is truncated: it holds {filled:,} of {size:,} bytes; replace the file"
        )
    if stream.read(1):
        raise DataError(
            f"{path} is longer than the {size:,} bytes its header claims; replace the file"
        )
    if sha256 is not None:
        digest = hashlib.sha256(header)
        digest.update(view)
        if digest.hexdigest() != sha256:
            raise DataError(
                f"{path} is altered: its uncompressed content has SHA-256 {digest.hexdigest()} "
                f"instead of {sha256}; delete it and it is downloaded again"
            )
    return array


class IDXSource(ImageSource):
    """A data set of four IDX files, plain or gzipped, downloaded from `mirrors` if missing.

    A subclass defines the digests of the files, the mirrors and the spec.
    """

    mirrors: ClassVar[tuple[str, ...]]
    """URLs, ending in a slash, of folders with the gzipped files."""
    sha256: ClassVar[dict[str, str]]
    """Map from file name, without .gz, to the digest of the uncompressed content."""
    image_spec: ClassVar[ImageSpec]

    @property
    def spec(self) -> ImageSpec:
        return self.image_spec

    def prepare(self, data_dir: Path) -> None:
        for file, sha256 in self.sha256.items():
            self._prepare(data_dir / self.name, file, sha256)

    def _prepare(self, folder: Path, file: str, sha256: str) -> None:
        if self._find(folder, file) is None:
            fetch(
                folder / file,
                [f"{mirror}{file}.gz" for mirror in self.mirrors],
                lambda part, target: _unpack(part, target, sha256),
                lambda: self._find(folder, file) is not None,
            )

    def load(self, data_dir: Path, split: SourceSplit) -> Images:
        prefix = {"train": "train", "test": "t10k"}[split]
        pixels, pixels_path = self._read(data_dir, f"{prefix}-images-idx3-ubyte", 3)
        labels, labels_path = self._read(data_dir, f"{prefix}-labels-idx1-ubyte", 1)
        if pixels.shape[1:] != self.spec.shape[1:]:
            raise DataError(
                f"{pixels_path} holds images of {pixels.shape[1]} x {pixels.shape[2]} pixels "
                f"instead of {self.spec.height} x {self.spec.width}: replace the file"
            )
        if len(labels) != len(pixels):
            raise DataError(
                f"{labels_path} holds {len(labels):,} labels for {len(pixels):,} images: replace "
                "the file"
            )
        check_labels(labels, len(self.spec.classes), labels_path)
        return Images(pixels[:, None], labels.astype(np.int64))

    def _read(
        self, data_dir: Path, file: str, dimensions: int
    ) -> tuple[npt.NDArray[np.uint8], Path]:
        folder = data_dir / self.name
        path = self._find(folder, file)
        if path is None:
            raise DataError(
                f"{folder / file} is missing: put it there, plain or gzipped, or set data.data_dir"
            )
        return read_idx(path, dimensions, self.sha256[file]), path

    @staticmethod
    def _find(folder: Path, file: str) -> Path | None:
        return next((p for p in (folder / file, folder / f"{file}.gz") if p.is_file()), None)


def check_labels(labels: npt.NDArray[np.uint8], classes: int, path: Path) -> None:
    """Raise a DataError that names the first label that is not a class."""
    wrong = np.flatnonzero(labels >= classes)
    if len(wrong):
        raise DataError(
            f"{path}: label {labels[wrong[0]]} of image {wrong[0]} is out of range, labels go from "
            f"0 to {classes - 1}; replace the file"
        )


def _unpack(part: Path, target: Path, sha256: str) -> None:
    """Decompress `part` to `target`, which is created only if its content has the digest."""
    digest = hashlib.sha256()
    try:
        with gzip.open(part) as packed, replacing(target) as out:
            while block := packed.read(1 << 20):
                if packed.tell() > MOST_BYTES:
                    raise DataError(f"its uncompressed content has more than {MOST_BYTES:,} bytes")
                digest.update(block)
                out.write(block)
            if digest.hexdigest() != sha256:
                raise DataError(
                    f"its uncompressed content has SHA-256 {digest.hexdigest()} instead of {sha256}"
                )
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(_reason(error)) from error


_DIGITS = ImageSpec(1, 28, 28, classes=tuple("0123456789"))


class MNIST(IDXSource):
    """60,000 + 10,000 handwritten digits, 28 x 28 grey (LeCun, Cortes, Burges 1998)."""

    name = "mnist"
    image_spec = _DIGITS
    mirrors = (
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    )
    sha256: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        "train-labels-idx1-ubyte": (
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        ),
        "t10k-images-idx3-ubyte": (
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        "t10k-labels-idx1-ubyte": (
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        ),
    }


class FashionMNIST(IDXSource):
    """60,000 + 10,000 pieces of clothing, 28 x 28 grey (Xiao, Rasul, Vollgraf 2017)."""

    name = "fashion_mnist"
    image_spec = ImageSpec(
        1,
        28,
        28,
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    )
    mirrors = (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    )
    sha256: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte": (
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte": (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte": (
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    }


class MNISTMini(IDXSource):
    """The first 10,000 + 2,000 images of MNIST, included in the package; needs no download."""

    name = "mnist_mini"
    image_spec = _DIGITS
    mirrors = ()
    sha256: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": (
            "2889698e6bc3614913e76901316712919d1998fc2b44512451bfe65bc1e668b1"
        ),
        "train-labels-idx1-ubyte": (
            "651e38e2ac0632f5113ec18f1df4977117f953197819034009971a6675a0df78"
        ),
        "t10k-images-idx3-ubyte": (
            "3f6bd66dee48df299584c67669bceee490faa25f931496bd7473b42106d7daed"
        ),
        "t10k-labels-idx1-ubyte": (
            "7b098e5f6a3065807cebeabf36fb1724a8aff19f2673ac08b4923e0e8c715bce"
        ),
    }

    def prepare(self, data_dir: Path) -> None:
        pass

    def load(self, data_dir: Path, split: SourceSplit) -> Images:
        return super().load(Path(__file__).parent, split)
