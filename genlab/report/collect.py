"""Read run directories as records: the config of each run, its state, and its result."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from genlab.config import received_yaml
from genlab.errors import RunDirectoryError
from genlab.report.choices import choices
from genlab.runs.directory import STATES
from genlab.runs.files import refuse_links
from genlab.runs.identity import flatten, is_identity
from genlab.runs.manifest import FILE_NAME, Job, Manifest
from genlab.runs.reading import plain
from genlab.runs.run import Run, find_runs
from genlab.runs.text import printable

#: The parts of a run directory that a report reads.
_READ = (
    *("config.yaml", "spec.json", "status.json", "metrics.jsonl", "result.json", "bound.json"),
    *("env.json", "train.log", "pictures", "videos", "evaluations"),
)

MODEL = "model._target_"
# Families differ in the data only if the user chose so; the other keys are the family's recipe.
_RECIPE_OF_DATA = ("data.batch_size", "data.eval_batch_size", "data.flip")
# Keys that change what is shown or measured of a run, or how fast it is, but not its numbers.
_WITHOUT_EFFECT = (
    *("callbacks", "metrics", "forecast", "compile", "channels_last", "matmul_precision"),
    *(
        "data.eval_batch_size",
        "model.iwae_chunk",
        "model.optimizer.fused",
        "model.optimizer.foreach",
    ),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.barebones"),
    *("trainer.enable_checkpointing", "trainer.num_sanity_val_steps", "trainer.logger"),
)
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
        point: for a run in its sweep's manifest, the value of each swept key as it was typed, the
            seed excepted.
        shape: channels, height and width of its images; None where they are not recorded.
        command: the program that made it and its arguments; empty where they are not recorded.
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
    point: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    command: tuple[str, ...] = ()

    @cached_property
    def flat(self) -> dict[str, Any]:
        """The configuration under dotted keys, or `asked` where there is none.

        Components also have the names of their files, as in `model/noise_schedule: cosine`, and
        swept keys that are not in the configuration have their values in `point`.
        """
        flat = flatten(self.config) or dict(self.asked)
        return {**self.point, **choices(self.config), **flat} | {
            key: value for key, value in self.point.items() if "/" in key
        }

    @cached_property
    def quality(self) -> list[dict[str, Any]]:
        """The measurements in its quality.json, the newest last; empty where it is unreadable."""
        try:
            return Run(self.path).quality if self.is_readable else []
        except RunDirectoryError:
            return []

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
    def is_diverged(self) -> bool:
        """Return whether its training diverged: it says so, or none of its numbers is finite."""
        metrics = self.result.get("metrics")
        names = metrics if isinstance(metrics, Mapping) else {}
        is_lost = bool(names) and all(self.metric(name) is None for name in names)
        return self.state == "completed" and (self.result.get("verdict") == "diverged" or is_lost)

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
        records = [_record(Run(path)) for path in paths]
        return [r for sweep, runs in by_sweep(records).items() for r in _listed(sweep, runs)[0]]
    root = Path(paths).absolute()
    if not root.is_dir():
        raise RunDirectoryError(f"{paths} is not a directory: give one that holds runs")
    found: list[Record] = []
    missing: list[Record] = []
    sweeps = by_sweep(_record(run) for run in find_runs(root))
    for sweep in dict.fromkeys((root, *sweeps)):
        refuse_links(sweep, ("jobs", "videos"))
        there, never_started = _listed(sweep, sweeps.get(sweep, []))
        found += there
        missing += never_started if sweep.is_relative_to(root) else []
    return found + missing


def by_sweep(records: Iterable[Record]) -> dict[Path, list[Record]]:
    """Map the directory of each sweep to its records."""
    sweeps: dict[Path, list[Record]] = {}
    for record in records:
        sweeps.setdefault(record.sweep, []).append(record)
    return sweeps


def _listed(sweep: Path, records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Give the runs of a sweep their points in its manifest, and return its jobs without a run.

    If the manifest cannot be read, the one record in the place of those jobs says why.
    """
    try:
        manifest = Manifest.read(sweep)
    except RunDirectoryError as error:
        return list(records), [_unreadable(sweep / FILE_NAME, error)]
    if manifest is None:
        return list(records), []
    jobs = {job.run_id: job for job in manifest.jobs}
    there = [
        replace(r, point=_point(manifest, job), command=_command(manifest, job))
        if (job := jobs.get(r.path.name))
        else r
        for r in records
    ]
    missing = manifest.missing(r.path.name for r in records)
    return there, [
        _job(sweep, job, _point(manifest, job), _command(manifest, job)) for job in missing
    ]


