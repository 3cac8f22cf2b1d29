"""Downloads: resumed, verified, and moved in place only if they are correct."""

from __future__ import annotations

import fcntl
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from genlab.data.progress import progress
from genlab.errors import DataError

Accept = Callable[[Path, Path], None]

log = logging.getLogger(__name__)

_TIMEOUT = 30.0
_BLOCK = 1 << 18
# Number of failed attempts in a row without a new byte after which a mirror is given up.
_FRUITLESS_ATTEMPTS = 2


def fetch(target: Path, urls: Sequence[str], accept: Accept, done: Callable[[], bool]) -> None:
    """Download `target` from the first of `urls` that has it.

    The bytes are written to a `.part` file beside the target, which a later call continues.

    Args:
        accept: called with the complete part and the target; it verifies the part and puts its
            content in place, or raises a DataError, and then the next URL is tried.
        done: returns whether another process has finished while this one waited for the folder.

    Raises:
        DataError: if no URL gave an acceptable file; the message lists the error of each.
    """
    with exclusive(target.parent):
        if done():
            return
        part = target.with_name(f"{target.name}.part")
        failures = []
        for url in urls:
            try:
                _fetch_from(url, part, target, accept)
            except (OSError, http.client.HTTPException, DataError) as error:
                failures.append(f"{url}: {getattr(error, 'reason', None) or error}")
                log.info("%s", failures[-1])
            else:
                part.unlink(missing_ok=True)
                return
    raise DataError(
        f"{target} is missing and could not be downloaded ({'; '.join(failures) or 'no mirrors'}): "
        "put it there yourself or set data.data_dir to where it is"
    )


def _fetch_from(url: str, part: Path, target: Path, accept: Accept) -> None:
    resumed = part.exists()
    _download(url, part)
    try:
        accept(part, target)
    except DataError:
        part.unlink(missing_ok=True)
        if not resumed:
            raise
        # The first part may be from another mirror, with other compression.
        _download(url, part)
        try:
            accept(part, target)
        except DataError:
            part.unlink(missing_ok=True)
            raise


def _download(url: str, part: Path) -> None:
    fruitless = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _append(url, part, before):
                return
            error: Exception = OSError("the connection was cut")
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException) as caught:
            error = caught
        fruitless = 0 if part.exists() and part.stat().st_size > before else fruitless + 1
        if fruitless == _FRUITLESS_ATTEMPTS:
            raise error


def _append(url: str, part: Path, offset: int) -> bool:
    """Append the missing bytes to `part`; return whether it is complete."""
    request = urllib.request.Request(url, headers={"User-Agent": "genlab"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True
        raise
    with response:
        partial = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if response.status != http.HTTPStatus.PARTIAL_CONTENT or partial is None:
            offset = 0
        elif int(partial[1]) != offset:
            raise OSError(f"the server sent bytes from {partial[1]} instead of from {offset}")
        length = response.headers.get("Content-Length")
        remaining = None if length is None else int(length)
        total = None if remaining is None else offset + remaining
        with (
            part.open("ab" if offset else "wb") as out,
            progress(f"downloading {url}", total, offset) as advance,
        ):
            received = 0
            while block := response.read(_BLOCK):
                out.write(block)
                received += len(block)
                advance(len(block))
    return remaining is None or received == remaining


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Create `folder` and lock it against other processes that do the same.

    Raises:
        DataError: if the folder cannot be created or opened.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be made ({error.strerror}): make its parent writable, or set "
            "data.data_dir (data.source.cache_dir for a cache) to a place that is"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
