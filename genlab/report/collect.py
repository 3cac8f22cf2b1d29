"""Read run directories as records: the config of each run, its state, and its result."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from genlab.config import received_yaml
from genlab.errors import RunDirectoryError
from genlab.runs.directory import STATES
from genlab.runs.files import refuse_links
from genlab.runs.identity import flatten, is_identity
from genlab.runs.manifest import FILE_NAME, Job, Manifest
from genlab.runs.reading import plain
from genlab.runs.run import Run, find_runs
from genlab.runs.text import printable

#: The parts of a run directory that a report reads.
_READ = (
    *("config.yaml", "status.json", "metrics.jsonl", "result.json", "bound.json", "env.json"),
    *("train.log", "pictures", "videos"),
)

MODEL = "model._target_"
# Families differ in the data only if the user chose so; the other keys are the family's recipe.
_RECIPE_OF_DATA = ("data.batch_size", "data.eval_batch_size", "data.flip")
#: More keys than these are not told apart: nobody sweeps them, and each costs a column.
MOST_KEYS = 40
#: Metrics of one run.
MOST_METRICS = 1000
#: Pictures of one run, or videos.
MOST_FILES = 40


@dataclass(frozen=True)
class Record:
    """One run, as read for a report.

    Attributes:
        path: the run directory.
        run_id, group: the names of the run and of its sweep.
        state: of `genlab.runs.directory.STATES`, or `missing`, `interrupted`, `unreadable`.
        config: nested, empty where there is none; `flat` has the same under dotted keys.
        result: the content of result.json, empty where there is none.
        error: one line on why there is no result, or None.
        bound: the content of bound.json, empty where there is none.
        asked: for a run that never started, the configuration in its sweep's manifest, under
            dotted keys.
    """

    path: Path
    run_id: str
    group: str
    state: str
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    bound: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def flat(self) -> dict[str, Any]:
        """The configuration under dotted keys, or `asked` where there is none."""
        return flatten(self.config) or dict(self.asked)

    @property
    def is_readable(self) -> bool:
        """Return whether its files may be looked at, for none of them leads out of it."""
        return self.state != "unreadable"

    def files(self, pattern: str) -> list[Path]:
        """Return files of its directory at this pattern, sorted, at most `MOST_FILES`.

        There are none if it is unreadable.
        """
        return sorted(self.path.glob(pattern))[:MOST_FILES] if self.is_readable else []

    @property
    def sweep(self) -> Path:
        """The directory of its sweep."""
        return self.path.parent

    def metric(self, name: str) -> float | None:
        """Return a metric of the result by its name, for instance `test/kl`; None where absent."""
        metrics = self.result.get("metrics")
        value = metrics.get(name) if isinstance(metrics, Mapping) else None
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        return float(value) if math.isfinite(value) else None

    @property
    def family(self) -> str:
        """The class of its model, for instance `VAE`; empty where the configuration has none."""
        return str(self.flat.get(MODEL) or "").rpartition(".")[2]

    @property
    def is_diffusion(self) -> bool:
        """Return whether its KL term has the parts of a diffusion model's."""
        return self.metric("test/kl_diffusion") is not None

    @property
    def bits_per_nat(self) -> float | None:
        """bits/dim of one nat per image, 1 / (D ln 2); None where the metrics do not give it."""
        nats, bits = self.metric("test/neg_elbo"), self.metric("test/bits_per_dim")
        return None if not nats or not bits else bits / nats


