"""A sandbox inside the process: it notices, and prevents, what a reader of a file must never do.

Python reports by audit events (PEP 578) what it is about to do: files that are opened, made, moved
and removed, processes, sockets, libraries and code. Whatever would happen outside of the folders in
which the reader may write is recorded, and refused with a PermissionError.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

#: Part of every text that is planted as code, so that whoever compiles it is noticed.
MARK = "planted_by_the_attack"

#: Position of a changed path in the arguments of an event, and of the folder it is relative to.
_FIRST = ((0, None),)
_SECOND = ((1, None),)
_CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    **dict.fromkeys(("os.remove", "os.rmdir"), ((0, 1),)),
    **dict.fromkeys(("os.mkdir", "os.chmod"), ((0, 2),)),
    **dict.fromkeys(("os.chown", "os.utime"), ((0, 3),)),
    **dict.fromkeys(("os.truncate", "os.setxattr", "os.removexattr", "sqlite3.connect"), _FIRST),
    **dict.fromkeys(("shutil.rmtree", "shutil.chown", "shutil.make_archive"), _FIRST),
    "os.rename": ((0, 2), (1, 3)),
    "shutil.move": ((0, None), (1, None)),
    # of these the first path is only read
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    **dict.fromkeys(("shutil.copyfile", "shutil.copytree", "shutil.copymode"), _SECOND),
    **dict.fromkeys(("shutil.copystat", "shutil.unpack_archive"), _SECOND),
}
#: Events that follow a link in the last place.
_FOLLOWING = ("os.chmod", "os.truncate", "os.utime", "shutil.copyfile", "sqlite3.connect")
_LISTINGS = ("os.listdir", "os.scandir")
_SIGNALS = ("os.kill", "os.killpg", "signal.pthread_kill")
_PROCESSES = (
    *("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn"),
    *("os.spawn", "pty.spawn", *_SIGNALS),
)
_SOCKETS = ("socket.", "http.client.", "urllib.", "ftplib.", "smtplib.", "webbrowser.")
_OTHERS = ("pickle.find_class", "ctypes.dlopen", "builtins.input")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Sandbox:
    """Watch over this process.

    Args:
        received: the folder whose code must not be run.
        private: the folder that must not be read.
    """

    def __init__(self, received: Path, private: Path) -> None:
        self._received, self._private = (os.path.realpath(path) for path in (received, private))
        self._learned: set[str] = set()
        self._learns = False
        self._writable: tuple[str, ...] = ()
        self._seen: list[str] | None = None
        self._here = threading.local()
        sys.addaudithook(self._hook)  # which stays for good

    @contextmanager
    def watching(self, writable: Sequence[Path], learns: bool = False) -> Iterator[list[str]]:
        """Yield the list to which forbidden events are added.

        With `learns` they are admitted, now and later: processes and libraries that a healthy
        directory needs as well.
        """
        modules = set(sys.modules)
        self._writable = (os.devnull, *(os.path.realpath(path) for path in writable))
        self._learns, self._seen = learns, (seen := [])
        try:
            yield seen
        finally:
            self._seen = None
            for name in set(sys.modules) - modules:
                if self._is_received(getattr(sys.modules[name], "__file__", None)):
                    seen.append(f"import of {name}, which was received")

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._seen is None or getattr(self._here, "is_checking", False):
            return
        self._here.is_checking = True  # since the checks make events of their own
        try:
            found = self._forbidden(event, arguments)
        finally:
            self._here.is_checking = False
        if found is None or found in self._learned:
            return
        if self._learns:
            self._learned.add(found)
        else:
            self._seen.append(found)
            raise PermissionError(f"refused by the sandbox: {found}")

    def _forbidden(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        """Describe an event that is forbidden."""
        match event:
            case "open":
                path, _, flags = arguments
                if isinstance(path, int):  # of a descriptor
                    return None
                is_followed = not flags & os.O_NOFOLLOW
                if flags & _WRITES and not self._is_writable(path, is_followed):
                    return f"open of {_text(path)} for writing"
                is_refused = not is_followed and Path(os.fsdecode(path)).is_symlink()
                if not is_refused and self._is_private(path):
                    return f"open of {_text(path)}, which is private"
                return None
            case "compile":
                source, name = _text(arguments[0]), arguments[1]
                if MARK in source or self._is_received(name):
                    return f"compile of {name}: {source[:80]!r}"
            case "exec" if isinstance(arguments[0], CodeType):
                if self._is_received(name := arguments[0].co_filename):
                    return f"exec of {name}"
            case "import" if self._is_received(arguments[1]):
                return f"import of {arguments[0]} from {arguments[1]}"
        if event in _LISTINGS and self._is_private(arguments[0]):
            return f"{event} of {_text(arguments[0])}, which is private"
        if event in (*_PROCESSES, *_OTHERS) or event.startswith(_SOCKETS):
            is_question = event in _SIGNALS and arguments[1] == 0  # whether a process is there
            is_itself = event == "ctypes.dlopen" and arguments[0] is None
            is_harmless = is_question or is_itself or event == "socket.gethostname"
            return None if is_harmless else f"{event} {_listed(arguments)}"
        for position, folder in _CHANGES.get(event, ()):
            path = arguments[position]
            at = -1 if folder is None else arguments[folder]
            if isinstance(path, int):
                path = f"/proc/self/fd/{path}"
            elif at > 2:
                path = Path(os.path.realpath(f"/proc/self/fd/{at}"), os.fsdecode(path))
            is_there_already = event == "os.mkdir" and Path(os.fsdecode(path)).is_dir()
            if not is_there_already and not self._is_writable(path, event in _FOLLOWING):
                return f"{event} of {_text(path)}"
        return None

    def _is_writable(self, path: Any, is_followed: bool) -> bool:
        parent, name = os.path.split(Path.cwd() / os.fsdecode(path))
        found = Path(os.path.realpath(parent), name)
        real = Path(os.path.realpath(found)) if is_followed else found
        return any(real.is_relative_to(folder) for folder in self._writable)

    def _is_private(self, path: Any) -> bool:
        return _is_below(path, self._private)

    def _is_received(self, path: Any) -> bool:
        return _is_below(path, self._received)


def _is_below(path: Any, folder: str) -> bool:
    try:  # code has names, such as <string>, that are no files
        there = isinstance(path, str | bytes | os.PathLike) and os.path.lexists(path)
        return there and Path(os.path.realpath(os.fsdecode(path))).is_relative_to(folder)
    except (OSError, ValueError):
        return False


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _listed(values: Sequence[Any]) -> str:
    return " ".join(repr(value) for value in values if not hasattr(value, "fileno"))[:200]
