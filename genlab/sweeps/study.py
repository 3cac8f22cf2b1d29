"""A study: a question, the knobs that it turns, and the jobs that answer it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

from genlab.config.compose import suggestion
from genlab.errors import ConfigError

Point = dict[str, Any]
_BARE = re.compile(r"(?!(null|true|false|nan|inf)$)[A-Za-z_][\w./-]*", re.IGNORECASE)


class StudyJob(NamedTuple):
    """One job: the value of each swept key, the seed (None if the study leaves it alone)."""

    point: Point
    seed: int | None

    def overrides(self) -> list[str]:
        """As on a command line."""
        return [*_typed(self.point), *([] if self.seed is None else [f"seed={self.seed}"])]


@dataclass(frozen=True)
class Search:
    """A search in the place of a grid.

    Attributes:
        metric: a name in result.json, for instance `test/neg_elbo`.
        space: key -> {low, high, log, step} or {choices: [...]}.
        direction: minimize or maximize.
        trials: how many in all.
        sampler_seed: of the proposals.

    Raises:
        ConfigError: for a value outside its range.
    """

    metric: str
    space: Mapping[str, Mapping[str, Any]]
    direction: Literal["minimize", "maximize"] = "minimize"
    trials: int = 20
    sampler_seed: int = 0

    def __post_init__(self) -> None:
        if self.direction not in ("minimize", "maximize"):
            raise ConfigError(
                f"sweep search.direction={self.direction!r}: choose minimize or maximize"
            )
        if isinstance(self.trials, bool) or not isinstance(self.trials, int) or self.trials < 1:
            raise ConfigError(f"sweep search.trials={self.trials!r}: 1 or more is needed")
        if not self.space:
            raise ConfigError("sweep search.space={}: give at least one key to vary")
        for key, range_ in self.space.items():
            _check_range(key, range_)


def _check_range(key: str, range_: Any) -> None:
    place = f"sweep search.space.{key}={range_!r}"
    remedy = "give {low, high}, if wanted with log: true or step, or {choices: [...]}"
    if not isinstance(range_, Mapping):
        raise ConfigError(f"{place}: {remedy}")
    if "choices" in range_:
        if set(range_) != {"choices"} or not isinstance(range_["choices"], Sequence):
            raise ConfigError(f"{place}: {remedy}")
        if not range_["choices"]:
            raise ConfigError(f"{place}: there is nothing to choose from")
        return
    numbers = [range_.get(name) for name in ("low", "high")]
    is_known = {"low", "high"} <= set(range_) <= {"low", "high", "log", "step"}
    if not is_known or any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        raise ConfigError(f"{place}: {remedy}")
    low, high = range_["low"], range_["high"]
    if low >= high:
        raise ConfigError(f"{place}: low must be below high")
    if range_.get("log") and (low <= 0 or range_.get("step") is not None):
        raise ConfigError(f"{place}: log: true needs a low above 0 and no step")


@dataclass(frozen=True)
class Study:
    """points = (product of the grid) x (rows of each zip block), then the explicit points.

    Attributes:
        name: of the study.
        question: what it is to answer, in one sentence.
        base: overrides of every job, before those of whoever asks.
        grid: key -> its values.
        zip: blocks of key -> values that go together, row by row.
        points: key -> value each.
        seeds: each point is run with each; they are replicates and no knob.
        search: proposes the points instead.

    Raises:
        ConfigError: lists that are empty or of unequal length, a key twice, a point twice.
    """

    name: str
    question: str | None = None
    base: Sequence[str] = ()
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    zip: Sequence[Mapping[str, Sequence[Any]]] = ()
    points: Sequence[Mapping[str, Any]] = ()
    seeds: Sequence[int] = ()
    search: Search | None = None

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for place, axes in self._axes():
            for key, values in axes.items():
                if key == "seed":
                    raise ConfigError(f"sweep {place}.seed: a seed is no knob; give it as seeds")
                if isinstance(values, str) or not isinstance(values, Sequence):
                    raise ConfigError(f"sweep {place}.{key}={values!r}: a list is needed")
                if not values:
                    raise ConfigError(f"sweep {place}.{key}=[]: give at least one value")
                if key in seen:
                    raise ConfigError(f"sweep {place}.{key}: the key is in another axis; keep one")
                seen.add(key)
            lengths = {key: len(values) for key, values in axes.items()}
            if place != "grid" and len(set(lengths.values())) > 1:
                told = ", ".join(f"{key} has {n}" for key, n in lengths.items())
                raise ConfigError(f"sweep {place}: lists that go together are as long ({told})")
        for number, point in enumerate(self.points):
            if "seed" in point:
                raise ConfigError(
                    f"sweep points[{number}].seed: a seed is no knob; give it as seeds"
                )
            if not point:
                raise ConfigError(f"sweep points[{number}]={{}}: give at least one key")
        self._check_seeds()
        if self.search is not None and (seen or self.points):
            raise ConfigError("sweep search: a search proposes the points; leave out grid and zip")
        self.all_points()

    def _axes(self) -> list[tuple[str, Mapping[str, Sequence[Any]]]]:
        return [("grid", self.grid), *((f"zip[{i}]", block) for i, block in enumerate(self.zip))]

    def _check_seeds(self) -> None:
        for seed in self.seeds:
            if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
                raise ConfigError(f"sweep seeds={list(self.seeds)}: whole numbers from 0 up")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"sweep seeds={list(self.seeds)}: each seed once")

    @classmethod
    def of(cls, name: str, node: Mapping[str, Any]) -> Study:
        """From the content of `conf/sweep/NAME.yaml`.

        Raises:
            ConfigError: unknown keys, or as the class itself.
        """
        node = {key: value for key, value in node.items() if value is not None}
        known = [f.name for f in fields(cls) if f.name != "name"]
        _refuse_unknown(node, known, "")
        for key, kind in (("grid", Mapping), ("search", Mapping)):
            if not isinstance(node.get(key, {}), kind):
                raise ConfigError(f"sweep {key}={node[key]!r}: a mapping of keys is needed")
        for key in ("base", "zip", "points", "seeds"):
            if isinstance(node.get(key, []), str) or not isinstance(node.get(key, []), Sequence):
                raise ConfigError(f"sweep {key}={node[key]!r}: a list is needed")
        for key in ("zip", "points"):
            for number, block in enumerate(node.get(key, [])):
                if not isinstance(block, Mapping):
                    raise ConfigError(f"sweep {key}[{number}]={block!r}: a mapping is needed")
        if "search" in node:
            searched = node["search"]
            _refuse_unknown(searched, [f.name for f in fields(Search)], "search.")
            for key in ("metric", "space"):
                if key not in searched:
                    raise ConfigError(f"sweep search.{key}: it is needed for a search")
            node["search"] = Search(**searched)
        return cls(name=name, **node)

    @property
    def swept(self) -> list[str]:
        """The keys that are turned, the seed last if there are several."""
        keys = dict.fromkeys(key for _, axes in self._axes() for key in axes)
        keys |= dict.fromkeys(key for point in self.points for key in point)
        keys |= dict.fromkeys(() if self.search is None else self.search.space)
        return [*keys, *(["seed"] if len(self.seeds) > 1 else [])]

    def all_points(self) -> list[Point]:
        """Every combination once, in the order of the file, the last axis fastest.

        Raises:
            ConfigError: one is there twice.
        """
        found = [*self._combined(), *map(dict, self.points)]
        seen: set[str] = set()
        for point in found:
            if (text := _canonical(point)) in seen:
                raise ConfigError(
                    f"sweep: the point {' '.join(_typed(point))} is there twice; keep one"
                )
            seen.add(text)
        return found

    def _combined(self) -> list[Point]:
        """The grid's and the zips' part of them."""
        ways: list[list[Point]] = [[{key: v} for v in values] for key, values in self.grid.items()]
        for block in self.zip:
            rows = zip(*block.values(), strict=True)
            ways.append([dict(zip(block, row, strict=True)) for row in rows])
        combined = [
            {k: v for part in parts for k, v in part.items()} for parts in itertools.product(*ways)
        ]
        return combined if ways else []

    def jobs(self) -> list[StudyJob]:
        """Every point with every seed; all points of a seed first, so that whole replicates end."""
        points = self.all_points() or [{}]
        return [StudyJob(point, seed) for seed in self.seeds or (None,) for point in points]

    def turned(self, key: str, values: Sequence[Any]) -> Study:
        """The study with another list of values for one knob; a seed's are the replicates.

        Raises:
            ConfigError: the knob belongs to explicit points or a search, or a list does not fit.
        """
        if key == "seed":
            return replace(self, seeds=list(values))
        if self.search is not None and key in self.search.space:
            raise ConfigError(
                f"{key}={','.join(map(value_as_override, values))}: the study searches it; give "
                "one value to fix it"
            )
        if any(key in point for point in self.points):
            raise ConfigError(
                f"{key}={','.join(map(value_as_override, values))}: the study sets it point by "
                "point; give one value to fix it"
            )
        for number, block in enumerate(self.zip):
            if key in block:
                blocks = [*self.zip[:number], {**block, key: values}, *self.zip[number + 1 :]]
                return replace(self, zip=blocks)
        return replace(self, grid={**self.grid, key: values})

    def fixed(self, key: str) -> Study:
        """The study without one knob, which somebody has set; points that become equal are one."""
        blocks = [{k: v for k, v in block.items() if k != key} for block in self.zip]
        search = self.search
        if search is not None and key in search.space:
            search = replace(search, space={k: v for k, v in search.space.items() if k != key})
        study = replace(
            self,
            grid={k: v for k, v in self.grid.items() if k != key},
            zip=[block for block in blocks if block],
            points=[],
            search=search,
        )
        known = set(map(_canonical, study._combined()))
        points = []
        for point in self.points:
            rest = {k: v for k, v in point.items() if k != key}
            if rest and _canonical(rest) not in known:
                known.add(_canonical(rest))
                points.append(rest)
        return replace(study, points=points)

    def with_trials(self, trials: int) -> Study:
        """The study with another length of its search.

        Raises:
            ConfigError: it searches nothing.
        """
        if self.search is None:
            raise ConfigError(f"trials={trials}: sweep={self.name} is no search; leave it out")
        return replace(self, search=replace(self.search, trials=trials))


def _typed(point: Point) -> list[str]:
    return [f"{key}={value_as_override(value)}" for key, value in point.items()]


def value_as_override(value: Any) -> str:
    """A value as Hydra reads it on a command line."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        if _BARE.fullmatch(value):
            return value
        escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
        trailing = len(escaped) - len(escaped.rstrip("\\"))
        return f"'{escaped}{chr(92) * trailing}'"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{value_as_override(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(value_as_override, value)) + "]"
    return str(value)


def _canonical(point: Mapping[str, Any]) -> str:
    """The same text for points that are the same run: 30 and 30.0 are one weight."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [plain(v) for v in value]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number else value

    return json.dumps(plain(point), sort_keys=True)


def _refuse_unknown(node: Mapping[str, Any], known: Sequence[str], prefix: str) -> None:
    for key in node:
        if key not in known:
            raise ConfigError(
                f"sweep {prefix}{key}: there is no such key of a study; "
                f"{suggestion(str(key), known)}"
            )
