"""Jobs in processes of their own, some at once: started, watched, stopped, tried again."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, Self

from genlab.errors import DONE, INTERRUPTED, PREEMPTED, REFUSED, RunDirectoryError
from genlab.runs.directory import Run, record_end
from genlab.sweeps.progress import Progress

_TICK_SECONDS = 0.25
#: A wrapper such as make passes on a Ctrl-C that the terminal has sent already.
_ONE_KEYSTROKE_SECONDS = 0.5
_LAST_LINES = 12
_ERROR_LINE = re.compile(rb"^error: (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Slot:
    """A place for one job at a time; `gpus` as CUDA_VISIBLE_DEVICES names them."""

    number: int
    gpus: tuple[str, ...] = ()


@dataclass
class Task:
    """A job as the supervisor sees it.

    Attributes:
        name: for people, such as `kl_weight=30`.
        path: its run directory; `log` is where its process prints.
        state: waiting, running, completed, failed, refused (by itself, before it had a run
            directory) or preempted.
        message: why it is not completed, in a sentence.
        processes: how many it consists of.
        metrics: the last reconstruction and kl, once it is completed those of the test.
    """

    name: str
    run_id: str
    path: Path
    log: Path
    processes: int = 1
    state: str = "waiting"
    message: str = ""
    attempts: int = 0
    slot: Slot | None = None
    process: BaseProcess | None = None
    progress: Progress | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    started: float = 0.0
    ended: float = 0.0
    log_start: int = 0

    @property
    def seconds(self) -> float:
        """Of the last attempt so far."""
        return (self.ended or time.monotonic()) - self.started if self.started else 0.0

    def look(self) -> None:
        """Read how far its run is."""
        if self.state == "completed":
            found = (Run(self.path).result or {}).get("metrics", {})
            names = {n: found.get(f"test/{n}") for n in ("reconstruction", "kl")}
            self.metrics = {n: v for n, v in names.items() if isinstance(v, int | float)}
        elif self.progress is not None:
            self.progress.look()
            self.metrics = self.progress.metrics

    def last_lines(self) -> list[str]:
        """Of what its last attempt printed."""
        lines = self._printed().decode(errors="replace").splitlines()
        return [line.rstrip() for line in lines if line.strip()][-_LAST_LINES:]

    def last_error(self) -> str | None:
        """The last sentence of its last attempt that is an error of genlab's."""
        found = _ERROR_LINE.findall(self._printed())
        return found[-1].decode(errors="replace") if found else None

    def _printed(self) -> bytes:
        try:
            with self.log.open("rb") as file:
                file.seek(max(self.log_start, file.seek(0, os.SEEK_END) - 65536))
                return file.read()
        except OSError:
            return b""


class Display(Protocol):
    """Tells a person what happens."""

    def say(self, text: str) -> None:
        """A sentence that belongs to no job."""

    def started(self, task: Task) -> None:
        """A job has begun, or begun again."""

    def ended(self, task: Task, again: bool) -> None:
        """A job is over, or to be tried again."""

    def refresh(self) -> None:
        """Some time has passed."""


@dataclass(frozen=True)
class Limits:
    """What jobs may do: tried again `retries` times, killed above `memory_bytes` and after
    `grace_seconds` of stopping.
    """

    retries: int = 0
    memory_bytes: float = math.inf
    grace_seconds: float = 300.0


class Stop:
    """What signals have asked for: nothing, an orderly end (`signum`), or one `at_once`."""

    def __init__(self) -> None:
        self.signum = 0
        self.at_once = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if not self.signum:
            self.signum, self._since = signum, time.monotonic()
        elif signum == signal.SIGINT:
            self.at_once |= time.monotonic() - self._since > _ONE_KEYSTROKE_SECONDS

    @property
    def seconds(self) -> float:
        """Since it was asked for; 0 if it was not."""
        return time.monotonic() - self._since if self.signum else 0.0

    @property
    def exit_code(self) -> int:
        """Of a process that was asked to stop."""
        return INTERRUPTED if self.signum == signal.SIGINT else PREEMPTED

    def check(self) -> None:
        """Raise SystemExit if it was asked for, where nothing needs an orderly end."""
        if self.signum:
            raise SystemExit(self.exit_code)


