"""Replace files atomically: a kill at any moment leaves the old or the new file."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from genlab.errors import RunDirectoryError
from genlab.runs.reading import refuse_special


@contextmanager
def replacing(path: str | os.PathLike[str], keep: bool = False) -> Iterator[BinaryIO]:
    """Yield a new file that replaces `path` once all of it is on the disk.

    The folder must exist. With `keep`, the old file is kept as `before(path)`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    kept = temporary.with_suffix(".kept.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            os.link(path, kept)
        temporary.replace(path)
        if kept.exists():  # only now, so that there are two different ones at every moment
            kept.replace(before(path))
    except BaseException:
        temporary.unlink(missing_ok=True)
        kept.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def before(path: str | os.PathLike[str]) -> Path:
    """Return where `replacing` keeps the old file: `last.before.ckpt` for `last.ckpt`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.before{path.suffix}")


def refuse_links(folder: str | os.PathLike[str], names: Iterable[str] | None = None) -> None:
    """Refuse links in `folder`, or at and below these names in it, that lead out of it.

    Otherwise a folder from an untrusted source could cause files of this machine to be shown or
    overwritten. Links below `wandb` are not checked, since W&B makes links of its own there.

    Raises:
        RunDirectoryError: there is such a link; the message names the first.
    """
    folder = Path(folder)
    home = Path(os.path.realpath(folder))
    if names is None:
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ()
    for name in names:
        for path in _links(folder / name):
            target = Path(os.path.realpath(path))
            if target.is_symlink():
                raise RunDirectoryError(f"{path} is a link that leads back to itself: remove it")
            if not target.is_relative_to(home):
                raise RunDirectoryError(
                    f"{path} is a link to {target}, out of {folder}: remove it, or put what it "
                    "points to in its place"
                )


def refuse_foreign(folder: str | os.PathLike[str], deep: bool = True) -> None:
    """Refuse to write into a folder that could lead elsewhere, or hold up the writer for good.

    Args:
        folder: may be absent.
        deep: whether all that is below it is looked at, not only what is in it.

    Raises:
        RunDirectoryError: it is a link, or has in it a link that leads out of it, a file with
            another name elsewhere, or something that is neither a link, a regular file nor a
            folder.
    """
    folder = Path(folder)
    if folder.is_symlink():
        raise RunDirectoryError(
            f"{folder} is a link: put the folder in its place, or set runs_dir to where it is"
        )
    if not folder.is_dir():
        return
    found = sorted(folder.rglob("*") if deep else folder.iterdir())
    refuse_links(folder, None if deep else [path.name for path in found if path.is_symlink()])
    names: dict[tuple[int, int], list[Path]] = {}
    for path in found:
        info = path.lstat()
        if not stat.S_ISDIR(info.st_mode) and not stat.S_ISLNK(info.st_mode):
            refuse_special(path, info.st_mode)
            if info.st_nlink > 1 and "wandb" not in path.parts[len(folder.parts) :]:
                names.setdefault((info.st_dev, info.st_ino), []).append(path)
    for paths in names.values():  # `replacing` leaves two in one folder if it is killed
        if paths[0].lstat().st_nlink > len(paths):
            raise RunDirectoryError(
                f"{paths[0]} is a hard link to a file that has another name outside of {folder}: "
                "put a copy in its place"
            )


def _links(path: Path) -> Iterator[Path]:
    if path.is_symlink():
        yield path
    elif path.name != "wandb":
        for parent, folders, files in os.walk(path):
            yield from filter(Path.is_symlink, (Path(parent, name) for name in (*folders, *files)))


def write_atomically(
    path: str | os.PathLike[str], content: bytes | str | Mapping[str, Any]
) -> None:
    """Replace a file atomically by bytes, by text, or by a mapping as JSON.

    The folder must exist. JSON has sorted keys, and null for numbers that are not finite.
    """
    if isinstance(content, Mapping):
        content = json.dumps(_plain(content), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    data = content if isinstance(content, bytes) else content.encode(errors="backslashreplace")
    with replacing(path) as file:
        file.write(data)


def sha256(path: str | os.PathLike[str]) -> str:
    """Compute the SHA-256 of a file's content, in hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finite(value: float) -> float | None:
    """Return the number, or None if it is not finite, which JSON cannot represent."""
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
    # Numbers and arrays of numpy and torch have a method that converts them to plain ones.
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
