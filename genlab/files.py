"""Files that are replaced in one piece: a kill at any moment leaves the old or the new one."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: str | os.PathLike[str], keep: bool = False) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when all of it is on the disk, and only then.

    The folder must exist. With `keep`, the file that was there is `before(path)` from then on.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            kept = temporary.with_suffix(".kept.tmp")
            os.link(path, kept)
            kept.replace(before(path))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def before(path: str | os.PathLike[str]) -> Path:
    """Where `replacing` keeps the file that was at `path`: `last.before.ckpt` for `last.ckpt`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.before{path.suffix}")


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace a file in one piece; its folder must exist."""
    with replacing(path) as file:
        file.write(data)


def write_json_atomically(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """The same for JSON, with keys sorted; numbers that are not finite become null."""
    text = json.dumps(_plain(content), indent=2, sort_keys=True, ensure_ascii=False)
    write_atomically(path, text.encode(errors="backslashreplace") + b"\n")


def finite(value: float) -> float | None:
    """The number, or None in the place of one that JSON cannot write."""
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_plain(item) for item in value]
    # Numbers and arrays of numpy and torch know how to become plain ones.
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network filesystems cannot sync a folder; the file itself is safe by now.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