def _command(manifest: Manifest, job: Job) -> tuple[str, ...]:
    """Return the command that runs one job of a sweep in its place."""
    has_group = any(o.startswith("group=") for o in job.overrides)
    return ("train.py", *job.overrides, *([] if has_group else [f"group={manifest.name}"]))


def _point(manifest: Manifest, job: Job) -> dict[str, Any]:
    """Return the typed values of a job, its seed excepted, in the order of the manifest's keys."""
    known = plain(job.point)
    return {key: known[key] for key in manifest.swept if key in known}


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


def _job(sweep: Path, job: Job, point: dict[str, Any], command: tuple[str, ...]) -> Record:
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
        error=one_line(job.blocked) or _error("missing", {}),
        asked={**choices(plain(dict(job.config))), **known}
        if known
        else plain(job.point) | {"seed": job.seed},
        point=point,
        command=command,
    )


def _record(run: Run) -> Record:
    path = run.path.absolute()
    config: dict[str, Any] = {}
    result: dict[str, Any] = {}
    bound: dict[str, Any] = {}
    shape = None
    command: tuple[str, ...] = ()
    try:
        refuse_links(path, _READ)
        status = run.status
        given = status.get("command")
        command = tuple(map(str, given)) if isinstance(given, list) else ()
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
            shape = _shape(run.spec or {})
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
        shape=shape,
        command=command,
    )


def _shape(spec: Mapping[str, Any]) -> tuple[int, ...] | None:
    sides = [spec.get(name) for name in ("channels", "height", "width")]
    return tuple(side for side in sides if isinstance(side, int)) if all(sides) else None


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
        return f"its process ended without a word after {last}"
    if state == "preempted":
        return "it was told to stop"
    return None


