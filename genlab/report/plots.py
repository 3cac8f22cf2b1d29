"""The rate-distortion plane of a sweep, as PNG and SVG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from genlab.media import matplotlib_charts as charts
from genlab.report.collect import Record, swept_keys
from genlab.report.labels import place_labels
from genlab.report.naming import run_label
from genlab.report.plane import NATS, Plane, Point, Unit, plane, round_levels
from genlab.runs.points import without_seed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TRAINED, _FORECAST, _COLLAPSED, _GUIDE = "#1f5fa8", "#d9822b", "#b3262e", "#9aa0a6"
_DIFFUSION = "#2a7f62"
_LOOKS = {
    "trained": ("o", _TRAINED),
    "collapsed": ("X", _COLLAPSED),
    "diffusion": ("D", _DIFFUSION),
}
_TICKS = [0.0, *(m * 10.0**e for e in range(-4, 6) for m in (1, 3))]


def draw_rate_distortion(records: Sequence[Record], *paths: str | os.PathLike[str]) -> bool:
    """Draw each run at its rate (test/kl) and distortion (test/reconstruction), for all paths once.

    The unit is nats per image, or bits/dim if one of the runs is of a diffusion model. Thin lines
    join points of equal negative ELBO. The linear forecast, where a run has one, is a hollow marker
    on a dashed line. Returns False, with nothing written, if no run has both numbers.
    """
    shown = plane(records)
    if shown is None:
        return False

    figure = charts.figure()
    axes = figure.add_subplot()
    axes.set_xlabel(f"rate: kl ({shown.unit.name})")
    axes.set_ylabel(f"distortion: reconstruction ({shown.unit.name})")
    axes.set_title(shown.title, loc="left", fontsize=11)

    forecasts = [point for point, _ in shown.forecasts]
    _draw_forecast(axes, forecasts)
    bars: list[Point] = []
    if shown.is_close:
        limits = shown.close_limits()
        axes.set(xlim=limits[0], ylim=limits[1])
        bars = _draw_errors(axes, shown)
    else:
        _set_wide_limits(axes, shown)
    axes.spines[["top", "right"]].set_visible(False)
    labels = _draw_runs(axes, shown)
    guides = _draw_equal_elbo(axes, shown.points, shown.unit)
    figure.legend(loc="outside lower left", ncols=3, fontsize=8, frameon=False)
    charts.literal(figure)
    figure.canvas.draw()
    place_labels(axes, labels, [*shown.points, *forecasts, *bars], guides)

    for path in paths:
        charts.save(figure, path)
    return True


def _draw_forecast(axes: Axes, points: Sequence[Point]) -> None:
    if points:
        axes.plot(
            *zip(*points, strict=True),
            linestyle="--",
            linewidth=1.2,
            marker="o",
            markersize=7,
            markerfacecolor="white",
            color=_FORECAST,
            label="forecast of the linear model",
            zorder=2,
        )


def _set_wide_limits(axes: Axes, shown: Plane) -> None:
    # Rates span 0 (a collapsed run) to hundreds (weight 0): linear up to 1 nat, then logarithmic.
    least = shown.unit.linear_to
    (left, right), heights = shown.wide_limits()
    axes.set_xscale("symlog", linthresh=least, linscale=0.6)
    axes.set(xlim=(left, right), ylim=heights)
    axes.set_xticks([tick for tick in _TICKS if (tick == 0 or tick >= least) and tick <= right])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()


def _draw_errors(axes: Axes, shown: Plane) -> list[Point]:
    """Draw error bars along the rate, most of a diffusion model's bound; return points on them."""
    known = [
        (*point, error)
        for point, error in zip(shown.points, shown.errors, strict=True)
        if error > 0
    ]
    if known:
        x, y, widths = zip(*known, strict=True)
        axes.errorbar(
            x,
            y,
            xerr=widths,
            fmt="none",
            ecolor=_DIFFUSION,
            elinewidth=1,
            capsize=3,
            label="standard error of neg_elbo over test images",
            zorder=3,
        )
    places = (-1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0)
    return [(x + place * error, y) for x, y, error in known for place in places]


def _draw_runs(axes: Axes, shown: Plane) -> list[tuple[str, Point]]:
    """Draw the runs; return the labels that are still to be placed, one for all seeds."""
    runs = list(zip(shown.records, shown.points, strict=True))
    kinds = [shown.kind(record) for record in shown.records]
    order = list(_LOOKS)
    for kind in sorted(set(kinds), key=lambda kind: order.index(kind[0])):
        name, label = kind
        marker, colour = _LOOKS[name]
        some = [point for point, other in zip(shown.points, kinds, strict=True) if other == kind]
        rates, distortions = zip(*some, strict=True)
        axes.scatter(
            rates,
            distortions,
            s=70,
            marker=marker,
            color=colour,
            edgecolors="white",
            linewidths=0.8,
            label=label,
            zorder=4,
        )
    for family in {record.family for record in shown.records if not record.is_diffusion}:
        members = [(r, p) for r, p in runs if r.family == family]
        if len(swept_keys([record for record, _ in members])) == 1 and "seed" not in shown.swept:
            curve = sorted(point for _, point in members)
            axes.plot(*zip(*curve, strict=True), color=_TRAINED, linewidth=1.2, zorder=3)
    settings = without_seed(shown.swept)
    labels: dict[str, Point] = {}
    for record, point in runs:
        labels.setdefault(run_label(record, settings) or record.run_id, point)
    return list(labels.items())


def _draw_equal_elbo(axes: Axes, points: Sequence[Point], unit: Unit) -> list[Any]:
    """Draw lines of equal neg_elbo = rate + distortion, with the value at the edge of the axes."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    left = max(left, 0.0)
    rates = [left + (right - left) * (i / 400) ** 3 for i in range(401)]
    texts = []
    for level in _levels(axes) if unit is NATS else round_levels(points):
        axes.plot(rates, [level - r for r in rates], color=_GUIDE, linewidth=0.6, zorder=1)
        from_above = level - left > top
        x, y = (level - top, top) if from_above else (left, level - left)
        if bottom < y and x < left + 0.9 * (right - left):
            text = axes.annotate(
                unit.level.format(f"{level:g}"),
                (x, y),
                xytext=(2, -2 if from_above else 2),
                textcoords="offset points",
                va="top" if from_above else "bottom",
                fontsize=7,
                color="#6b7075",
                zorder=1,
            )
            texts.append(text)
    return texts


def _levels(axes: Axes) -> list[float]:
    """Return levels at even steps along the drawn diagonal, also where scales bend the lines."""
    to_data = axes.transAxes + axes.transData.inverted()
    steps = [to_data.transform((f, f)) for f in (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)]
    return sorted({float(f"{max(x, 0.0) + y:.3g}") for x, y in steps})