def collect(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> list[Record]:
    """Read the records of all runs below one root, or of each run directory in a list.

    Below a root, jobs of the sweeps that never started are included. In a list, every entry becomes
    a record, also one that is missing, so that a report never omits a run of its sweep. What cannot
    be read, a run or a manifest, is a record that says why.

    Raises:
        RunDirectoryError: the root does not exist, or a link in the way of what a report writes
            leads out of a sweep's directory.
    """
    if not isinstance(paths, str | os.PathLike):
        return [_record(Run(path)) for path in paths]
    root = Path(paths).absolute()
    if not root.is_dir():
        raise RunDirectoryError(f"{paths} is not a directory: give one that holds runs")
    records = [_record(run) for run in find_runs(root)]
    for sweep in dict.fromkeys([root, *(record.sweep for record in records)]):
        refuse_links(sweep, ("jobs", "videos"))
        there = [record.path.name for record in records if record.sweep == sweep]
        if sweep.is_relative_to(root):
            records += _never_started(sweep, there)
    return records


def _never_started(sweep: Path, there: Sequence[str]) -> list[Record]:
    """Return the jobs of a sweep that have no run, or the one thing why they are not known."""
    try:
        manifest = Manifest.read(sweep)
    except RunDirectoryError as error:
        return [_unreadable(sweep / FILE_NAME, error)]
    return [_job(sweep, job) for job in (manifest.missing(there) if manifest else ())]


def manifest_of(sweep: Path) -> Manifest | None:
    """Read the manifest of a sweep's directory; None if it has none that can be read."""
    try:
        return Manifest.read(sweep)
    except RunDirectoryError:
        return None


def _unreadable(path: Path, error: Exception) -> Record:
    return Record(
        path=path,
        run_id=printable(path.name, kept=""),
        group=printable(path.parent.name, kept=""),
        state="unreadable",
        error=one_line(str(error)),
    )


def _job(sweep: Path, job: Job) -> Record:
    try:
        refuse_links(sweep, [job.run_id])
    except RunDirectoryError as error:
        return _unreadable(sweep / job.run_id, error)
    known = {
        key: value
        for key, value in flatten(
            plain({k: v for k, v in job.config.items() if k != "hydra"})
        ).items()
        if not (isinstance(value, str) and "${" in value)
    }
    return Record(
        path=sweep / job.run_id,
        run_id=printable(job.run_id, kept=""),
        group=str(known.get("group") or printable(sweep.name, kept="")),
        state="missing",
        error=_error("missing", {}),
        asked=known or plain(job.point) | {"seed": job.seed},
    )


def _record(run: Run) -> Record:
    path = run.path.absolute()
    config: dict[str, Any] = {}
    result: dict[str, Any] = {}
    bound: dict[str, Any] = {}
    try:
        refuse_links(path, _READ)
        status = run.status
        state = "interrupted" if run.is_interrupted else str(status.get("state", "missing"))
        if state not in (*STATES, "interrupted", "missing"):
            raise RunDirectoryError(f"{run.status_path}: state={state!r} is none of a run's")
        error = _error(state, status)
        config = _read_config(run)
        if state == "completed":
            result = run.result or {}
            metrics = result.get("metrics")
            if isinstance(metrics, dict) and len(metrics) > MOST_METRICS:
                raise RunDirectoryError(f"{run.result_path} has more than {MOST_METRICS} metrics")
            error = None if result else "status.json says completed, but there is no result.json"
            bound = run.bound or {}
    except (RunDirectoryError, OSError) as problem:
        state, error = "unreadable", one_line(str(problem))
    group = config.get("group")
    return Record(
        path=path,
        run_id=printable(path.name, kept=""),
        group=str(group) if group is not None else printable(path.parent.name, kept=""),
        state=state,
        config=config,
        result=result,
        error=error,
        bound=bound,
    )


def _read_config(run: Run) -> dict[str, Any]:
    text = run.config_text
    try:
        content = plain(received_yaml.parse(text)) if text is not None else {}
    except ValueError as error:
        raise RunDirectoryError(f"{run.config_path} cannot be read as YAML ({error})") from error
    if not isinstance(content, dict):
        raise RunDirectoryError(f"{run.config_path} does not hold a mapping of keys to values")
    return content


def _error(state: str, status: Mapping[str, Any]) -> str | None:
    if state == "missing":
        return "it was never started: there is no status.json"
    if state == "pending":
        return "it has not started yet"
    if state == "failed":
        message = one_line(str(status.get("message", "")))
        where = f" (in {status['where']})" if status.get("where") else ""
        return one_line(f"{status.get('type', 'error')}: {message}{where}")
    if state == "interrupted":
        last = status.get("heartbeat", "an unknown time")
        return f"its process ended without a word after {last}: run it again to go on"
    if state == "preempted":
        return "it was told to stop: run it again to go on"
    return None


def one_line(text: str, limit: int = 300) -> str:
    """Reduce a text to one line without control characters, which could break a terminal."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def swept_keys(records: Sequence[Record]) -> list[str]:
    """Return the configuration keys that differ between records, unless they follow from others.

    Left out are paths, logger and hardware; of keys with equal values all but the shortest; texts
    that only repeat another key's value; and the keys of a component whose class differs. Where
    the model's class differs, so does the recipe by which each family is trained. Of more than
    `MOST_KEYS` the shortest are returned.
    """
    flats = [record.flat for record in records if record.config]
    keys = dict.fromkeys(key for flat in flats for key in flat)
    differing = [key for key in keys if not is_ignored(key) and differs(key, flats)]
    values = {key: tuple(comparable(flat.get(key)) for flat in flats) for key in differing}

    kept: list[str] = []
    # The shorter key is the one that a person types: kl_weight before kl_schedule.kl_weight.
    for key in sorted(values, key=lambda key: (_is_text(values[key]), key.count("."), key)):
        if not any(_follows(key, other, values) for other in (*kept, *_targets(key, values))):
            kept.append(key)
        if len(kept) == MOST_KEYS:
            break
    return sorted(kept, key=lambda key: (key == "seed", key))


def differs(key: str, flats: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a key has several values in these configurations."""
    first = flats[0].get(key)
    # Most keys are equal in all runs, which is seen without making a text of each value.
    others = [v for f in flats if (v := f.get(key)) != first or type(v) is not type(first)]
    return any(comparable(value) != comparable(first) for value in others)


_ABSENT = json.dumps(None)


def is_ignored(key: str) -> bool:
    """Return whether a key is about the location, the hardware or the name of a run."""
    return key.partition(".")[0] == "hydra" or not is_identity(key)


def comparable(value: Any) -> str:
    """Return the same text for equal values, whether integers or floats."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(float(value))
    return json.dumps(value, sort_keys=True, default=str)


def _is_text(column: Sequence[str]) -> bool:
    return any(value.startswith('"') for value in column)


def _targets(key: str, values: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the swept classes of the components that hold this key, outermost first."""
    parts = key.split(".")
    above = [".".join((*parts[:depth], "_target_")) for depth in range(len(parts))]
    if parts[0] not in ("model", "data") or key in _RECIPE_OF_DATA:
        above.append(MODEL)
    return [target for target in above if target in values and target != key]


def _follows(key: str, other: str, values: Mapping[str, Sequence[str]]) -> bool:
    """Return whether the values of `key` follow from those of `other` in every run."""
    mine, its = values[key], values[other]
    if mine == its:
        return True
    # A class without this key has no value for it, which does not count as a difference.
    repeats = all(a in (_ABSENT, b) for a, b in zip(mine, its, strict=True))
    if repeats and _targets(key, values):
        return True
    if len(set(zip(mine, its, strict=True))) > len(set(its)):
        return False
    if other in _targets(key, values):
        return True
    return all(a.startswith('"') and _bare(b) in a for a, b in zip(mine, its, strict=True))


def _bare(value: str) -> str:
    return value.removesuffix(".0").strip('"')
