"""Locks on folders, each of which one process at a time may write in."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
import weakref
from pathlib import Path
from typing import Self

from genlab.errors import RunDirectoryError, is_full
from genlab.runs.reading import LOCK, descriptor_of_regular, open_regular, read_bytes

_FILE = ".lock"


class Lock:
    """A lock on a folder, held from `open` to `close`, or until the process ends in any way.

    Programs that the process starts do not inherit it, and forked workers release it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Return whether this object holds the lock."""
        return self._descriptor is not None

    def open(self, remedy: str = "wait until that run ends, or stop it") -> Self:
        """Make the folder if needed, and lock it.

        Raises:
            RunDirectoryError: it cannot be written, or another process has it.
        """
        make_folder(self.folder)
        try:
            # regular alone, since a link could empty any file
            descriptor = descriptor_of_regular(self.folder / _FILE, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        except RunDirectoryError as error:
            raise RunDirectoryError(f"{self.folder} cannot be written: {error}") from error
        try:
            self._take(descriptor, remedy)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _held.add(self)
        return self

    def _take(self, descriptor: int, remedy: str) -> None:
        for attempt in range(10):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # A reader that asks whether the folder is in use holds the lock for a moment.
                if attempt == 9:
                    raise RunDirectoryError(
                        f"{self.folder} is in use by {holder(self.folder)}: {remedy}"
                    ) from None
                time.sleep(0.02)
            except OSError as error:
                raise RunDirectoryError(
                    f"{self.folder} cannot be locked ({error.strerror}): set runs_dir to a "
                    f"filesystem that supports flock"
                ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on host {socket.gethostname()}\n".encode(), 0)

    @property
    def is_in_place(self) -> bool:
        """Return whether the held lock is still that of the folder at this path."""
        if self._descriptor is None:
            return False
        try:
            there = (self.folder / _FILE).stat()
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self._descriptor))

    def remove(self) -> None:
        """Remove the file of the lock, which is held, from the folder."""
        (self.folder / _FILE).unlink()

    def close(self) -> None:
        """Release the lock."""
        _held.discard(self)
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None


def make_folder(folder: Path) -> None:
    """Make a folder for runs if needed.

    Raises:
        RunDirectoryError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> RunDirectoryError:
    remedy = (
        "make room, or set runs_dir to where there is some"
        if is_full(error)
        else f"make it writable for user id {os.geteuid()}, or set runs_dir to a place that is"
    )
    return RunDirectoryError(f"{folder} cannot be written ({error.strerror}): {remedy}")


def holder(folder: Path) -> str:
    """Describe the process that locked the folder last."""
    try:
        text = read_bytes(folder / _FILE, LOCK).decode(errors="replace").strip()
    except (OSError, RunDirectoryError):
        text = ""
    return text or "another process"


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock."""
    try:
        with open_regular(folder / _FILE) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, RunDirectoryError):
        return False
    return False


def was_locked(folder: Path) -> bool:
    """Return whether a process ever held the lock."""
    return (folder / _FILE).exists()


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _leave_locks_to_the_parent() -> None:
    for lock in list(_held):
        with contextlib.suppress(OSError):
            lock.close()


# A forked data worker would share the lock and keep it for seconds after its parent was killed.
os.register_at_fork(after_in_child=_leave_locks_to_the_parent)
