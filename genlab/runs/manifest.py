"""The manifest of a sweep: its question, and every job with its config, frozen at the start.

`manifest.json` lies in the sweep's directory, beside the run directories. Only the standard library
is needed, so that a report can be made where torch is not installed.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from genlab.errors import RunDirectoryError
from genlab.runs.files import write_atomically
from genlab.runs.points import announced_start, node_at, point_of, without_seed
from genlab.runs.reading import MANIFEST, parse_json, plain, read_bytes

FILE_NAME = "manifest.json"


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        run_id: the name of its run directory.
        overrides: those that it was composed from, as on a command line.
        point: value of each swept key, the seed excepted: runs with the same point are replicates.
        seed: of all its random numbers.
        config: the composed config, with Hydra's own part under `hydra`; references unresolved.
        blocked: why it cannot start yet, in a sentence; empty for one that can.
    """

    run_id: str
    overrides: tuple[str, ...]
    point: Mapping[str, Any]
    seed: int
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    blocked: str = ""


@dataclass(frozen=True)
class Manifest:
    """The jobs of a sweep, in their order.

    Attributes:
        name: the sweep's, which is also its group and the name of its directory.
        swept: the keys with several values, the seed last if it is among them.
        jobs: every job that was ever requested here, in the order of the last request.
        question: the question that the sweep answers, in one sentence; None if none was given.
        command: the last command line that requested it.
        code: a digest of the code and configs of the jobs, and the git commit.
        created: ISO 8601, UTC.
    """

    name: str
    swept: tuple[str, ...]
    jobs: tuple[Job, ...]
    question: str | None = None
    command: tuple[str, ...] = ()
    code: Mapping[str, Any] = field(default_factory=dict)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> Self | None:
        """Read the manifest of a sweep's directory; None if it has none.

        Raises:
            RunDirectoryError: it cannot be read.
        """
        path = Path(directory) / FILE_NAME
        try:
            given = parse_json(read_bytes(path, MANIFEST))
            content = plain(given)  # raises where it is nested too deeply
            jobs = tuple(
                Job(**{**job, "overrides": _words(job, "overrides")}) for job in given["jobs"]
            )
            for job in jobs:
                if not _is_name(job.run_id):
                    raise ValueError(f"{job.run_id!r} is no name of a run directory")
                _need(job, point=Mapping, seed=int, config=Mapping, blocked=str)
            swept = _words(content, "swept")
            command = tuple(map(str, content["command"]))  # which is only shown
            made = cls(**{**content, "jobs": jobs, "swept": swept, "command": command})
            _need(made, name=str, question=str | None, code=Mapping, created=str)
            return made
        except FileNotFoundError:
            return None
        except (OSError, RunDirectoryError, ValueError, TypeError, KeyError) as error:
            raise RunDirectoryError(
                f"{path} is no manifest of a sweep ({error}): mend it or move it away; the runs "
                "beside it are found without it"
            ) from error

    def write(self, directory: str | os.PathLike[str]) -> None:
        """Replace the manifest of a sweep's directory atomically, making the directory."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(directory) / FILE_NAME, asdict(self))

    def after(self, before: Manifest | None) -> Manifest:
        """Return this manifest with the other jobs of an earlier one appended to its own."""
        if before is None:
            return self
        mine = {job.run_id for job in self.jobs}
        others = tuple(job for job in before.jobs if job.run_id not in mine)
        keys = dict.fromkeys((*before.swept, *self.swept) if others else self.swept)
        swept = (*without_seed(keys), *(["seed"] if "seed" in keys else []))
        return replace(
            self,
            jobs=(*self.jobs, *others),
            swept=swept,
            question=self.question or before.question,
            created=before.created,
        )

    def with_blocked(self, blocked: Iterable[Job]) -> Manifest:
        """Return this manifest with these blocked jobs in the place of its own."""
        return replace(self, jobs=(*(job for job in self.jobs if not job.blocked), *blocked))

    def missing(self, run_ids: Iterable[str]) -> tuple[Job, ...]:
        """Return the jobs whose run directory is not among these."""
        there = set(run_ids)
        return tuple(job for job in self.jobs if job.run_id not in there)


def point_in_sweep(
    config: Mapping[str, Any], choices: Mapping[str, str], swept: Iterable[str]
) -> dict[str, Any]:
    """Return the point of a job in the sweep that this process was told of, as `points.point_of`.

    Of a job that starts from another run of the sweep, it has the settings of that run as well.
    """
    start = announced_start()
    if start is None:
        return point_of(config, choices, swept)
    run = node_at(config, start.run)
    theirs = _points(Path(run).parent).get(Path(run).name, {}) if isinstance(run, str) else {}
    others = {start.named(key): theirs.get(key) for key in start.others}
    return {**point_of(config, choices, swept, start.model), **others}


def _points(directory: Path) -> Mapping[str, Mapping[str, Any]]:
    """Return the points of a sweep's jobs by run id, none where it has no manifest."""
    try:
        return _points_at(directory, (directory / FILE_NAME).stat().st_mtime_ns)
    except FileNotFoundError:
        return {}


@functools.lru_cache(maxsize=1)
def _points_at(directory: Path, changed: int) -> Mapping[str, Mapping[str, Any]]:
    manifest = Manifest.read(directory)
    return {job.run_id: job.point for job in manifest.jobs} if manifest is not None else {}


def _words(content: Mapping[str, Any], key: str) -> tuple[str, ...]:
    words = content[key]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise TypeError(f"{key} is no list of words")
    return tuple(words)


def _need(made: Job | Manifest, **kinds: Any) -> None:
    """Refuse attributes that are not of these kinds.

    Raises:
        TypeError: with the name and the value of the first.
    """
    for name, kind in kinds.items():
        if not isinstance(value := getattr(made, name), kind):
            raise TypeError(f"{name}={value!r}")


def _is_name(run_id: Any) -> bool:
    """Return whether a run id is a valid folder name that does not lead out of the sweep."""
    if not isinstance(run_id, str) or run_id in ("", ".", "..") or {"/", "\0"} & set(run_id):
        return False
    try:
        return bool(os.fsencode(run_id))
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
