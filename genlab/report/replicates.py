"""Mean, deviation and 95 % interval of every point of a sweep over its seeds (replicates)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from genlab.metrics.names import describe, ordered
from genlab.report.collect import Record, comparable, one_line
from genlab.report.differences import Difference, differences
from genlab.report.escaping import spreadsheet_cell
from genlab.report.intervals import mean_interval
from genlab.report.naming import number_text, setting_text, sort_key, sweep_names
from genlab.report.tables import Column, Table
from genlab.runs.points import point_text, short_names, without_seed

CAPTION = "mean over seeds +- half of its 95 % interval (Student's t), sd in brackets"


class Estimate(NamedTuple):
    """Mean and standard deviation of n replicates, and the ends of the mean's 95 % interval.

    The interval is Student's t; the last three are None for a single replicate.
    """

    n: int
    mean: float
    deviation: float | None
    low: float | None
    high: float | None

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval, which a table shows after +-."""
        return None if self.high is None else self.high - self.mean

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Compute the estimate of one or more values."""
        known = mean_interval(values)
        if len(values) == 1:
            return cls(1, known.mean, None, None, None)
        return cls(len(values), *known)


@dataclass(frozen=True)
class Replicates:
    """The completed runs at one point.

    Attributes:
        point: value of each swept key.
        runs: number of runs with a result.
        estimates: the estimate of every metric that any of the runs has.
        seeds: the values of every metric by seed.
    """

    point: dict[str, Any]
    runs: int
    estimates: dict[str, Estimate]
    seeds: dict[str, dict[str, float]]


def summarise(records: Sequence[Record], keys: Sequence[str]) -> list[Replicates]:
    """Return one entry for each point of these configuration keys, in order, without the seed.

    Runs of different sweeps are not replicates of each other: the sweep's name is then part of the
    point.
    """
    keys = without_seed(keys)
    sweeps = sweep_names(records)
    groups: dict[str, tuple[dict[str, Any], list[Record]]] = {}
    for record in records:
        sweep = {"sweep": sweeps[record.sweep]} if len(sweeps) > 1 else {}
        point = sweep | {key: record.flat.get(key) for key in keys}
        setting = json.dumps({key: comparable(value) for key, value in point.items()})
        groups.setdefault(setting, (point, []))[1].append(record)
    ordered = sorted(groups.values(), key=lambda g: [sort_key(value) for value in g[0].values()])
    return [_of_point(point, _one_of_each_seed(runs)) for point, runs in ordered]


def _one_of_each_seed(records: Sequence[Record]) -> list[Record]:
    """Return a run of each seed, one with a result if there is one.

    Two runs with the same seed are no replicates: both would narrow the interval.
    """
    found: dict[str, Record] = {}
    for record in records:
        seed = json.dumps(record.flat.get("seed", record.run_id), default=str)
        if seed not in found or (record.result and not found[seed].result):
            found[seed] = record
    return list(found.values())


def _of_point(point: dict[str, Any], records: Sequence[Record]) -> Replicates:
    done = [record.result.get("metrics") for record in records]
    metrics = [found for found in done if isinstance(found, Mapping) and found]
    names = dict.fromkeys(name for found in metrics for name in found)
    seeds = {
        name: {
            str(record.flat.get("seed", record.run_id)): value
            for record in records
            if (value := record.metric(name)) is not None
        }
        for name in names
    }
    estimates = {name: Estimate.of(list(found.values())) for name, found in seeds.items() if found}
    return Replicates(point, len(metrics), estimates, seeds)


def pairs(points: Sequence[Replicates], metric: str) -> list[Difference]:
    """Compare all pairs of points over their common seeds by one metric."""
    return differences([point.seeds.get(metric, {}) for point in points])


def best_point(points: Sequence[Replicates], metric: str) -> int | None:
    """Return the position of the point with the best mean; None if no direction is better."""
    better = describe(metric).better
    means = {i: p.estimates[metric].mean for i, p in enumerate(points) if metric in p.estimates}
    if not better or not means:
        return None
    return (min if better == "lower" else max)(means, key=means.__getitem__)


def has_replicates(points: Sequence[Replicates]) -> bool:
    """Return whether any point has several runs."""
    return any(point.runs > 1 for point in points)


def cells(points: Sequence[Replicates]) -> tuple[list[str], list[list[str]]]:
    """Return the headings, and a row per point: mean +- half the 95 % interval, and deviation."""
    named = short_names(list(points[0].point))
    measured = ordered({name for point in points for name in point.estimates})
    shown = [name for name in measured if name.startswith("test/") and _is_shown(name)]
    names = (one_line(name) for name in (*named.values(), "seeds", *shown))
    headings = [name.removeprefix("test/") for name in names]
    rows = [
        [
            *(one_line(setting_text(key, value)) for key, value in point.point.items()),
            str(point.runs),
            *(_cell(point.estimates.get(name), describe(name).decimals) for name in shown),
        ]
        for point in points
    ]
    return headings, rows


def _is_shown(metric: str) -> bool:
    name = describe(metric)
    return bool(name.heading) and not name.is_part


def table(points: Sequence[Replicates]) -> Table:
    """Return the table of `cells`, for a terminal."""
    headings, texts = cells(points)
    settings = len(points[0].point) + 1
    columns = [
        Column(heading, _text_of(i), is_result=i >= settings) for i, heading in enumerate(headings)
    ]
    return Table([dict(enumerate(row)) for row in texts], columns, CAPTION)


def _text_of(column: int) -> Callable[[Mapping[Any, Any]], str]:
    return lambda row: str(row[column])


def to_text(points: Sequence[Replicates]) -> str:
    """Format the table as plain text."""
    return table(points).to_text()


#: The columns of `rows` that compare a point with the best one, over their common seeds.
_COMPARED = (
    *("compared_with", "common_seeds", "difference", "difference_low_95", "difference_high_95"),
    *("p_adjusted", "comparisons", "more_seeds"),
)


_ESTIMATED = ("n", "mean", "deviation", "low_95", "high_95")
_LAST = ("metric", *_ESTIMATED, *_COMPARED)


def rows(points: Sequence[Replicates]) -> list[dict[str, Any]]:
    """Return a row for each point and metric: its estimate, and its difference from the best point.

    The difference is this point's minus the best one's, over the seeds that both have, with its
    95 % interval; `p_adjusted` is of the paired t-test, adjusted for all pairs of points (Holm),
    and `more_seeds` the number that would settle an undecided one (see `differences`). They are
    None for the best point itself, and where there are not two common seeds.
    """
    found = []
    for metric in dict.fromkeys(name for point in points for name in point.estimates):
        best = best_point(points, metric)
        compared = {} if best is None else _against(best, pairs(points, metric))
        for i, point in enumerate(points):
            if (estimate := point.estimates.get(metric)) is None:
                continue
            numbers = dict(zip(_ESTIMATED, estimate, strict=True))
            row = {**point.point, "metric": metric, **numbers, **dict.fromkeys(_COMPARED)}
            if best is not None and (pair := compared.get(i)) is not None:
                sign = 1 if pair.first == i else -1
                low, high = sorted((sign * pair.low, sign * pair.high))
                values = (
                    *(point_text(points[best].point), pair.n, sign * pair.mean, low, high),
                    *(pair.p, pair.comparisons, pair.more_seeds),
                )
                row |= dict(zip(_COMPARED, values, strict=True))
            found.append((i, row))
    return [row for _, row in sorted(found, key=lambda entry: entry[0])]


def _against(best: int, found: Sequence[Difference]) -> dict[int, Difference]:
    """Map each other point to its difference from the best one."""
    return {
        pair.second if pair.first == best else pair.first: pair
        for pair in found
        if best in (pair.first, pair.second)
    }


def to_csv(found: Sequence[Mapping[str, Any]]) -> str:
    """Format rows as CSV in full precision; a column that a row lacks is empty."""
    file = io.StringIO()
    names = list(dict.fromkeys(name for row in found for name in row))
    first = [name for name in names if name not in _LAST]
    writer = csv.writer(file, lineterminator="\n")
    names = [*first, *(name for name in names if name in _LAST)]
    writer.writerow(map(spreadsheet_cell, names))
    for row in found:
        writer.writerow(spreadsheet_cell(row.get(name)) for name in names)
    return file.getvalue()


def _cell(estimate: Estimate | None, decimals: int) -> str:
    if estimate is None:
        return ""
    mean = number_text(estimate.mean, decimals)
    if estimate.half_width is None or estimate.deviation is None:
        return mean
    return f"{mean} +- {estimate.half_width:.{decimals}f} ({estimate.deviation:.{decimals}f})"
