"""Draw the bounds of diffusion models over log-SNR, one line a setting, as a PNG."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from genlab.media import matplotlib_charts as charts
from genlab.report.collect import Record, swept_keys
from genlab.report.naming import by_settings, data_names, setting_names, sort_key
from genlab.report.samplers import differ_in_sampler
from genlab.runs.points import short_names, without_seed

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


def bound_by_log_snr_png(records: Sequence[Record], path: str | os.PathLike[str]) -> bool:
    """Draw the nats per image of each setting's bound in each bin of log-SNR.

    Seeds are averaged. If several settings have the same bins, a second panel shows the difference
    from the lowest bound, which separates lines that overlap in the first. Returns False, with
    nothing written, if no run has such curves, or if only samplers differ, on which a bound does
    not depend.
    """
    records = [record for record in records if bound_curve(record.bound)]
    swept = swept_keys(records)
    varied = without_seed(swept)
    if not records or differ_in_sampler(varied):
        return False
    records = sorted(records, key=lambda r: [sort_key(r.flat.get(key)) for key in varied])
    settings: dict[str, list[Record]] = {}
    for name, record in zip(_names(records, swept), records, strict=True):
        settings.setdefault(name, []).append(record)
    curves = {name: _mean_curve(members) for name, members in settings.items()}
    bounds = {name: fmean(map(_neg_elbo, members)) for name, members in settings.items()}
    lowest = min(bounds, key=lambda name: bounds[name])

    alike = len({curve.edges for curve in curves.values()}) == 1
    figure, panels = charts.panels(2 if alike and len(curves) > 1 else 1)
    left, right = shown_log_snr(list(curves.values()))
    lines = {name: curve.points(left, right) for name, curve in curves.items()}
    charts.draw_lines(panels[0], lines, "o")
    is_discrete = any(record.flat.get("model.steps") is not None for record in records)
    # In discrete time L_0 is the term of the first step; in continuous time it belongs to no time.
    panels[0].set_ylabel(f"nats per image in each bin{', with L_0' if is_discrete else ''}")
    for axes in panels[1:]:
        base = lines[lowest][1]
        differences = {
            name: (x, [a - b for a, b in zip(y, base, strict=True)])
            for name, (x, y) in lines.items()
        }
        charts.draw_lines(axes, differences, "o")
        base_name = lowest if len(lowest) <= _LONGEST_NAME else "the lowest bound"
        axes.set_ylabel(f"difference from {base_name} (nats)")
    for axes in panels:
        edges = {edge for curve in curves.values() for edge in curve.edges}
        axes.set_xticks(sorted(edge for edge in edges if left <= edge <= right)[::2])
        axes.set(xlabel="log-SNR (data on the right)", xlim=(left, right))
    figure.suptitle(_title(records, swept), fontsize="medium")
    if len(curves) > 1:
        charts.add_legend(figure)
    charts.save(figure, path)
    return True


def _neg_elbo(record: Record) -> float:
    return record.metric("test/neg_elbo") or math.inf


def _mean_curve(records: Sequence[Record]) -> BoundCurve:
    """Average the seeds of a setting that have the same bins as the first."""
    first, *others = [curve for record in records if (curve := bound_curve(record.bound))]
    alike = [first.nats, *(curve.nats for curve in others if curve.edges == first.edges)]
    return BoundCurve(first.edges, tuple(map(fmean, zip(*alike, strict=True))))


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


def _names(records: Sequence[Record], swept: Sequence[str]) -> list[str]:
    """Name the settings; if only one key is swept, by its value alone."""
    names = setting_names(records, swept)
    varied = without_seed(swept) or swept
    if len(varied) != 1:
        return names
    return [name.removeprefix(f"{short_names(varied)[varied[0]]} ") for name in names]


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
