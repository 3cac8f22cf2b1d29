"""The chart of the rate-distortion plane on a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from genlab.report.figures import (
    FAINT,
    FORECAST,
    INK,
    SOFT,
    VEIL,
    Figure,
    ShownRun,
    without_the_key,
)
from genlab.report.intervals import mean_interval
from genlab.report.markup import plotly_text
from genlab.report.naming import number_text
from genlab.report.plane import Plane, Point, Unit, plane, round_levels

_SYMBOLS = {"trained": "circle", "collapsed": "x", "diffusion": "diamond"}
# Length of the axis up to `linear_to`, in decades of the logarithmic part.
_LINEAR = 0.6
_TICKS = [0.0, *(m * 10.0**e for e in range(-4, 6) for m in (1, 3))]


def plane_figure(runs: Sequence[ShownRun], sweeps: Sequence[str]) -> Figure | None:
    """Draw the rate-distortion plane; None if no run has both numbers."""
    shown = plane([run.record for run in runs])
    if shown is None:
        return None
    by_path = {run.record.path: run for run in runs}
    placed = [by_path[record.path] for record in shown.records]
    axis = _Axis(None if shown.is_close else shown.unit.linear_to)
    (left, right), heights = shown.close_limits() if shown.is_close else shown.wide_limits()
    limits = (axis.place(left), axis.place(right))
    traces = [
        *_guides(shown, axis, limits, heights),
        *_forecasts(shown, axis, by_path),
        *_spread(shown, axis, placed),
        *_runs(shown, axis, placed, sweeps),
    ]
    unit = shown.unit.name
    layout: Figure = {
        "xaxis": {"title": {"text": f"rate: kl ({unit})"}, "range": limits, **axis.ticks(right)},
        "yaxis": {"title": {"text": f"distortion: reconstruction ({unit})"}, "range": heights},
        "hovermode": "closest",
        "showlegend": False,
        "annotations": _names(shown, axis, placed),
    }
    legend = [trace["legend"] for trace in traces if "legend" in trace]
    data = [{key: trace[key] for key in trace if key != "legend"} for trace in traces]
    return {"data": data, "layout": layout, "height": 500, "legend": legend}


@dataclass(frozen=True)
class _Axis:
    """Axis of rates: logarithmic above `linear_to`, linear below it, or linear if it is None."""

    linear_to: float | None

    def place(self, rate: float) -> float:
        if self.linear_to is None:
            return rate
        if rate < self.linear_to:
            return _LINEAR * rate / self.linear_to
        return _LINEAR + math.log10(rate / self.linear_to)

    def rate(self, place: float) -> float:
        if self.linear_to is None:
            return place
        if place < _LINEAR:
            return self.linear_to * place / _LINEAR
        return self.linear_to * 10 ** (place - _LINEAR)

    def ticks(self, right: float) -> Figure:
        least = self.linear_to
        if least is None:
            return {}
        values = [tick for tick in _TICKS if (tick == 0 or tick >= least) and tick <= right]
        return {
            "tickvals": [self.place(value) for value in values],
            "ticktext": [f"{value:g}" for value in values],
        }


def _runs(
    shown: Plane, axis: _Axis, runs: Sequence[ShownRun], sweeps: Sequence[str]
) -> list[Figure]:
    """Return a trace for each kind of run in each sweep, with the kind's marker."""
    groups: dict[tuple[int, str, str], list[int]] = {}
    for i, run in enumerate(runs):
        groups.setdefault((run.sweep, *shown.kind(run.record)), []).append(i)
    traces = []
    for (sweep, kind, name), members in sorted(groups.items(), reverse=True):
        title = f"{name} ({sweeps[sweep]})" if len(sweeps) > 1 else name
        symbol = _SYMBOLS[kind] + ("-open" if sweep % 2 else "")
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                # In the legend a kind has no colour, since colours tell settings apart.
                "legend": [symbol, SOFT, title],
                "x": [axis.place(shown.points[i][0]) for i in members],
                "y": [shown.points[i][1] for i in members],
                "customdata": [runs[i].number for i in members],
                "hoverinfo": "text",
                "hovertext": [_hover(runs[i], shown.points[i], shown.unit) for i in members],
                "marker": {
                    "size": 12,
                    "symbol": symbol,
                    "color": [runs[i].colour for i in members],
                    "line": {"width": 2 if sweep % 2 else 0},
                },
                "meta": "runs",
            }
        )
    return traces


