"""Curves of the training metrics, with few enough points for a page."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from genlab.errors import RunDirectoryError
from genlab.metrics.names import describe, ordered
from genlab.report.collect import MOST_METRICS, Record, one_line
from genlab.runs.run import Run
from genlab.runs.text import printable

log = logging.getLogger(__name__)

_MOST_POINTS = 300
_LEAST_POINTS = 40
# Points of all curves of a page together, so that a page of hundreds of runs has a few megabytes.
_MOST_NUMBERS = 120_000

Curve = tuple[list[int], list[float]]


def training_curves(records: Sequence[Record]) -> dict[str, Any]:
    """Read what was logged while training, by run and by metric, for the script of the page.

    `names` holds the metrics, those of validation first, and `units` the units that the names do
    not state. `runs` holds for each run its distinct lists of steps (`step`), the same in epochs
    (`epoch`) and, for a run that is done, in minutes at its mean speed (`time`), and by metric
    (`y`) the index of such a list and the values.
    """
    curves = [_curves(record) for record in records]
    lengths: dict[str, int] = {}
    for run in curves:
        for name, (steps, _) in run.items():
            lengths[name] = max(lengths.get(name, 0), len(steps))
    names = ordered(name for name, length in lengths.items() if length > 1)
    names.sort(key=lambda name: (not name.startswith("val/"), not name.startswith("train/")))
    count = sum(name in run for run in curves for name in names)
    most = max(_LEAST_POINTS, min(_MOST_POINTS, _MOST_NUMBERS // max(count, 1)))
    units = {name: unit for name in names if (unit := describe(name).unit_text)}
    return {
        "names": names,
        "units": units,
        "runs": [
            _packed(run, names, most, record) for run, record in zip(curves, records, strict=True)
        ],
    }


def thinned(curve: Curve, most: int) -> Curve:
    """Reduce a curve to at most `most` points: the lowest and the highest of each segment."""
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
        rows = Run(record.path).metrics() if record.is_readable else []
    except (RunDirectoryError, OSError) as error:
        log.warning("left out: the curves of %s: %s", record.run_id, one_line(str(error)))
        return {}
    curves: dict[str, Curve] = {}
    for row in rows:
        for name, value in row.items():
            if name in ("step", "epoch") or name.startswith("test/") or not _is_number(value):
                continue
            if name not in curves and len(curves) == MOST_METRICS:
                continue
            steps, values = curves.setdefault(name, ([], []))
            steps.append(row["step"])
            values.append(float(value))
    # A run of millions of rows is thinned here, before the next one is read.
    return {printable(name): thinned(curve, _MOST_POINTS) for name, curve in curves.items()}


def _packed(
    run: Mapping[str, Curve], names: Sequence[str], most: int, record: Record
) -> dict[str, Any]:
    lists: list[list[int]] = []
    packed: dict[str, tuple[int, list[float]]] = {}
    for name in names:
        if name in run:
            steps, values = thinned(run[name], most)
            if steps not in lists:
                lists.append(steps)
            packed[name] = (lists.index(steps), [float(f"{value:.6g}") for value in values])
    axes: dict[str, Any] = {"step": lists}
    for name, total in (("epoch", "epochs"), ("time", "wall_seconds")):
        count, whole = (record.result.get(key) for key in ("steps", total))
        if _is_number(whole) and _is_number(count) and count > 0:
            each = float(whole) / count / (60 if name == "time" else 1)
            axes[name] = [[float(f"{each * step:.6g}") for step in steps] for steps in lists]
    return {**axes, "y": packed}


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
