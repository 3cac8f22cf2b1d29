"""Studies: a question, the settings that are compared, and the jobs that answer it."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString
from hydra.errors import HydraException

from genlab.config.build import build
from genlab.config.check import coerce
from genlab.config.compose import options
from genlab.errors import ConfigError, at_key, under, whole
from genlab.runs.points import Start

Point = dict[str, Any]
_BARE = re.compile(r"(?!(null|true|false|nan|inf)$)[A-Za-z_][\w./-]*", re.IGNORECASE)


class StudyJob(NamedTuple):
    """One job of a study.

    Attributes:
        point: the value of each swept key.
        seed: None if the study does not set it.
        needs: the job whose run it starts from, if any.
        run: the override that names the directory of that run, once it is known.
        start: how it starts from that run, once it is known.
    """

    point: Point
    seed: int | None
    needs: StudyJob | None = None
    run: str = ""
    start: Start | None = None

    def overrides(self) -> list[str]:
        """Return the job as command-line arguments."""
        seed = [] if self.seed is None else [f"seed={self.seed}"]
        return [*_typed(self.point), *seed, *([self.run] if self.run else [])]

    def after(self, run: str | os.PathLike[str], start: Start) -> StudyJob:
        """Return the job with the directory of the run that it starts from."""
        return self._replace(run=f"{start.run}={value_as_override(os.fspath(run))}", start=start)

    @property
    def whole_point(self) -> Point:
        """The point of the job that it needs, and its own."""
        theirs = self.needs.point if self.needs else {}
        named = str if self.start is None else self.start.named
        return {**{named(key): value for key, value in theirs.items()}, **self.point}

    def __str__(self) -> str:
        return " ".join(self._replace(run="", point=self.whole_point).overrides())


@dataclass(frozen=True)
class Search:
    """A search instead of a grid.

    Attributes:
        metric: a name in result.json, for instance `test/neg_elbo`.
        space: key -> {low, high, log, step} or {choices: [...]}.
        direction: minimize or maximize.
        trials: their total number.
        sampler_seed: seed of the proposals.

    Raises:
        ValueError: a value is outside its range.
    """

    metric: str
    space: dict[str, Any]
    direction: Literal["minimize", "maximize"] = "minimize"
    trials: int = 20
    sampler_seed: int = 0

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"trials={self.trials}: 1 or more is needed")
        if not self.space:
            raise ValueError("space={}: give at least one key to vary")
        for key, range_ in self.space.items():
            if problem := _problem_of_range(range_):
                raise ValueError(f"space.{key}={range_!r}: {problem}")


def _problem_of_range(range_: Any) -> str | None:
    remedy = "give {low, high}, if wanted with log: true or step, or {choices: [...]}"
    if not isinstance(range_, Mapping):
        return remedy
    if "choices" in range_:
        if set(range_) != {"choices"} or not isinstance(range_["choices"], list):
            return remedy
        return None if range_["choices"] else "there is nothing to choose from"
    numbers = [range_.get(name) for name in ("low", "high")]
    is_known = {"low", "high"} <= set(range_) <= {"low", "high", "log", "step"}
    if not is_known or any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        return remedy
    if range_["low"] >= range_["high"]:
        return "low must be below high"
    if range_.get("log") and (range_["low"] <= 0 or range_.get("step") is not None):
        return "log: true needs a low above 0 and no step"
    return None


@dataclass(frozen=True)
class First:
    """The runs that the jobs of a study start from, such as the VAEs of latent diffusion models.

    A job needs the run of its seed that has the same values of the keys that both vary.

    Attributes:
        run: the key of a job that takes the directory of its run, such as `model.codec.run`.
        model: the key under which a job's config keeps the model of that run, where it does.
        base, params, zip, points: those of the runs, as in `Study`; the seeds are the study's.
    """

    run: str
    model: str | None = None
    base: list[str] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)
    zip: list[dict[str, Any]] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)

    def study(self, name: str, seeds: Sequence[int]) -> Study:
        """Return the runs as a study of their own.

        Raises:
            ConfigError: as `Study`.
        """
        own = {key: getattr(self, key) for key in ("base", "params", "zip", "points")}
        try:
            return Study(**own, seeds=list(seeds), name=name)
        except ValueError as error:
            raise ConfigError(under("sweep.first", str(error), own)) from error


@dataclass(frozen=True)
class Study:
    """A study, as defined by `conf/sweep/NAME.yaml`.

    Its points are the product of `params` with the rows of each `zip` block, then `points`.

    Attributes:
        question: the question that it answers, in one sentence.
        base: overrides of every job, before those of the command line.
        params: key -> its values in the syntax of Hydra's command line, such as `0,0.1,1` or
            `range(0,5)`; the same as `hydra.sweeper.params`.
        zip: blocks of key -> values in the same syntax, which are combined row by row.
        points: more points, key -> value each.
        seeds: those of the replicates of every point.
        search: a search that proposes the points instead.
        first: runs that are trained before the jobs, which start from them.
        name: the name of its file.

    Raises:
        ValueError: a list is empty or has the wrong length, or a key occurs twice.
    """

    question: str | None = None
    base: list[str] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)
    zip: list[dict[str, Any]] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    search: Search | None = None
    first: First | None = None
    name: str = ""

    def __post_init__(self) -> None:
        for place, value in (
            ("params", self.params),
            *((f"zip[{i}]", block) for i, block in enumerate(self.zip)),
            *((f"points[{i}]", point) for i, point in enumerate(self.points)),
        ):
            if not isinstance(value, Mapping):
                raise ValueError(f"{place}={value!r}: a mapping of keys to values is needed")
            if "seed" in value:
                raise ValueError(f"{place}.seed: seeds are replicates; give them as seeds")
        for seed in self.seeds:
            whole("seeds", seed, 0)
        if self.search is not None and (self.params or self.zip or self.points):
            raise ValueError("search: it proposes the points; leave out params, zip and points")
        if self.search is not None and self.first is not None:
            raise ValueError("search: its jobs cannot start from other runs; leave out first")
        keys = [key for block in self._blocks() for key in block]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"zip: {key} has its values in two places; keep one")
        for block in self._blocks():
            lengths = {key: len(values) for key, values in block.items()}
            if len(set(lengths.values())) > 1:
                told = ", ".join(f"{key} has {n}" for key, n in lengths.items())
                raise ValueError(f"zip: lists that go together are as long ({told})")

    @classmethod
    def of(cls, name: str, node: Mapping[str, Any]) -> Study:
        """Build the study from the content of `conf/sweep/NAME.yaml`.

        Raises:
            ConfigError: naming the key, the value and what would be right.
        """
        given = {key: value for key, value in node.items() if value is not None}
        study: Study = build(coerce({**given, "name": name}, cls, "sweep"), "sweep")
        return study

    def _blocks(self) -> list[dict[str, list[Any]]]:
        """Return the axes: one for each key of `params`, and the blocks of `zip`."""
        written = [*({key: text} for key, text in self.params.items()), *self.zip]
        return [{key: values_of(key, text) for key, text in block.items()} for block in written]

    @property
    def swept(self) -> list[str]:
        """The keys that differ between the jobs, the seed last if there are several."""
        space = [] if self.search is None else [self.search.space]
        keys = dict.fromkeys(
            key for part in (self.params, *self.zip, *self.points, *space) for key in part
        )
        return [*keys, *(["seed"] if len(self.seeds) > 1 else [])]

    def all_points(self) -> list[Point]:
        """Combine the axes in the file's order, the last varying fastest, and add the points."""
        axes = [
            [dict(zip(block, row, strict=True)) for row in zip(*block.values(), strict=True)]
            for block in self._blocks()
        ]
        combined = itertools.product(*axes) if axes else ()
        points = [{k: v for part in parts for k, v in part.items()} for parts in combined]
        return [*points, *map(dict, self.points)]

    def jobs(self) -> list[StudyJob]:
        """Combine every point with every seed; all points of the first seed come first."""
        points = self.all_points() or [{}]
        return [StudyJob(point, seed) for seed in self.seeds or (None,) for point in points]

    def jobs_after(self, needed: Sequence[StudyJob]) -> list[StudyJob]:
        """Combine every job with those of `needed` that it starts from, in the order of these.

        Raises:
            ConfigError: a job has none.
        """
        mine = self.jobs()
        for job in mine:
            if not any(_agree(job, other) for other in needed):
                raise ConfigError(
                    f"sweep.first: no run has the values of the job {job}; give both the same"
                )
        return [job._replace(needs=other) for other in needed for job in mine if _agree(job, other)]

    def with_values(self, key: str, text: str) -> Study:
        """Return the study with other values of one key; those of `seed` are the replicates.

        Raises:
            ConfigError: the key belongs to explicit points or a search, or a list does not fit.
        """
        if key == "seed":
            seeds = values_of(key, text)
            try:
                return self._with(seeds=[whole(key, seed, 0) for seed in seeds])
            except ValueError as error:  # of `whole`, which names the key as it was typed
                raise ConfigError(str(error)) from error
        of_search = {} if self.search is None else self.search.space
        if key in of_search or any(key in point for point in self.points):
            raise ConfigError(
                f"{key}={text}: the study has it in its points or its search; give one value to "
                "fix it"
            )
        if any(key in block for block in self.zip):
            return self._with(zip=[{**b, key: text} if key in b else b for b in self.zip])
        return self._with(params={**self.params, key: text})

    def without(self, key: str) -> Study:
        """Return the study without one key, fixed by the command line; equal points are merged."""

        def rest(part: Mapping[str, Any]) -> dict[str, Any]:
            return {k: v for k, v in part.items() if k != key}

        with at_key("sweep.search"):
            search = self.search and replace(self.search, space=rest(self.search.space))
        blocks = [*filter(None, map(rest, self.zip))]
        study = self._with(params=rest(self.params), zip=blocks, points=[], search=search)
        combined, points = study.all_points(), list[Point]()
        for point in filter(None, map(rest, self.points)):
            if point not in combined + points:
                points.append(point)
        return study._with(points=points)

    def with_trials(self, trials: int) -> Study:
        """Return the study with another number of trials of its search.

        Raises:
            ConfigError: the study has no search.
        """
        if self.search is None:
            raise ConfigError(f"trials={trials}: sweep={self.name} is no search; leave it out")
        with at_key("sweep.search"):
            return replace(self, search=replace(self.search, trials=trials))

    def _with(self, **changed: Any) -> Study:
        try:
            return replace(self, **changed)
        except ValueError as error:
            raise ConfigError(under("sweep", str(error), vars(self))) from error


