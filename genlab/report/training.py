"""Curves over training, thin enough for a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from genlab.errors import RunDirectoryError
from genlab.report.collect import Record
from genlab.runs.directory import Run

_MOST_POINTS = 300
_LEAST_POINTS = 40
# Of all curves of a page together, so that hundreds of runs still make a page of a few megabytes.
_MOST_NUMBERS = 400_000
_FIRST = ("reconstruction", "kl", "neg_elbo", "loss", "bits_per_dim", "active_units")
_UNITS = {
    **dict.fromkeys(
        ("reconstruction", "kl", "neg_elbo", "kl_prior", "kl_diffusion"), "nats per image"
    ),
    **dict.fromkeys(("mutual_information", "aggregate_kl", "information_cap"), "nats"),
    "images_per_second": "images/s",
}

Curve = tuple[list[int], list[float]]


def training_curves(records: Sequence[Record]) -> dict[str, Any]:
    """What was logged while training, by run and by metric, for the script of the page.

    `names` holds the metrics, those of validation first, `units` the unit of those that have one
    that their name does not say, `runs` of each run its distinct lists of
    steps (`x`) and by metric (`y`) the number of such a list and the values.
    """
    curves = [_curves(record) for record in records]
    lengths: dict[str, int] = {}
    for run in curves:
        for name, (steps, _) in run.items():
            lengths[name] = max(lengths.get(name, 0), len(steps))
    names = sorted((name for name, length in lengths.items() if length > 1), key=_order)
    count = sum(name in run for run in curves for name in names)
    most = max(_LEAST_POINTS, min(_MOST_POINTS, _MOST_NUMBERS // max(count, 1)))
    units = {name: unit for name in names if (unit := _UNITS.get(name.partition("/")[2]))}
    return {
        "names": names,
        "units": units,
        "runs": [_packed(run, names, most) for run in curves],
    }


def thinned(curve: Curve, most: int) -> Curve:
    """At most so many points of a curve: the lowest and the highest of each stretch of it."""
    steps, values = curve
    stretches = most // 2
    if len(steps) <= most or stretches < 1:
        return curve
    kept = {0, len(steps) - 1}
    for i in range(stretches - 1):
        low, high = (len(steps) * j // (stretches - 1) for j in (i, i + 1))
        kept |= {min(range(low, high), key=values.__getitem__)}
        kept |= {max(range(low, high), key=values.__getitem__)}
    chosen = sorted(kept)
    return [steps[i] for i in chosen], [values[i] for i in chosen]


def _curves(record: Record) -> dict[str, Curve]:
    try:
        rows = Run(record.path).metrics()
    except (RunDirectoryError, OSError):
        return {}
    curves: dict[str, Curve] = {}
    for row in rows:
        for name, value in row.items():
            if name in ("step", "epoch") or name.startswith("test/") or not _is_number(value):
                continue
            steps, values = curves.setdefault(name, ([], []))
            steps.append(row["step"])
            values.append(float(value))
    return curves


def _packed(run: Mapping[str, Curve], names: Sequence[str], most: int) -> dict[str, Any]:
    lists: list[list[int]] = []
    packed: dict[str, tuple[int, list[float]]] = {}
    for name in names:
        if name in run:
            steps, values = thinned(run[name], most)
            if steps not in lists:
                lists.append(steps)
            packed[name] = (lists.index(steps), [float(f"{value:.6g}") for value in values])
    return {"x": lists, "y": packed}


def _order(name: str) -> tuple[bool, bool, int, str]:
    split, _, metric = name.partition("/")
    place = _FIRST.index(metric) if metric in _FIRST else len(_FIRST)
    return (split != "val", split != "train", place, name)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
