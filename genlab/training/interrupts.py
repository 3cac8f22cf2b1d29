"""SIGINT and SIGTERM from the first import of a command to its last line.

While nothing is written they end the process at once. While something is, they raise `Stopped`, so
that it is left in order. In training, `signals.StopOnSignal` waits for the end of the step instead.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from genlab.errors import INTERRUPTED, PREEMPTED

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Signals that SLURM sends before a job's end if the job requests it; submitit uses SIGUSR2.
OF_SLURM = (signal.SIGUSR2, signal.SIGUSR1)
_received = 0


class Stopped(BaseException):
    """Raised on a stop signal: in training between two steps, after `last.ckpt` was written."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = INTERRUPTED if signum == signal.SIGINT else PREEMPTED


def end_at_once() -> None:
    """Make the signals end this process with the exit code 130 or 143, from now on."""
    for signum in _SIGNALS:
        signal.signal(signum, _end)


@contextmanager
def raised() -> Iterator[None]:
    """Raise `Stopped` at a signal, within the context and in the main thread.

    A handler that another program has installed, such as submitit's, stays.
    """
    global _received
    ours = (signal.SIG_DFL, signal.default_int_handler, _end)
    is_main = threading.current_thread() is threading.main_thread()
    replaced = [s for s in _SIGNALS if is_main and signal.getsignal(s) in ours]
    before = {signum: signal.signal(signum, _raise) for signum in replaced}
    try:
        yield
    finally:
        _received = 0
        for signum, handler in before.items():
            signal.signal(signum, handler)


def received() -> int:
    """Return the signal for which `Stopped` was raised, which a library may have caught, or 0."""
    return _received


def is_handled_elsewhere() -> bool:
    """Return whether another program, such as submitit, ends this process on SLURM's signals."""
    return any(callable(signal.getsignal(signum)) for signum in OF_SLURM)


def _end(signum: int, frame: FrameType | None) -> NoReturn:
    os._exit(Stopped(signum).exit_code)


def _raise(signum: int, frame: FrameType | None) -> NoReturn:
    global _received
    _received = signum
    raise Stopped(signum)