def one_line(text: str, limit: int = 300) -> str:
    """Reduce a text to one line without control characters, which could break a terminal."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def swept_keys(records: Sequence[Record]) -> list[str]:
    """Return the keys that these records vary, the seed last.

    Runs of one sweep vary the keys of its manifest, as they were typed, and whatever else differs
    without following from those. Of other runs they are the configuration keys that differ and
    change a result. Left out are paths, logger, callbacks and hardware; of keys with equal values
    all but the shortest; texts that only repeat another key's value; and the keys of a component
    that follow from its name. Where the model's class differs, so does the recipe by which each
    family is trained. Of more than `MOST_KEYS` the first are returned.
    """
    known = [record for record in records if record.config or record.point]
    flats = [record.flat for record in known]
    asked = [_asked(key) for key in dict.fromkeys(key for record in known for key in record.point)]
    typed = [key for key in dict.fromkeys(asked) if differs(key, flats)]
    keys = dict.fromkeys(key for record in known if record.config for key in record.flat)
    differing = [
        key
        for key in keys
        if key not in (*typed, "model") and not changes_nothing(key) and differs(key, flats)
    ]
    values = {k: tuple(comparable(flat.get(k)) for flat in flats) for k in (*typed, *differing)}

    kept = list(typed)
    if all(record.point for record in known) and len(by_sweep(known)) == 1:
        columns = [values[key] for key in (*typed, "seed") if key in values]
        points = [str([column[i] for column in columns]) for i in range(len(known))]
        differing = [k for k in differing if k == "seed" or not _is_function(values[k], points)]
    of_seeds = _of_seeds(differing, known)
    differing = [key for key in differing if key == "seed" or key not in of_seeds]
    # The shorter key is the one that a person types: kl_weight before kl_schedule.kl_weight.
    for key in sorted(differing, key=lambda key: _rank(key, values[key])):
        if len(kept) == MOST_KEYS:
            break
        if not any(_follows(key, other, values) for other in (*kept, *_above(key, values))):
            kept.append(key)
    others = sorted(
        (key for key in kept if key not in typed and key != "seed"),
        key=lambda key: key.replace("/", "."),
    )
    return [*(k for k in typed if k != "seed"), *others, *(["seed"] if "seed" in kept else [])]


def _of_seeds(keys: Sequence[str], records: Sequence[Record]) -> set[str]:
    """Return the keys that differ between replicates of a sweep, and follow from their seeds."""
    found = set()
    for runs in by_sweep(record for record in records if record.point).values():
        points = [comparable(record.point) for record in runs]
        replicates = [f"{p} {r.flat.get('seed')}" for p, r in zip(points, runs, strict=True)]
        for key in keys:
            values = [comparable(record.flat.get(key)) for record in runs]
            if not _is_function(values, points) and _is_function(values, replicates):
                found.add(key)
    return found


def _asked(key: str) -> str:
    """Return the key of a swept key in `Record.flat`: a model is known by its class."""
    return MODEL if key == "model" else key


def differs(key: str, flats: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a key has several values in these configurations."""
    first = flats[0].get(key)
    # Most keys are equal in all runs, which is seen without making a text of each value.
    others = [v for f in flats if (v := f.get(key)) != first or type(v) is not type(first)]
    return any(comparable(value) != comparable(first) for value in others)


_ABSENT = json.dumps(None)


def is_ignored(key: str) -> bool:
    """Return whether a key is about the location, the hardware or the name of a run.

    So is a name in `Record.flat` that stands for the keys of a component.
    """
    return "/" in key or key.partition(".")[0] == "hydra" or not is_identity(key)


def changes_nothing(key: str) -> bool:
    """Return whether a key is not compared, since no result depends on its value."""
    if re.fullmatch(r"model/\w+", key):
        return key == "model/module"
    return is_ignored(key) or any(f"{key}.".startswith(f"{one}.") for one in _WITHOUT_EFFECT)


def comparable(value: Any) -> str:
    """Return the same text for equal values, whether integers or floats."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(float(value))
    return json.dumps(value, sort_keys=True, default=str)


def _rank(key: str, column: Sequence[str]) -> tuple[bool, bool, int, str]:
    is_text = any(value.startswith('"') for value in column) and "/" not in key
    return "/" not in key, is_text, key.count("."), key


def _above(key: str, values: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the swept names and classes of the components that hold this key, outermost first."""
    parts = key.replace("/", ".").split(".")
    above = []
    for depth in range(len(parts)):
        above += ["/".join(parts[:depth]), ".".join((*parts[:depth], "_target_"))]
    if parts[0] not in ("model", "data") or key in _RECIPE_OF_DATA:
        above.append(MODEL)
    return [other for other in above if other in values and other != key]


def _follows(key: str, other: str, values: Mapping[str, Sequence[str]]) -> bool:
    """Return whether the values of `key` follow from those of `other` in every run."""
    mine, its = values[key], values[other]
    if mine == its:
        return True
    # A class without this key has no value for it, which does not count as a difference.
    repeats = all(a in (_ABSENT, b) for a, b in zip(mine, its, strict=True))
    above = _above(key, values)
    if repeats and above:
        return True
    if not _is_function(mine, its):
        return False
    if other in above:
        return True
    return all(a.startswith('"') and _bare(b) in a for a, b in zip(mine, its, strict=True))


def _is_function(mine: Sequence[str], its: Sequence[str]) -> bool:
    """Return whether equal values in `its` have equal values in `mine`."""
    return len(set(zip(mine, its, strict=True))) == len(set(its))


def _bare(value: str) -> str:
    return value.removesuffix(".0").strip('"')
