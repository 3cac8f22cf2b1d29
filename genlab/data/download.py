"""Downloads: resumed, verified, and moved in place only if they are correct."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import logging
import os
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from genlab.data.progress import progress
from genlab.errors import DataError, is_full

Accept = Callable[[Path, Path], None]

log = logging.getLogger(__name__)

_BLOCK = 1 << 18
# Limits of one mirror: seconds for each block and for the whole file, and bytes of the file.
_SECONDS_PER_BLOCK = 60.0
_SECONDS = 3600.0
MOST_BYTES = 1 << 30
# Number of failed attempts in a row without a new byte after which a mirror is given up.
_FRUITLESS_ATTEMPTS = 2


def fetch(target: Path, urls: Sequence[str], accept: Accept, done: Callable[[], bool]) -> None:
    """Download `target` from the first of `urls` that has it.

    The bytes are written to a `.part` file beside the target. If the connection is cut, a later
    call continues it; what a mirror sent beyond the limits of time and size is removed.

    Args:
        accept: called with the complete part and the target; it verifies the part and puts its
            content in place, or raises a DataError, and then the next URL is tried.
        done: returns whether another process has finished while this one waited for the folder.

    Raises:
        DataError: if no URL gave an acceptable file; the message lists the error of each. Also if
            the disk is full.
    """
    with exclusive(target.parent):
        if done():
            return
        part = target.with_name(f"{target.name}.part")
        failures = []
        for url in urls:
            try:
                _fetch_from(url, part, target, accept)
            except Exception as error:  # a server can cause many kinds
                if isinstance(error, OSError) and is_full(error):
                    raise DataError(
                        f"{part} cannot be written ({error.strerror}): make room, or set "
                        "data.data_dir to where there is some"
                    ) from error
                if isinstance(error, DataError):
                    part.unlink(missing_ok=True)
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
        accept(part, target)


def _download(url: str, part: Path) -> None:
    deadline = time.monotonic() + _SECONDS
    fruitless = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _append(url, part, before, deadline):
                return
            error: Exception = OSError("the connection was cut")
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException) as caught:
            error = caught
        fruitless = 0 if part.exists() and part.stat().st_size > before else fruitless + 1
        if fruitless == _FRUITLESS_ATTEMPTS:
            raise error


def _append(url: str, part: Path, offset: int, deadline: float) -> bool:
    """Append the missing bytes to `part`; return whether it is complete.

    Raises:
        DataError: the answer breaks a limit.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "genlab"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    with _Transfer(request, deadline) as transfer:
        try:
            response = transfer.next()
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return True
            raise
        partial = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if response.status != http.HTTPStatus.PARTIAL_CONTENT or partial is None:
            offset = 0
        elif int(partial[1]) != offset:
            raise OSError(f"the server sent bytes from {partial[1]} instead of from {offset}")
        remaining = _length(response.headers.get("Content-Length"))
        total = None if remaining is None else offset + remaining
        _limit_size(total or 0)
        with (
            part.open("ab" if offset else "wb") as out,
            progress(f"downloading {url}", total, offset) as advance,
        ):
            received = 0
            while block := transfer.next():
                _limit_size(offset + received + len(block))
                out.write(block)
                received += len(block)
                advance(len(block))
    return remaining is None or received == remaining


def _length(text: str | None) -> int | None:
    if text is not None and not re.fullmatch(r"\d{1,18}", text):
        raise DataError(f"its Content-Length is {text[:40]!r}, not a number of bytes")
    return None if text is None else int(text)


def _limit_size(size: int) -> None:
    if size > MOST_BYTES:
        raise DataError(f"it sends more than {MOST_BYTES:,} bytes")


class _Transfer:
    """An answer that another thread reads, so that every wait for a server has an end.

    The timeout of a socket ends only a wait for one byte.
    """

    def __init__(self, request: urllib.request.Request, deadline: float) -> None:
        self._deadline = deadline
        self._items: queue.Queue[Any] = queue.Queue(maxsize=4)
        self._is_over = threading.Event()
        threading.Thread(target=self._read, args=(request,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()

    def next(self) -> Any:
        """Return the response, then its blocks, then an empty one.

        Raises:
            DataError: it did not come in time.
        """
        left = min(_SECONDS_PER_BLOCK, self._deadline - time.monotonic())
        try:
            item = self._items.get(timeout=max(0.0, left))
        except queue.Empty:
            item = TimeoutError()
        # Whichever notices first: the wait above, or the socket, which urllib may wrap.
        if isinstance(getattr(item, "reason", item), TimeoutError):
            raise DataError(
                f"it is too slow: no {_BLOCK:,} bytes in {_SECONDS_PER_BLOCK:g} s, or not all in "
                f"{_SECONDS:g} s"
            )
        if isinstance(item, Exception):
            raise item
        return item

    def _read(self, request: urllib.request.Request) -> None:
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS_PER_BLOCK) as response:
                self._put(response)
                while block := response.read(_BLOCK):
                    self._put(block)
            self._put(b"")
        except _AbandonedError:
            return
        except Exception as error:
            with contextlib.suppress(_AbandonedError):
                self._put(error)

    def _put(self, item: Any) -> None:
        while not self._is_over.is_set():
            with contextlib.suppress(queue.Full):
                self._items.put(item, timeout=0.1)
                return
        raise _AbandonedError


class _AbandonedError(Exception):
    """Raised in the reading thread when nobody waits for its answer any more."""


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
        remedy = "make room" if is_full(error) else "make its parent writable"
        raise DataError(
            f"{folder} cannot be made ({error.strerror}): {remedy}, or set data.data_dir "
            "(data.source.cache_dir for a cache) to another place"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
