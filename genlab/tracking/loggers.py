"""The loggers of a run: any of Lightning's, or one that also implements `RunTracker`."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.loggers import Logger

from genlab.config.build import build, takes
from genlab.errors import TRAINING_FAILED, RunDirectoryError
from genlab.runs.files import write_atomically
from genlab.runs.reading import ID, read_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackedRun:
    """The identity of a run, as trackers show it.

    Attributes:
        directory: the run directory.
        id: unique on the tracker; the same id goes on with the same run.
        group, name: of the run, whose directory is `runs/<group>/<name>`.
        tags, notes: the user's, and as tags also the choices of the config.
        config: resolved and nested.
    """

    directory: Path
    id: str
    group: str
    name: str
    tags: Sequence[str]
    notes: str | None
    config: Mapping[str, Any]


@runtime_checkable
class RunTracker(Protocol):
    """A Lightning logger that also receives the identity of its run, and the outcome."""

    @property
    def sentence(self) -> str:
        """One line for the terminal on where to view the run."""
        ...

    def begin(self, run: TrackedRun) -> None:
        """Start or resume the logging of a run, before anything is logged."""
        ...

    def summarise(self, result: Mapping[str, Any]) -> None:
        """Take the content of result.json as the run's summary."""
        ...

    def close(self, exit_code: int, error: str = "") -> None:
        """End the run with its exit code (see `genlab.errors`)."""
        ...


@runtime_checkable
class TakesImages(Protocol):
    """A logger that shows pictures."""

    def log_image(self, key: str, path: Path, step: int) -> None:
        """Show the PNG at `path`."""
        ...


@runtime_checkable
class TakesVideos(Protocol):
    """A logger that shows videos."""

    def log_video(self, key: str, path: Path, step: int) -> None:
        """Show the MP4 at `path`."""
        ...


class Loggers:
    """The loggers of a run, in addition to its own record.

    Args:
        nodes: checked configs by name; null leaves one out.
        run: the run that they log.

    Raises:
        ConfigError: a logger refuses its values.
    """

    def __init__(self, nodes: Mapping[str, Any], run: TrackedRun) -> None:
        # a stock logger's names for the directory and the name of a run
        known = {"save_dir": str(run.directory), "experiment_name": run.group, "run_name": run.name}
        built: list[Logger] = []
        for name, node in nodes.items():
            if node is None:
                continue
            given = {k: v for k, v in known.items() if takes(node, k) and node.get(k) is None}
            built.append(build({**node, **given}, f"logger.{name}"))
        self.all: list[Logger] = []
        for logger in built:
            try:
                if isinstance(logger, RunTracker):
                    logger.begin(run)
                else:
                    logger.log_hyperparams(dict(run.config))
            except Exception as error:
                self.close(TRAINING_FAILED, f"{type(error).__name__}: {error}")
                raise
            self.all.append(logger)

    def summarise(self, result: Mapping[str, Any]) -> None:
        """Pass the content of result.json to the loggers that keep a summary."""
        for logger in self._trackers():
            with _forgiven(logger):
                logger.summarise(result)

    def close(self, exit_code: int, error: str = "") -> None:
        """End the run for each of them."""
        for logger in self.all:
            with _forgiven(logger):
                if isinstance(logger, RunTracker):
                    logger.close(exit_code, error)
                else:
                    logger.finalize("success" if exit_code == 0 else "failed")

    @property
    def sentences(self) -> list[str]:
        """Sentences on where to view the run."""
        return [logger.sentence for logger in self._trackers()]

    def _trackers(self) -> list[RunTracker]:
        return [logger for logger in self.all if isinstance(logger, RunTracker)]


@contextmanager
def _forgiven(logger: object) -> Iterator[None]:
    """Turn an error of a logger at the end of a run into a warning; nothing is lost by then."""
    try:
        yield
    except Exception as error:
        log.warning("%s did not get the end of the run: %s", type(logger).__name__, error)


def tracker_id(directory: Path, group: str) -> str:
    """Return the id of a run on trackers, and keep it in its directory.

    A run that goes on keeps its id; one that `overwrite=true` begins anew gets another than the
    runs that were set aside.
    """
    kept = directory / "tracker_id"
    found = _read_id(kept)
    if found is None:
        base = re.sub(r"[^\w-]", "-", f"{group}-{directory.name}")[-112:]
        aside = sorted(directory.parent.glob(f"{glob.escape(directory.name)}.old-*"))
        used = [_number(_read_id(path / "tracker_id") or base) for path in aside]
        number = 1 + max([len(aside), *used]) if aside else 1
        found = base if number == 1 else f"{base}-{number}"
        if directory.is_dir():
            write_atomically(kept, found)
    return found


def _read_id(path: Path) -> str | None:
    """Return the id in a file; None if there is none, or text that is no id."""
    try:
        text = read_bytes(path, ID).decode()
    except (OSError, UnicodeDecodeError, RunDirectoryError):
        return None
    return text if re.fullmatch(r"[\w-]{1,128}", text, re.ASCII) else None


def _number(run_id: str) -> int:
    found = re.search(r"-(\d{1,6})$", run_id)
    return int(found[1]) if found else 1
