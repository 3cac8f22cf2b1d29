"""The bounds of diffusion models over log-SNR, from noise to data."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from genlab.media import charts
from genlab.report.collect import Record, swept_keys
from genlab.report.naming import by_settings, data_names
from genlab.report.pictures import averaged, picture
from genlab.report.samplers import differ_in_sampler
from genlab.report.shown import ShownRun
from genlab.runs.points import without_seed

_LONGEST_NAME = 30
_LARGEST = 1e300


class BoundCurve(NamedTuple):
    """Shares of a bound in nats per image per bin of log-SNR, and the edges of the bins."""

    edges: tuple[float, ...]
    nats: tuple[float, ...]

    def points(self, left: float, right: float) -> tuple[list[float], list[float]]:
        """Return the centres of the bins between two log-SNRs, and their shares."""
        bins = zip(self.edges[:-1], self.edges[1:], self.nats, strict=True)
        inside = [((a + b) / 2, nats) for a, b, nats in bins if a >= left and b <= right]
        return [x for x, _ in inside], [y for _, y in inside]


def bound_charts(runs: Sequence[ShownRun]) -> list[Any]:
    """Return the chart of all bounds, and one of their difference from the lowest.

    The second separates lines that overlap in the first; it is there if several settings have the
    same bins. There is none if no run has such a curve, or if only samplers differ, on which a
    bound does not depend.
    """
    from genlab.report.figures.bounds import bounds

    known = [(run, curve) for run in runs if (curve := bound_curve(run.record.bound))]
    varied = without_seed(swept_keys([run.record for run, _ in known]))
    if not known or differ_in_sampler(varied):
        return []
    left, right = shown_log_snr([curve for _, curve in known])
    edges = {edge for _, curve in known for edge in curve.edges if left <= edge <= right}
    ticks = sorted(edges)[:: max(2, len(edges) // 10)]
    colours = {run.point: run.colour for run, _ in known}
    is_discrete = any(run.record.flat.get("model.steps") is not None for run, _ in known)
    # In discrete time L_0 is the term of the first step; in continuous time it belongs to no time.
    title = f"nats per image in each bin{', with L_0' if is_discrete else ''}"
    rows = [row for run, curve in known for row in _rows(run, curve, left, right)]
    drawn = [bounds("bounds", rows, colours, (left, right), ticks, title)]
    if len({curve.edges for _, curve in known}) == 1 and len(colours) > 1:
        lowest, base = min(known, key=lambda found: _neg_elbo(found[0].record))
        below = base.points(left, right)[1]
        rows = [
            row | {"nats": row["nats"] - other}
            for run, curve in known
            for row, other in zip(_rows(run, curve, left, right), below, strict=True)
        ]
        name = lowest.label if len(lowest.label) <= _LONGEST_NAME else "the lowest bound"
        title = f"difference from {name} (nats)"
        drawn.append(bounds("differences", rows, colours, (left, right), ticks, title))
    return drawn


def draw_bounds(records: Sequence[Record], *paths: str | os.PathLike[str]) -> bool:
    """Draw the nats per image of each setting's bound in each bin of log-SNR, for all paths once.

    Seeds are averaged. Returns False, with nothing written, if there is nothing to draw.
    """
    records = [record for record in records if bound_curve(record.bound)]
    runs = averaged(records, _mean_bound)
    drawn = bound_charts(runs)
    if drawn:
        title = _title(records, swept_keys(records))
        charts.save(picture(drawn, runs, title), *paths)
    return bool(drawn)


def _rows(run: ShownRun, curve: BoundCurve, left: float, right: float) -> list[dict[str, Any]]:
    named = {"run": run.number, "label": run.label, "name": run.point, "part": "run"}
    points = zip(*curve.points(left, right), strict=True)
    return [named | {"log_snr": x, "nats": nats} for x, nats in points]


def _neg_elbo(record: Record) -> float:
    return record.metric("test/neg_elbo") or math.inf


def _mean_bound(records: Sequence[Record]) -> dict[str, Any]:
    """Average the seeds of a setting that have the same bins as the first."""
    first, *others = [curve for record in records if (curve := bound_curve(record.bound))]
    alike = [first.nats, *(curve.nats for curve in others if curve.edges == first.edges)]
    mean = list(map(fmean, zip(*alike, strict=True)))
    return {"log_snr_edges": list(first.edges), "nats_by_log_snr": mean}


def bound_curve(bound: Mapping[str, Any]) -> BoundCurve | None:
    """Read the curve from the content of a bound.json; None if it is absent or invalid."""
    edges, nats = numbers(bound.get("log_snr_edges")), numbers(bound.get("nats_by_log_snr"))
    if edges is None or nats is None or len(edges) != len(nats) + 1:
        return None
    return BoundCurve(edges, nats)


def numbers(values: object) -> tuple[float, ...] | None:
    """Convert a list of finite numbers to a tuple; return None for anything else."""
    if not isinstance(values, list):
        return None
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return None
    return tuple(map(float, values)) if all(-_LARGEST < v < _LARGEST for v in values) else None


def shown_log_snr(curves: Sequence[BoundCurve]) -> tuple[float, float]:
    """Return limits from the first to the last bin in which any curve is not zero."""
    used = [
        (low, high)
        for curve in curves
        for low, high, nats in zip(curve.edges[:-1], curve.edges[1:], curve.nats, strict=True)
        if nats != 0
    ]
    lows, highs = zip(*(used or [(0.0, 1.0)]), strict=True)
    return min(lows), max(highs)


def _title(records: Sequence[Record], swept: Sequence[str]) -> str:
    data = data_names(records)
    return f"Where the bound on the test set of {data} is spent{by_settings(swept)}"
