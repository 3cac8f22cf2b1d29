"""Charts of the other test metrics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from genlab.metrics.names import describe, ordered
from genlab.report.bounds import bound_curve
from genlab.report.collect import Record
from genlab.report.figures.diagnostics import by_number, by_setting
from genlab.report.shown import ShownRun

_CAPS = {"active_units": "model.latent_dim", "mutual_information": "test/information_cap"}
_NUMBERED = re.compile(r"(.+)_([+-]?\d+(?:\.\d+)?)")
#: Charts of single metrics; each costs a reader's time.
_MOST = 24


class Diagnostic(NamedTuple):
    """A chart and its heading; a wide one takes a whole row."""

    title: str
    chart: Any
    is_wide: bool


def diagnostics(runs: Sequence[ShownRun]) -> list[Diagnostic]:
    """Return charts of metrics of one kind by their number, then of each other metric.

    A metric that is equal in all runs has no chart.
    """
    found: list[Diagnostic] = []
    has_bound = any(bound_curve(run.record.bound) for run in runs)
    names = _differing(runs)
    kinds: dict[str, list[tuple[float, str]]] = {}
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            kinds.setdefault(match[1], []).append((float(match[2]), name))
    colours = {run.point: run.colour for run in runs}
    for kind, members in kinds.items():
        if len(members) < 3:
            continue
        names = [name for name in names if name not in {name for _, name in members}]
        if kind == "bound_log_snr" and has_bound:
            continue
        key = "log-SNR" if kind == "bound_log_snr" else kind.rpartition("_")[2]
        title = describe(members[0][1]).full_title
        rows = _by_number(runs, sorted(members))
        found.append(Diagnostic(title, by_number(rows, colours, title, key), True))
    return found + [_diagnostic(name, runs) for name in names[:_MOST]]


def _differing(runs: Sequence[ShownRun]) -> list[str]:
    """Return the diagnostics of the test, in order, that have several values."""
    values: dict[str, list[float]] = {}
    for run in runs:
        metrics = run.record.result.get("metrics")
        for metric in metrics if isinstance(metrics, dict) else ():
            split, _, name = str(metric).partition("/")
            value = run.record.metric(str(metric))
            is_listed = describe(name).is_diagnostic or _NUMBERED.fullmatch(name)
            if split == "test" and value is not None and is_listed and not name.endswith("_se"):
                values.setdefault(name, []).append(value)
    return ordered(name for name, known in values.items() if len(set(known)) > 1)


def _by_number(
    runs: Sequence[ShownRun], members: Sequence[tuple[float, str]]
) -> list[dict[str, Any]]:
    return [
        {
            "run": run.number,
            "label": run.label,
            "name": run.point,
            "part": "run",
            "number": number,
            "value": value,
        }
        for run in runs
        for number, name in members
        if (value := run.record.metric(f"test/{name}")) is not None
    ]


def _diagnostic(name: str, runs: Sequence[ShownRun]) -> Diagnostic:
    """Draw one metric of all runs by setting, with its forecast and upper limit if it has any."""
    known = [(r, v) for r in runs if (v := r.record.metric(f"test/{name}")) is not None]
    texts, key = _without_the_key([run.point for run, _ in known])
    rows = [
        {
            "run": run.number,
            "label": run.label,
            "name": texts[run.point],
            "value": value,
            "colour": run.colour,
        }
        for run, value in known
    ]
    expected = {
        texts[run.point]: value
        for run, _ in known
        if (value := run.record.metric(f"forecast/{name}")) is not None
    }
    forecasts = [{"name": setting, "value": value} for setting, value in expected.items()]
    cap = _cap(name, known[0][0].record)
    chart = by_setting(rows, list(dict.fromkeys(texts.values())), key, cap, forecasts)
    return Diagnostic(describe(name).full_title, chart, False)


def _without_the_key(points: Sequence[str]) -> tuple[dict[str, str], str]:
    """Shorten settings of one key to their values, and return the key; else leave them as is."""
    words = {point.partition(" ")[0] for point in points}
    if len(words) == 1 and not any("," in point for point in points):
        return {p: p.partition(" ")[2] or p for p in points}, words.pop()
    return {point: point for point in points}, ""


def _cap(name: str, record: Record) -> float | None:
    source = _CAPS.get(name)
    value = None if source is None else record.metric(source) or record.flat.get(source)
    return float(value) if isinstance(value, int | float) else None