class Supervisor:
    """Brings tasks to their end, in their order, one at a time in each slot.

    Args:
        start: makes the process of a task in a slot, and starts it.
        before_each: is called before a task starts.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        slots: Sequence[Slot],
        limits: Limits,
        start: Callable[[Task, Slot], BaseProcess],
        display: Display,
        stop: Stop,
        before_each: Callable[[], None] = lambda: None,
    ) -> None:
        self.waiting = deque(task for task in tasks if task.state == "waiting")
        self.running: list[Task] = []
        self.free = list(slots)
        self.limits, self.display, self.stop = limits, display, stop
        self._start_process, self._before_each = start, before_each
        self._kills: dict[str, str] = {}
        self._told = False

    def run(self) -> None:
        """Return when no task runs and none is to start."""
        try:
            while self.running or (self.waiting and not self.stop.signum):
                while self.waiting and self.free and not self.stop.signum:
                    self._start(self.waiting.popleft())
                wait([t.process.sentinel for t in self.running if t.process], _TICK_SECONDS)
                for task in [t for t in self.running if t.process and not t.process.is_alive()]:
                    self._end(task)
                self._limit_memory()
                self._pass_on_the_stop()
                for task in self.running:
                    task.look()
                self.display.refresh()
        finally:
            for task in self.running:  # after an error of our own: nothing is left behind
                _kill(task)

    def _start(self, task: Task) -> None:
        self._before_each()
        task.slot = self.free.pop(0)
        task.attempts += 1
        task.log_start = task.log.stat().st_size if task.log.exists() else 0
        task.started, task.ended, task.message = time.monotonic(), 0.0, ""
        task.process = self._start_process(task, task.slot)
        task.progress = Progress(task.path, task.process.pid or 0)
        task.state = "running"
        self.running.append(task)
        self.display.started(task)

    def _end(self, task: Task) -> None:
        assert task.process is not None
        assert task.slot is not None
        task.process.join()
        task.ended = time.monotonic()
        code = task.process.exitcode
        self.running.remove(task)
        self.free = sorted([*self.free, task.slot], key=lambda slot: slot.number)
        if task.processes > 1 and code != DONE:
            _kill(task)  # its further processes would wait for it forever
        task.state, task.message = self._verdict(task, -1 if code is None else code)
        task.look()
        again = (
            task.state == "failed" and task.attempts <= self.limits.retries and not self.stop.signum
        )
        self.display.ended(task, again)
        if again:
            task.state = "waiting"
            self.waiting.appendleft(task)

    def _verdict(self, task: Task, code: int) -> tuple[str, str]:
        """What became of a task, and why; a run that could not say it itself is told it."""
        run = Run(task.path)
        killed = self._kills.pop(task.run_id, None)
        with contextlib.suppress(RunDirectoryError):
            if code == DONE and run.is_completed:
                return "completed", ""
        if code == REFUSED:
            return "refused", task.last_error() or "it was refused: see its log"
        stopped = code in (INTERRUPTED, PREEMPTED, -signal.SIGTERM, -signal.SIGINT)
        if stopped or (self.stop.signum and code == -signal.SIGKILL):
            name = signal.Signals(-code if code < 0 else code - 128).name
            record_end(task.path, "preempted", message=name)
            return "preempted", f"it was stopped by {name}"
        kind, reason = "Exited", f"its process ended with code {code} before the run was completed"
        if killed is not None:
            kind, reason = "OutOfMemory", killed
        elif code < 0:
            kind, reason = "Killed", f"its process was killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL and task.processes == 1:
                reason += ", as the system does when memory runs out"
        record_end(task.path, "failed", type=kind, message=reason)
        return "failed", task.last_error() or reason if code > 0 else reason

    def _limit_memory(self) -> None:
        if not math.isfinite(self.limits.memory_bytes):
            return
        for task in self.running:
            used = _resident_bytes(task.process.pid if task.process else None)
            if used > self.limits.memory_bytes:
                self._kills[task.run_id] = (
                    f"it had {used / 2**30:.2f} GiB in memory, more than "
                    f"hydra.launcher.memory_gb={self.limits.memory_bytes / 2**30:g}"
                )
                _kill(task)

    def _pass_on_the_stop(self) -> None:
        if not self.stop.signum:
            return
        if not self._told:
            self._told = True
            name = signal.Signals(self.stop.signum).name
            self.display.say(
                f"{name}: no further job starts; {len(self.running)} running ones finish their "
                "step and write a checkpoint (Ctrl-C again kills them at once)"
            )
            for task in self.running:
                if task.process is not None and task.process.pid is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(task.process.pid, signal.SIGTERM)
        if self.stop.at_once or self.stop.seconds > self.limits.grace_seconds:
            for task in self.running:
                _kill(task)


def _kill(task: Task) -> None:
    """Every process of the task."""
    pid = None if task.process is None else task.process.pid
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if task.process is not None and task.process.is_alive():  # before it had a session of its own
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _resident_bytes(pid: int | None) -> int:
    """Of a task's process and of those that it started; what they share counts for each."""
    pages = 0
    for stat in Path("/proc").glob("[0-9]*/stat") if pid is not None else ():
        with contextlib.suppress(OSError, ValueError, IndexError):  # it may have ended meanwhile
            # behind the name, which may hold anything: state, parent, group, ..., pages
            fields = stat.read_text().rpartition(")")[2].split()
            if int(stat.parent.name) == pid or int(fields[2]) == pid:
                pages += int(fields[21])
    return pages * os.sysconf("SC_PAGE_SIZE")
