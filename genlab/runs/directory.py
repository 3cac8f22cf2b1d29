"""The run directory, which training writes and everything else only reads.

    config.yaml  spec.json  data.json  status.json  metrics.jsonl  result.json  bound.json  env.json
    train.log  checkpoints/  pictures/  videos/  wandb/

Only the standard library is needed, so that a report can be made where torch is not installed.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, SupportsFloat

from genlab.errors import GenlabError, RunDirectoryError, TrainingError
from genlab.runs.files import finite, refuse_foreign, write_atomically
from genlab.runs.locks import Lock, holder, is_locked, make_folder
from genlab.runs.run import Layout, Run, parse_metrics, read_metrics

STATES = ("pending", "running", "completed", "failed", "preempted")


class RunDirectory(Layout):
    """Writer of one run directory, with exclusive access from `open` to `close`.

    All files but the metrics are replaced atomically, so that a kill at any moment leaves the old
    or the new one. `heartbeat_seconds` is the least time between two heartbeats. If a run has
    several processes, only one writes: in the others every method does nothing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        heartbeat_seconds: float = 10.0,
        *,
        writes: bool = True,
    ) -> None:
        super().__init__(path)
        self.heartbeat_seconds = heartbeat_seconds
        self.writes = writes
        self._lock = Lock(self.path)
        self._metrics: int | None = None
        self._length = 0
        self._steps_by_names: dict[tuple[str, ...], set[int]] = {}
        self._status: dict[str, Any] = {}
        self._last_beat = -math.inf
        self._guard = threading.RLock()  # of the status, which two threads write

    def open(self) -> Self:
        """Create the directory if needed, lock it, and read which metrics it already holds.

        Raises:
            RunDirectoryError: it cannot be written, another process has it, a link in it leads out
                of it, or a line of its metrics.jsonl other than a torn last one cannot be read.
        """
        if not self.writes:
            return self
        refuse_foreign(self.path)
        self._lock.open()
        try:
            for folder in (self.checkpoints, self.pictures):
                make_folder(folder)
            for debris in (*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")):
                if debris.is_file():
                    debris.unlink()
            self._open_metrics()
        except BaseException:
            self.close()
            raise
        return self

    def _open_metrics(self) -> None:
        rows, self._length = parse_metrics(read_metrics(self.metrics_path), self.metrics_path)
        self._steps_by_names = {}
        for row in rows:
            self._is_new(row["step"], tuple(sorted(row.keys() - {"step", "epoch"})))
        self._metrics = os.open(self.metrics_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.ftruncate(self._metrics, self._length)

    def _is_new(self, step: int, names: tuple[str, ...]) -> bool:
        steps = self._steps_by_names.setdefault(names, set())
        if step in steps:
            return False
        steps.add(step)
        return True

    def close(self) -> None:
        """Unlock the directory; its files stay as they are."""
        if self._metrics is not None:
            os.close(self._metrics)
        self._metrics = None
        self._lock.close()

    def __enter__(self) -> Self:
        return self if self._lock.is_held else self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def check_place(self) -> None:
        """Check that the opened directory is still the one at its path.

        Raises:
            TrainingError: it was moved, removed or replaced; more files would go elsewhere.
        """
        if self.writes and self._lock.is_held and not self._lock.is_in_place:
            raise TrainingError(
                f"{self.path} was moved or removed during the run, which has stopped: move it back "
                "and the same command, without overwrite=true, goes on from the last checkpoint"
            )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Raise what `check_place` raises instead of an error that comes of it."""
        try:
            yield
        except Exception:
            self.check_place()
            raise

    def _may_write(self) -> bool:
        if self.writes and not self._lock.is_held:
            raise RunDirectoryError(f"{self.path} is not open for writing: call open() first")
        self.check_place()
        return self.writes

    def write_config(self, text: str) -> None:
        """Write the resolved configuration, given as YAML."""
        if self._may_write():
            write_atomically(self.config_path, text)

    def write_spec(self, spec: Mapping[str, Any]) -> None:
        """Write the shape and the kind of the images, without which the model cannot be built."""
        if self._may_write():
            write_atomically(self.spec_path, spec)

    def write_data(self, record: Mapping[str, Any]) -> None:
        """Write the number of images and the digest of their files."""
        if self._may_write():
            write_atomically(self.data_path, record)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the final numbers; numbers that are not finite become null."""
        if self._may_write():
            write_atomically(self.result_path, result)

    def write_bound(self, curves: Mapping[str, Any]) -> None:
        """Write the parts of the bound: over a diffusion model's times, or a VAE's units."""
        if self._may_write():
            write_atomically(self.bound_path, curves)

    def write_env(self, env: Mapping[str, Any]) -> None:
        """Write the packages and the hardware."""
        if self._may_write():
            write_atomically(self.env_path, env)

    def write_status(self, state: str, **details: Any) -> None:
        """Write one of `STATES` with command, pid, host, time of start and heartbeat (UTC).

        Details are `type`, `message` and `where` for a failed run, and `total_steps` for one that
        has begun to train.
        """
        if state not in STATES:
            raise ValueError(f"state={state!r}: a run is one of {', '.join(STATES)}")
        with self._guard:
            self._status = {
                "state": state,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
                "started": self._status.get("started", _now()),
                **details,
            }
            self._beat()

    def heartbeat(self, step: int | None = None) -> None:
        """Record that the run is alive, and its step; cheap enough to be called at every step.

        Raises:
            TrainingError: see `check_place`.
        """
        self.check_place()
        with self._guard:
            if self._status.get("state") != "running":
                return
            if step is not None:
                self._status["step"] = step
            if time.monotonic() - self._last_beat >= self.heartbeat_seconds:
                self._beat()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Write heartbeats from a thread, by the clock, whatever the run is doing."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self.heartbeat_seconds):
                with suppress(OSError, GenlabError):  # the next write of the run itself tells
                    self.heartbeat()

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        if self.writes:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            if self.writes:
                thread.join()

    def _beat(self) -> None:
        if not self._may_write():
            return
        write_atomically(self.status_path, {**self._status, "heartbeat": _now()})
        self._last_beat = time.monotonic()

    def append_metrics(self, step: int, epoch: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Add one line, unless the file already has one for this step and these names.

        A resumed run repeats the steps after its checkpoint and gives the same rows, which are not
        written twice. So that the file has no gap either, append a step's rows before its
        checkpoint is saved, and call `sync` in between if the machine itself may fail. Numbers that
        are not finite become null.
        """
        if not self._may_write():
            return
        assert self._metrics is not None
        if reserved := {"step", "epoch"} & metrics.keys():
            raise ValueError(f"metric {reserved.pop()!r}: the name is that of a row's own column")
        names = tuple(sorted(metrics))
        row = {"step": int(step), "epoch": int(epoch)}
        line = json.dumps(row | {name: finite(float(metrics[name])) for name in names})
        if not self._is_new(row["step"], names):
            return
        data = memoryview(line.encode() + b"\n")
        try:
            written = 0
            while written < len(data):
                written += os.write(self._metrics, data[written:])
        except OSError:
            # Half a line, left by a full disk, would corrupt the next line.
            os.ftruncate(self._metrics, self._length)
            self._steps_by_names[names].discard(row["step"])
            raise
        self._length += len(data)

    def sync(self) -> None:
        """Flush the metrics to the disk, so that they also survive a power failure."""
        if self._metrics is not None:
            os.fsync(self._metrics)


def record_end(path: str | os.PathLike[str], state: str, **details: Any) -> None:
    """Record the end of a run whose process ended without recording it.

    A run that recorded its own end is left as it is, and so is one that a process still writes.
    """
    run = Run(path)
    lock = Lock(path)
    try:
        lock.open()
    except RunDirectoryError:
        return
    try:
        status = run.status
        if status.get("state", "running") in ("pending", "running"):
            write_atomically(run.status_path, {**status, "state": state, **details})
    finally:
        lock.close()


def set_aside(path: str | os.PathLike[str]) -> Path:
    """Rename a run directory to the first free name of `<name>.old-1`, `-2`, ..., and return it.

    Raises:
        RunDirectoryError: there is no such directory, or a process is writing in it.
    """
    path = Path(path)
    if not path.is_dir():
        raise RunDirectoryError(f"{path} is not a directory: there is nothing to set aside")
    if is_locked(path):
        raise RunDirectoryError(
            f"{path} is in use by {holder(path)}: stop that run before it is overwritten"
        )
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.old-{number}")):
        number += 1
    try:
        path.rename(aside)
    except OSError as error:
        raise RunDirectoryError(
            f"{path} cannot be renamed to {aside.name} ({error.strerror}): make its parent writable"
        ) from error
    return aside


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
