"""Read files that may come from a stranger: regular files alone, bounded in size, depth and number.

Whoever reads a file of a run directory opens it here. Only the standard library is needed.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from genlab.errors import RunDirectoryError
from genlab.runs.text import printable

_MB = 2**20
#: Largest sizes in bytes of what is read.
CONFIG, STATUS, ENV = _MB, _MB, _MB
LOCK, DIGEST, ID = 1000, 1000, 1000
ROW = _MB
RESULT, BOUND = 4 * _MB, 4 * _MB
MANIFEST, METRICS = 64 * _MB, 256 * _MB
PICTURE, VIDEO = 64 * _MB, 256 * _MB

#: Containers within one another.
DEEPEST = 32
#: The largest number, and the smallest above 0: squares and ratios of such numbers are finite.
LARGEST, SMALLEST = 1e100, 1e-100
_LARGEST_INTEGER = 2**64

_KINDS = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError, RunDirectoryError: as `descriptor_of_regular`.
    """
    return os.fdopen(descriptor_of_regular(path, os.O_RDONLY), "rb")


def descriptor_of_regular(path: str | os.PathLike[str], flags: int) -> int:
    """Open a regular file; everything else is refused at once, without waiting for a writer.

    Raises:
        OSError: it does not exist or cannot be opened.
        RunDirectoryError: it is a link, a folder, a FIFO, a socket or a device.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV):
            refuse_special(path, os.lstat(path).st_mode)
        raise
    try:
        refuse_special(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_bytes(path: str | os.PathLike[str], at_most: float) -> bytes:
    """Read a regular file of at most so many bytes.

    Raises:
        OSError: it does not exist or cannot be read.
        RunDirectoryError: it is larger, or no regular file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > at_most:
            raise RunDirectoryError(
                f"{os.fspath(path)} has {size} bytes: at most {at_most:.0f} are read of such a file"
            )
        return file.read(size)


def read_end(path: str | os.PathLike[str], at_most: int) -> bytes:
    """Read the last bytes of a regular file, at most so many.

    Raises:
        OSError, RunDirectoryError: as `read_bytes`, whatever the size.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - at_most))
        return file.read(at_most)


def size_without_holes(file: BinaryIO) -> int:
    """Count the bytes of an open file that lie on the disk: a hole takes none, whatever its size.

    Raises:
        OSError: its filesystem fails.
    """
    size = end = 0
    place = os.lseek(file.fileno(), 0, os.SEEK_CUR)
    try:
        while True:
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            size += end - start
    except OSError as error:
        if error.errno != errno.ENXIO:  # which says that no data follow
            raise
    os.lseek(file.fileno(), place, os.SEEK_SET)
    return size


def parse_json(data: bytes) -> Any:
    """Parse JSON; a constant such as NaN, which genlab does not write, is null.

    Raises:
        ValueError: it is no JSON in UTF-8, is nested too deeply, or holds a number too large.
    """
    try:
        return _DECODER.decode(data.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, at_most: int) -> dict[str, Any] | None:
    """Read a JSON object as `plain` values; None if there is no such file.

    Raises:
        RunDirectoryError: it cannot be read, or holds something else.
    """
    try:
        content = plain(parse_json(read_bytes(path, at_most)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise RunDirectoryError(
            f"{path} cannot be read as JSON ({error}): mend or remove it, or set overwrite=true"
        ) from error
    if not isinstance(content, dict):
        raise RunDirectoryError(f"{path} holds a {type(content).__name__} where a JSON object goes")
    return content


def plain(value: Any, deepest: int = DEEPEST) -> Any:
    """Return nested containers as dictionaries, lists, numbers and `printable` text.

    A number that is not finite, a date and whatever else YAML knows become text.

    Raises:
        ValueError: containers are nested too deeply, or a number is too large to compute with.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float) and math.isfinite(value):
        return _real(value)
    if isinstance(value, str):
        return printable(value)
    if not isinstance(value, Mapping | list | tuple | set):
        return printable(str(value))
    if deepest == 0:
        raise ValueError(f"more than {DEEPEST} containers lie within one another")
    if isinstance(value, Mapping):
        return {printable(str(key)): plain(item, deepest - 1) for key, item in value.items()}
    return [plain(item, deepest - 1) for item in value]


def refuse_special(path: str | os.PathLike[str], mode: int) -> None:
    """Refuse a file that is not a regular one, by its mode, with a RunDirectoryError."""
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "no file")
        raise RunDirectoryError(f"{os.fspath(path)} is {kind}: put a regular file in its place")


def _integer(value: int | str) -> int:
    number = int(value)
    if abs(number) >= _LARGEST_INTEGER:
        raise ValueError(f"a whole number of {number.bit_length()} bits: at most 64 are read")
    return number


def _real(value: float | str) -> float:
    number = float(value)
    if abs(number) > LARGEST:
        raise ValueError(f"the number {value}: at most {LARGEST:g} is read")
    return number if abs(number) >= SMALLEST else 0.0


_DECODER = json.JSONDecoder(
    parse_int=_integer, parse_float=_real, parse_constant=lambda constant: None
)
