"""Record the files that code writes, and the processes and sockets that it opens."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_OS = {
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"),
}
_PREFIXES = ("subprocess.", "socket.", "shutil.", "urllib.", "webbrowser.", "ftplib.", "smtplib.")
_events: list[str] | None = None


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if _events is None:
        return
    if event == "open":
        flags = arguments[2]
        is_outside = isinstance(flags, int) and bool(flags & _WRITING)
    else:
        is_outside = event.startswith(_PREFIXES) or event in _OS
    if is_outside:
        _events.append(f"{event} {arguments!r}"[:300])


@contextmanager
def watched() -> Iterator[list[str]]:
    """Yield a list that is filled with what the code within does outside."""
    global _events
    if _note not in _installed:
        sys.addaudithook(_note)
        _installed.append(_note)
    _events = events = []
    try:
        yield events
    finally:
        _events = None


_installed: list[object] = []  # a hook stays for the life of the process
