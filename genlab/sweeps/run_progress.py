"""Read the progress of a run from its directory while another process writes it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genlab.errors import RunDirectoryError
from genlab.metrics.names import shown
from genlab.runs.reading import read_end
from genlab.runs.run import Run

_TAIL = 8192


@dataclass
class RunProgress:
    """The progress of a run when it was last read.

    Attributes:
        pid: of the process that writes; files that an earlier one left are not read.
        step, total: optimizer steps, None until they are known.
        metrics: those of the last validation or test that a line of progress shows.
        images_per_second: as the run measures it.
    """

    path: Path
    pid: int
    step: int | None = None
    total: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    images_per_second: float | None = None
    _first: tuple[float, int] | None = None
    _last: tuple[float, int] | None = None
    _seen: tuple[int, int] = (0, 0)

    @property
    def seconds_left(self) -> float | None:
        """Estimate the remaining seconds of training from the speed since the first seen step."""
        if self._first is None or self._last is None or self.total is None or self.step is None:
            return None
        seconds, steps = (b - a for a, b in zip(self._first, self._last, strict=True))
        if steps <= 0 or self.step >= self.total:
            return None
        since = time.monotonic() - self._last[0]
        return max(0.0, seconds / steps * (self.total - self.step) - since)

    def look(self) -> None:
        """Read what is new; costs two system calls if nothing is."""
        run = Run(self.path)
        seen = _stamp(run.status_path), _stamp(run.metrics_path)
        if seen == self._seen:
            return
        if seen[0] != self._seen[0]:
            self._read_status(run)
        if self.total is not None and seen[1]:
            self._read_metrics(run.metrics_path)
        self._seen = seen

    def _read_status(self, run: Run) -> None:
        try:
            status = run.status
        except RunDirectoryError:
            return
        if status.get("pid") == self.pid and isinstance(status.get("total_steps"), int):
            self.total = status["total_steps"]
            self._move_to(status.get("step"))

    def _move_to(self, step: Any) -> None:
        if not isinstance(step, int) or step <= (-1 if self.step is None else self.step):
            return
        self.step = step
        self._last = time.monotonic(), step
        self._first = self._first or self._last

    def _read_metrics(self, path: Path) -> None:
        try:
            end = read_end(path, _TAIL + 1)
        except (OSError, RunDirectoryError):
            return  # moved or removed meanwhile, which the run itself will notice
        for line in end.split(b"\n")[1 if len(end) > _TAIL else 0 : -1]:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                self._take(row)

    def _take(self, row: dict[str, Any]) -> None:
        for key in shown(key for key in row if key.startswith(("val/", "test/"))):
            if isinstance(row[key], int | float):
                self.metrics[key.partition("/")[2]] = row[key]
        rate = row.get("train/images_per_second")
        if isinstance(rate, int | float):
            self.images_per_second = rate
        self._move_to(row.get("step"))


def _stamp(path: Path) -> int:
    try:
        status = path.stat()
    except OSError:
        return 0
    return status.st_mtime_ns ^ status.st_size