def _hover(run: ShownRun, point: Point, unit: Unit) -> str:
    rate, distortion = point
    decimals = 2 if unit.linear_to == 1 else 3
    lines = [
        f"<b>{plotly_text(run.label)}</b>",
        f"reconstruction {number_text(distortion, decimals)}",
        f"kl {number_text(rate, decimals)}",
        f"neg_elbo {number_text(rate + distortion, decimals)} {unit.name}",
    ]
    active = run.record.metric("test/active_units")
    if active is not None:
        lines.append(f"{active:g} of {run.record.flat.get('model.latent_dim', '?')} units active")
    return "<br>".join(lines)


def _names(shown: Plane, axis: _Axis, runs: Sequence[ShownRun]) -> list[Figure]:
    """Name each setting beside its point, if there are few enough names to be readable."""
    places: dict[str, list[Point]] = {}
    for run, point in zip(runs, shown.points, strict=True):
        places.setdefault(run.point, []).append(point)
    if len(places) > 12:
        return []
    colours = {run.point: run.colour for run in runs}
    (left, right), (bottom, top) = shown.close_limits() if shown.is_close else shown.wide_limits()
    left, width = axis.place(left), axis.place(right) - axis.place(left)
    taken: list[Point] = []
    annotations = []
    texts = without_the_key(list(places))[0]
    if max(map(len, places)) < 16 and len(places) <= 3:
        texts = {name: plotly_text(name) for name in places}
    for name, points in places.items():
        x = axis.place(max(rate for rate, _ in points))
        y = max(distortion for _, distortion in points)
        across, height = (x - left) / width, (y - bottom) / (top - bottom)
        level = sum(abs(across - u) < 0.1 and abs(height - v) < 0.05 for u, v in taken)
        taken.append((across, height))
        is_last = across > 0.7  # a name takes a third of a narrow page
        annotations.append(
            {
                "x": x,
                "y": y,
                "text": texts[name],
                "showarrow": False,
                "xanchor": "right" if is_last else "left",
                "yanchor": "bottom",
                "xshift": -7 if is_last else 7,
                "yshift": 3 + 15 * level,
                "font": {"size": 12, "color": colours[name]},
                "bgcolor": VEIL,
                "borderpad": 0,
            }
        )
    return annotations


def _spread(shown: Plane, axis: _Axis, runs: Sequence[ShownRun]) -> list[Figure]:
    """Return the mean of each setting over its seeds, with the 95 % interval of that mean."""
    groups: dict[tuple[int, str], list[Point]] = {}
    for run, point in zip(runs, shown.points, strict=True):
        groups.setdefault((run.sweep, run.point), []).append(point)
    means = []
    for points in groups.values():
        rate, distortion = (mean_interval(values) for values in zip(*points, strict=True))
        if len(points) > 1:
            means.append((rate, distortion))
    if not means:
        return []
    x = [axis.place(rate.mean) for rate, _ in means]
    bar = {"type": "data", "thickness": 1, "width": 3, "color": INK}
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "legend": ["error", INK, "mean over seeds, with its 95 % interval"],
            "x": x,
            "y": [distortion.mean for _, distortion in means],
            "marker": {"symbol": "line-ew-open", "size": 9, "color": INK},
            "error_x": {
                **bar,
                "symmetric": False,
                "array": [
                    axis.place(rate.high) - at for at, (rate, _) in zip(x, means, strict=True)
                ],
                "arrayminus": [
                    at - axis.place(max(rate.low, 0.0))
                    for at, (rate, _) in zip(x, means, strict=True)
                ],
            },
            "error_y": {
                **bar,
                "array": [distortion.high - distortion.mean for _, distortion in means],
            },
            "hoverinfo": "skip",
        }
    ]


