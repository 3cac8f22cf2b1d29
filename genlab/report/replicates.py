"""Mean, deviation and 95 % interval of every point of a sweep over its seeds (replicates)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from genlab.metrics.names import describe, ordered
from genlab.report.collect import Record, one_line
from genlab.report.escaping import spreadsheet_cell
from genlab.report.intervals import mean_interval
from genlab.report.naming import number_text, setting_text, sort_key, sweep_names
from genlab.runs.points import short_names, without_seed

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
    """

    point: dict[str, Any]
    runs: int
    estimates: dict[str, Estimate]


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
        groups.setdefault(json.dumps(point, default=str), (point, []))[1].append(record)
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
    values = {
        name: [v for record in records if (v := record.metric(name)) is not None] for name in names
    }
    estimates = {name: Estimate.of(found) for name, found in values.items() if found}
    return Replicates(point, len(metrics), estimates)


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


def to_text(points: Sequence[Replicates]) -> str:
    """Format the table for a terminal."""
    headings, rows = cells(points)
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [headings, ["-" * width for width in widths], *rows]
    text = "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return f"{text}\n{CAPTION}\n"


def to_csv(points: Sequence[Replicates]) -> str:
    """Format every metric as CSV in full precision, one row for each point and metric."""
    file = io.StringIO()
    keys = list(points[0].point)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        [*map(spreadsheet_cell, keys), "metric", "n", "mean", "deviation", "low_95", "high_95"]
    )
    for point in points:
        for name, estimate in point.estimates.items():
            writer.writerow(map(spreadsheet_cell, [*point.point.values(), name, *estimate]))
    return file.getvalue()


def _cell(estimate: Estimate | None, decimals: int) -> str:
    if estimate is None:
        return ""
    mean = number_text(estimate.mean, decimals)
    if estimate.half_width is None or estimate.deviation is None:
        return mean
    return f"{mean} +- {estimate.half_width:.{decimals}f} ({estimate.deviation:.{decimals}f})"
