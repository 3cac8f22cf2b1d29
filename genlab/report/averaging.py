"""Bound and quality of averages of the weights, made after the training, against their length.

They are read from what `genlab evaluate RUN --ema WIDTH,...` leaves in a run directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from genlab.errors import RunDirectoryError
from genlab.media import charts
from genlab.report.bounds import numbers
from genlab.report.collect import Record
from genlab.report.pictures import picture
from genlab.report.quality import Measured
from genlab.report.shown import ShownRun
from genlab.runs.files import refuse_links
from genlab.runs.reading import RESULT, read_json
from genlab.runs.run import Run

FOLDER = "evaluations"
#: Evaluations of a run that are read.
_MOST = 1000
#: The measured quantities that are drawn, with the title of the axis.
_DRAWN = {"neg_elbo": "bound (nats per image)", "fid_infinity": "FID of infinitely many images"}

#: What was measured of each average, by its relative width.
Averages = dict[float, dict[str, Measured]]


def averages_of(run: Path) -> Averages:
    """Return what was measured of the averages of a run, by their relative widths, in order.

    Evaluations of other images or batches than those of the newest are left out, and so are
    samples that were drawn in another way, or measured in other features.

    Raises:
        RunDirectoryError: a file cannot be read, or a link leads out of the run directory.
    """
    found: Averages = {}
    for kept in (_evaluated(run), _measured(run)):
        newest: Any = None
        for width, way, values in kept:
            newest = way if newest is None else newest
            if way == newest:
                for name, value in values.items():
                    found.setdefault(width, {}).setdefault(name, value)
    return dict(sorted(found.items()))


def averages_charts(runs: Sequence[ShownRun]) -> list[Any]:
    """Draw the bound and the quality of averages against their width, for all runs that have any.

    There is a chart of each quantity that is known of two averages of a run or more.
    """
    from genlab.report.figures.averaging import averages

    known = [(run, _readable(run.record)) for run in runs]
    drawn = []
    for name, title in _DRAWN.items():
        rows = [
            {"run": run.number, "label": run.label, "name": run.point, "part": "run"}
            | {"width": width, **one[name]._asdict()}
            for run, found in known
            if sum(name in one for one in found.values()) > 1
            for width, one in found.items()
            if name in one
        ]
        if rows:
            colours = {run.point: run.colour for run, found in known if found}
            drawn.append(averages(name, rows, colours, title))
    return drawn


def draw_averages(run: Path, *paths: str | os.PathLike[str]) -> bool:
    """Draw the same of one run, for all paths once; return False if there is nothing to draw."""
    record = Record(run, run.resolve().name, "", "")
    shown = [ShownRun(record, 0, "average", "average", charts.CATEGORIES[0][0])]
    drawn = averages_charts(shown)
    if drawn:
        charts.save(picture(drawn, shown, "Averages of the weights against their length"), *paths)
    return bool(drawn)


def _readable(record: Record) -> Averages:
    if not record.is_readable:
        return {}
    try:
        return averages_of(record.path)
    except RunDirectoryError:
        return {}


def _evaluated(run: Path) -> Iterator[tuple[float, Any, dict[str, Measured]]]:
    """Yield width, way and metrics of each evaluation of an average, the newest first."""
    refuse_links(run, [FOLDER])
    files = [path for path in (run / FOLDER).glob("*-ema_*.json") if path.is_file()]
    files.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in files[:_MOST]:
        record = read_json(path, RESULT) or {}
        metrics = record.get("metrics")
        if not isinstance(metrics, dict) or (found := numbers([record.get("ema")])) is None:
            continue
        start = f"{record.get('split')}/"
        values = {
            name.removeprefix(start): Measured(*value, *value, *value)
            for name in metrics
            if (value := numbers([metrics[name]])) and name.startswith(start)
        }
        yield found[0], [record.get(key) for key in ("split", "batches", "data", "weights")], values


def _measured(run: Path) -> Iterator[tuple[float, Any, dict[str, Measured]]]:
    """Yield width, way and estimates of each measured quality of an average, the newest first."""
    for record in reversed(Run(run).quality):
        settings, values = record.get("settings"), record.get("values")
        if not isinstance(settings, dict) or not isinstance(values, dict):
            continue
        found = numbers([settings.get("ema")])
        if found is not None:
            same = {k: v for k, v in settings.items() if k not in ("ema", "model")}
            way = [record.get(key) for key in ("features", "split", "samples")]
            yield found[0], [*way, same], _estimates(values)


def _estimates(values: Mapping[str, Any]) -> dict[str, Measured]:
    ends = ("value", "low", "high")
    return {
        name: Measured(*found)
        for name, one in values.items()
        if isinstance(one, dict) and (found := numbers([one.get(end) for end in ends]))
    }
