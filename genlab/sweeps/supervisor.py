"""Run jobs in their own processes, several at once: start, watch, stop and retry them."""

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
from genlab.metrics.names import shown
from genlab.runs.directory import record_end
from genlab.runs.run import Run
from genlab.sweeps.run_progress import RunProgress

_TICK_SECONDS = 0.25
#: Signals within this time are one Ctrl-C: make and other wrappers repeat the terminal's signal.
_ONE_KEYSTROKE_SECONDS = 0.5
_LAST_LINES = 12
_ERROR_LINE = re.compile(rb"^error: (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Slot:
    """A slot for one job at a time; `gpus` has the format of CUDA_VISIBLE_DEVICES."""

    number: int
    gpus: tuple[str, ...] = ()


@dataclass
class Task:
    """A job that the supervisor runs.

    Attributes:
        name: for people, such as `kl_weight=30`.
        path: its run directory; its process prints to the file `log`.
        state: waiting, running, completed, failed, refused (by the job itself, before it had a run
            directory) or preempted.
        message: why it is not completed, in a sentence.
        processes: their number.
        metrics: those that a line of progress shows; the test's for a completed job.
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
    progress: RunProgress | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    started: float = 0.0
    ended: float = 0.0
    log_start: int = 0

    @property
    def seconds(self) -> float:
        """Seconds since the last attempt started, or until it ended."""
        return (self.ended or time.monotonic()) - self.started if self.started else 0.0

    def look(self) -> None:
        """Read the progress of the run."""
        if self.state == "completed":
            found = (Run(self.path).result or {}).get("metrics", {})
            self.metrics = {
                name.removeprefix("test/"): found[name]
                for name in shown(name for name in found if name.startswith("test/"))
                if isinstance(found[name], int | float)
            }
        elif self.progress is not None:
            self.progress.look()
            self.metrics = self.progress.metrics

    def last_lines(self) -> list[str]:
        """Return the last lines that the last attempt printed."""
        lines = self._printed().decode(errors="replace").splitlines()
        return [line.rstrip() for line in lines if line.strip()][-_LAST_LINES:]

    def last_error(self) -> str | None:
        """Return the last error message that the last attempt printed, or None."""
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
    """Output of the events of a sweep to a person."""

    def say(self, text: str) -> None:
        """Show a sentence that belongs to no job."""

    def started(self, task: Task) -> None:
        """Show that a job has started, or started again."""

    def ended(self, task: Task, again: bool) -> None:
        """Show that a job has ended, or will be retried."""

    def refresh(self) -> None:
        """Update what is shown; called at short intervals."""


@dataclass(frozen=True)
class Limits:
    """Limits of each job.

    A failed job is retried `retries` times. A job is killed if it uses more than `memory_bytes`, or
    has not ended `grace_seconds` after it was asked to stop.
    """

    retries: int = 0
    memory_bytes: float = math.inf
    grace_seconds: float = 300.0


class Stop:
    """A request to stop by a signal: none, an orderly stop (`signum`), or an immediate one."""

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
        """Seconds since the stop request, or 0 without one."""
        return time.monotonic() - self._since if self.signum else 0.0

    @property
    def exit_code(self) -> int:
        """Exit code of a process that was asked to stop."""
        return INTERRUPTED if self.signum == signal.SIGINT else PREEMPTED

    def check(self) -> None:
        """Raise SystemExit if a stop was requested, at a point that needs no orderly end."""
        if self.signum:
            raise SystemExit(self.exit_code)


class Supervisor:
    """Runs tasks in order, one at a time in each slot.

    Args:
        start: creates and starts the process of a task in a slot.
        before_each: called before a task starts.
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
        """Run until no task is running and none is left to start."""
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
            for task in self.running:  # after an internal error: leave no process behind
                _kill(task)

    def _start(self, task: Task) -> None:
        self._before_each()
        task.slot = self.free.pop(0)
        task.attempts += 1
        task.log_start = task.log.stat().st_size if task.log.exists() else 0
        task.started, task.ended, task.message = time.monotonic(), 0.0, ""
        task.process = self._start_process(task, task.slot)
        task.progress = RunProgress(task.path, task.process.pid or 0)
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
            _kill(task)  # the task's other processes would wait for it forever
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
        """Record how a task ended, also in its run directory if its process could not do so."""
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
            _record(task.path, "preempted", message=name)
            return "preempted", f"it was stopped by {name}"
        kind, reason = "Exited", f"its process ended with code {code} before the run was completed"
        if killed is not None:
            kind, reason = "OutOfMemory", killed
        elif code < 0:
            kind, reason = "Killed", f"its process was killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL and task.processes == 1:
                reason += ", as the system does when memory runs out"
        _record(task.path, "failed", type=kind, message=reason)
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


def _record(path: Path, state: str, **details: str) -> None:
    """Record how a run ended, where there is room; the sweep tells it in any case."""
    with contextlib.suppress(OSError, RunDirectoryError):
        record_end(path, state, **details)


def _kill(task: Task) -> None:
    """Kill every process of the task."""
    pid = None if task.process is None else task.process.pid
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if task.process is not None and task.process.is_alive():  # before it had its own session
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _resident_bytes(pid: int | None) -> int:
    """Sum the memory of a task's processes; shared memory counts for each of them."""
    pages = 0
    for stat in Path("/proc").glob("[0-9]*/stat") if pid is not None else ():
        with contextlib.suppress(OSError, ValueError, IndexError):  # it may have ended meanwhile
            # after the name, which may contain anything: state, parent, group, ..., pages
            fields = stat.read_text().rpartition(")")[2].split()
            if int(stat.parent.name) == pid or int(fields[2]) == pid:
                pages += int(fields[21])
    return pages * os.sysconf("SC_PAGE_SIZE")