def _agree(job: StudyJob, other: StudyJob) -> bool:
    """Return whether two jobs have the same seed, and the same values of the keys of both."""
    shared = job.point.keys() & other.point.keys()
    return job.seed == other.seed and all(job.point[key] == other.point[key] for key in shared)


def values_of(key: str, text: Any) -> list[Any]:
    """Return the values, one or more, that `key=text` stands for on Hydra's command line.

    Raises:
        ConfigError: the text cannot be parsed, or is an interval.
    """
    if isinstance(text, list):
        values = ",".join(map(value_as_override, text))
        raise ConfigError(
            f"sweep {key}={text}: write values as on the command line, {key}: {values}"
        )
    text = text if isinstance(text, str) else value_as_override(text)
    parser = OverridesParser.create()
    try:
        override: Override = parser.parse_override(f"{key}={text}")
    except HydraException as error:
        raise ConfigError(
            f"{key}={text!r}: a value, or values such as 0,1,30, is needed"
        ) from error
    if not override.is_sweep_override():
        return [override.value()]
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{key}={text}: a study takes lists of values; a search has its intervals in "
            "search.space of its file"
        )
    glob: Any = override.value()
    if isinstance(glob, Glob):
        return glob.filter(options(key))
    return [parser.parse_override(f"{key}={t}").value() for t in override.sweep_string_iterator()]


def _typed(point: Point) -> list[str]:
    return [f"{key}={value_as_override(value)}" for key, value in point.items()]


def value_as_override(value: Any) -> str:
    """Format a value as Hydra reads it on a command line."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) else QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{value_as_override(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(value_as_override, value)) + "]"
    return str(value)