def _forecasts(shown: Plane, axis: _Axis, by_path: Mapping[Path, ShownRun]) -> list[Figure]:
    """Return traces of the linear forecasts, including those with a rate of 0."""
    known = {point: by_path[record.path] for point, record in shown.forecasts}
    if not known:
        return []
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "legend": ["dash", FORECAST, "forecast of the linear model"],
            "x": [axis.place(rate) for rate, _ in known],
            "y": [distortion for _, distortion in known],
            "hoverinfo": "text",
            "hovertext": [
                f"forecast for {plotly_text(run.point)}<br>reconstruction "
                f"{number_text(distortion, 2)}<br>kl {number_text(rate, 2)}"
                for (rate, distortion), run in known.items()
            ],
            "line": {"dash": "dash", "width": 1.5, "color": FORECAST},
            "marker": {"symbol": "circle-open", "size": 9, "color": FORECAST},
        }
    ]
    at_zero = next(((p, run) for p, run in known.items() if p[0] == 0), None)
    threshold = at_zero and at_zero[1].record.metric("forecast/collapse_threshold")
    if at_zero and threshold is not None:
        collapse = f"a linear VAE collapses here, above a weight of {threshold:.3g}"
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "legend": ["star", FORECAST, collapse],
                "x": [axis.place(0.0)],
                "y": [at_zero[0][1]],
                "hoverinfo": "text",
                "hovertext": [collapse],
                "marker": {"symbol": "star-open", "size": 17, "color": FORECAST},
            }
        )
    return traces


def _guides(
    shown: Plane, axis: _Axis, limits: tuple[float, float], heights: tuple[float, float]
) -> list[Figure]:
    """Return lines of equal neg_elbo = rate + distortion, with the value at the axes' edge."""
    (left, right), (bottom, top) = limits, heights
    start = max(left, 0.0)
    places = [start + (right - start) * i / 160 for i in range(161)]
    if shown.unit.linear_to == 1:
        steps = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
        sums = [
            max(axis.rate(left + f * (right - left)), 0.0) + bottom + f * (top - bottom)
            for f in steps
        ]
        levels = sorted({float(f"{value:.3g}") for value in sums})
    else:
        levels = round_levels(shown.points)
    lines: tuple[list[float | None], list[float | None]] = ([], [])
    labels: list[tuple[float, float, str]] = []
    sides = []
    for level in levels:
        inside = [(x, level - axis.rate(x)) for x in places]
        inside = [(x, y) for x, y in inside if bottom <= y <= top]
        if not inside:
            continue
        lines[0].extend([*(x for x, _ in inside), None])
        lines[1].extend([*(y for _, y in inside), None])
        x, y = inside[0]
        from_above = top - y < 0.05 * (top - bottom)
        too_near = labels and x - labels[-1][0] < 0.12 * (right - left)
        if from_above and (too_near or x > right - 0.12 * (right - left)):
            continue
        labels.append((x, y, shown.unit.level.format(f"{level:g}")))
        sides.append("bottom right" if from_above else "top right")
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": lines[0],
            "y": lines[1],
            "line": {"width": 1, "color": FAINT},
            "hoverinfo": "skip",
            "legend": ["line", FAINT, "equal neg_elbo"],
        },
        {
            "type": "scatter",
            "mode": "text",
            "x": [x for x, *_ in labels],
            "y": [y for _, y, _ in labels],
            "text": [text for *_, text in labels],
            "textposition": sides,
            "textfont": {"size": 10, "color": FAINT},
            "hoverinfo": "skip",
        },
    ]
