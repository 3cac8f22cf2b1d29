"""Read run directories, which may come from a stranger."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genlab.errors import RunDirectoryError
from genlab.runs import reading
from genlab.runs.locks import is_locked, was_locked
from genlab.runs.reading import parse_json, read_bytes, read_json

#: The file that holds the weights in an export of a run.
EXPORTED = "model.safetensors"

_SET_ASIDE = re.compile(r"\.old-\d+$")
_NOT_RUNS = ("wandb", "__pycache__", "node_modules")


class Layout:
    """The paths in a run directory."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.yaml"
        self.spec_path = self.path / "spec.json"
        self.data_path = self.path / "data.json"
        self.status_path = self.path / "status.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.result_path = self.path / "result.json"
        self.bound_path = self.path / "bound.json"
        self.quality_path = self.path / "quality.json"
        self.env_path = self.path / "env.json"
        self.log_path = self.path / "train.log"
        self.checkpoints = self.path / "checkpoints"
        self.pictures = self.path / "pictures"
        self.videos = self.path / "videos"
        self.wandb = self.path / "wandb"

    @property
    def name(self) -> str:
        """The run id, which is the name of the directory."""
        return self.path.name

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"


class Run(Layout):
    """Reader of one run directory; every property reads the files again."""

    @property
    def status(self) -> dict[str, Any]:
        """The content of status.json, empty where there is none."""
        return read_json(self.status_path, reading.STATUS) or {}

    @property
    def state(self) -> str:
        """The state that was written last, or `missing`."""
        return str(self.status.get("state", "missing"))

    @property
    def is_completed(self) -> bool:
        """Return whether the run was completed and its result can be read."""
        return self.state == "completed" and self.result is not None

    @property
    def is_interrupted(self) -> bool:
        """Return whether the state is running although the process on this host has ended.

        Returns False for a run on another host, whose processes cannot be checked.
        """
        status = self.status
        if status.get("state") != "running" or status.get("host") != socket.gethostname():
            return False
        # The lock is also free if another process has the same pid by now.
        lock_is_free = was_locked(self.path) and not is_locked(self.path)
        return lock_is_free or not _is_alive(status.get("pid"))

    @property
    def spec(self) -> dict[str, Any] | None:
        """The content of spec.json, or None."""
        return read_json(self.spec_path, reading.RESULT)

    @property
    def data(self) -> dict[str, Any] | None:
        """The content of data.json, or None where the data cannot change."""
        return read_json(self.data_path, reading.STATUS)

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of result.json, or None.

        Raises:
            RunDirectoryError: it cannot be read, or its metrics are no JSON object.
        """
        result = read_json(self.result_path, reading.RESULT)
        metrics = (result or {}).get("metrics", {})
        if not isinstance(metrics, dict):
            raise RunDirectoryError(
                f"{self.result_path} holds a {type(metrics).__name__} as metrics, where a JSON "
                "object goes: mend or remove it, or set overwrite=true"
            )
        return result

    @property
    def bound(self) -> dict[str, Any] | None:
        """The content of bound.json, or None where the model has no such curves."""
        return read_json(self.bound_path, reading.BOUND)

    @property
    def quality(self) -> list[dict[str, Any]]:
        """The measurements in quality.json, the newest last; empty where there are none.

        Raises:
            RunDirectoryError: it cannot be read, or does not hold a list of JSON objects.
        """
        records = (read_json(self.quality_path, reading.RESULT) or {}).get("records", [])
        if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
            raise RunDirectoryError(f"{self.quality_path} holds no list of records: remove it")
        return records

    @property
    def config_text(self) -> str | None:
        """The content of config.yaml, or None.

        Raises:
            RunDirectoryError: it cannot be read, or is not UTF-8.
        """
        try:
            return read_bytes(self.config_path, reading.CONFIG).decode()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise RunDirectoryError(
                f"{self.config_path} cannot be read ({error}): write it as UTF-8"
            ) from error

    def metrics(self) -> list[dict[str, Any]]:
        """Read the rows of metrics.jsonl in order, without a last one that is still being written.

        Raises:
            RunDirectoryError: another line cannot be read.
        """
        return parse_metrics(read_metrics(self.metrics_path), self.metrics_path)[0]


def find_runs(root: str | os.PathLike[str]) -> list[Run]:
    """Find the run directories at and below `root`, sorted by path.

    A run directory has a config.yaml or a status.json. Those that were set aside, hidden folders,
    W&B's own folders and links to folders are skipped.
    """
    return [Run(path) for path in sorted(_walk(Path(root)))]


def _walk(root: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(root, followlinks=False):
        if {"config.yaml", "status.json"} & set(files):
            subfolders.clear()
            yield Path(folder)
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".") and name not in _NOT_RUNS and not _SET_ASIDE.search(name)
        ]


def read_metrics(path: Path) -> bytes:
    """Read a metrics.jsonl; empty where there is none."""
    try:
        return read_bytes(path, reading.METRICS)
    except (FileNotFoundError, NotADirectoryError):
        return b""


def parse_metrics(data: bytes, path: Path) -> tuple[list[dict[str, Any]], int]:
    """Parse the rows; return them and the length of the file without a torn last line.

    Raises:
        RunDirectoryError: a whole line is no flat JSON object with a step, or is longer than `ROW`.
    """
    length = data.rfind(b"\n") + 1
    rows = []
    for number, line in enumerate(data[:length].split(b"\n")[:-1], start=1):
        try:
            row = parse_json(line) if len(line) <= reading.ROW else {}
            if isinstance(row["step"], bool) or not isinstance(row["step"], int):
                raise TypeError
            if any(isinstance(value, dict | list) for value in row.values()):
                raise TypeError
        except (ValueError, TypeError, KeyError):
            raise RunDirectoryError(
                f"{path} line {number} is not a row of metrics: {line[:60]!r}; mend or remove that "
                f"line, or set overwrite=true to start anew"
            ) from None
        rows.append(row)
    return rows, length


def _is_alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # of a number that no process can have
        return False
    except PermissionError:
        return True
    return True
