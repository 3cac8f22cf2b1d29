"""The rate-distortion plane of a sweep as a PNG."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from genlab import charts
from genlab.report.collect import Record, swept_keys
from genlab.report.tables import short_names, sort_key, value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TRAINED, _FORECAST, _COLLAPSED, _GUIDE = "#1f5fa8", "#d9822b", "#b3262e", "#9aa0a6"
_TICKS = [0.0, *(m * 10.0**e for e in range(6) for m in (1, 3))]
_MOST_LABELS = 12
# Trade-off curves fall to the right, so there is room above and right of most points.
_PLACES = [
    (x * distance, y * distance, side)
    for distance in (8, 16, 26)
    for x, y, side in (
        (1, 1, "left"),
        (1, 0, "left"),
        (0, 1.2, "center"),
        (1, -1, "left"),
        (0, -1.2, "center"),
        (-1, 1, "right"),
        (-1, 0, "right"),
        (-1, -1, "right"),
    )
]


def rate_distortion_png(records: Sequence[Record], path: str | os.PathLike[str]) -> bool:
    """Draw each run at its rate (test/kl) and distortion (test/reconstruction), in nats per image.

    Thin lines join points of equal negative ELBO. The linear forecast, where a run has one, is a
    hollow marker on a dashed line. Returns False, with nothing written, if no run has both numbers.
    """
    swept = swept_keys(records)
    records = sorted(
        (r for r in records if _point(r, "test/kl", "test/reconstruction")),
        key=lambda record: [sort_key(record.flat.get(key)) for key in swept],
    )
    if not records:
        return False

    figure = charts.figure()
    axes = figure.add_subplot()
    axes.set_xlabel("rate: kl (nats per image)")
    axes.set_ylabel("distortion: reconstruction (nats per image)")
    axes.set_title(_title(records, swept), loc="left", fontsize=11)

    forecasts = _draw_forecast(axes, records)
    trained = [p for r in records if (p := _point(r, "test/kl", "test/reconstruction"))]
    _set_limits(axes, [*trained, *forecasts])
    labels = _draw_runs(axes, records, trained, swept)
    guides = _draw_equal_elbo(axes)
    figure.legend(loc="outside lower left", ncols=3, fontsize=8, frameon=False)
    figure.canvas.draw()
    _place_labels(axes, labels, [*trained, *forecasts], guides)

    charts.save(figure, path)
    return True


def _point(record: Record, rate: str, distortion: str) -> tuple[float, float] | None:
    x, y = record.metric(rate), record.metric(distortion)
    return None if x is None or y is None else (max(x, 0.0), y)


def data_name(record: Record) -> str:
    """What the run was trained on, as far as its configuration says."""
    flat = record.flat
    for key in ("data.name", "data.source.name", "data.source._target_", "data._target_"):
        if flat.get(key):
            return value_text(key, flat[key])
    return "unnamed data"


def run_label(record: Record, swept: Sequence[str]) -> str:
    """What distinguishes a run from the others, for instance `kl_weight 30`."""
    flat = record.flat
    named = short_names(swept)
    return ", ".join(f"{named[key]} {value_text(key, flat.get(key))}" for key in swept)


def _title(records: Sequence[Record], swept: Sequence[str]) -> str:
    compared = " and ".join(short_names(swept).values()) or records[0].run_id
    data = " and ".join(sorted({data_name(record) for record in records}))
    return f"What {compared} trades: rate against distortion on the test set of {data}"


def _draw_forecast(axes: Axes, records: Sequence[Record]) -> list[tuple[float, float]]:
    points = [_point(r, "forecast/rate", "forecast/reconstruction") for r in records]
    known = sorted(point for point in points if point)
    if known:
        axes.plot(
            *zip(*known, strict=True),
            linestyle="--",
            linewidth=1.2,
            marker="o",
            markersize=7,
            markerfacecolor="white",
            color=_FORECAST,
            label="forecast of the linear model",
            zorder=2,
        )
    return known


def _set_limits(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    x, y = zip(*points, strict=True)
    # Rates span 0 (a collapsed run) to hundreds (weight 0): linear up to 1 nat, then logarithmic.
    axes.set_xscale("symlog", linthresh=1.0, linscale=0.6)
    right = max(*x, 1.0) * 1.8
    axes.set_xlim(-0.15, right)
    axes.set_xticks([tick for tick in _TICKS if tick <= right])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    room = 0.15 * (max(y) - min(y)) or 1.0
    axes.set_ylim(min(y) - room, max(y) + room)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_runs(
    axes: Axes,
    records: Sequence[Record],
    points: Sequence[tuple[float, float]],
    swept: Sequence[str],
) -> list[tuple[str, tuple[float, float]]]:
    """Draw them; the labels that are still to be placed, one for the runs of all seeds."""
    collapsed = [record.metric("test/active_units") == 0 for record in records]
    for chosen, marker, colour, label in (
        (False, "o", _TRAINED, "trained run"),
        (True, "X", _COLLAPSED, "trained run, collapsed: no latent unit is active"),
    ):
        some = [
            p for p, is_collapsed in zip(points, collapsed, strict=True) if is_collapsed == chosen
        ]
        if some:
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
    without_seed = [key for key in swept if key != "seed"]
    if len(without_seed) == 1 and len(without_seed) == len(swept):
        axes.plot(*zip(*sorted(points), strict=True), color=_TRAINED, linewidth=1.2, zorder=3)
    labels: dict[str, tuple[float, float]] = {}
    for record, point in zip(records, points, strict=True):
        labels.setdefault(run_label(record, without_seed) or record.run_id, point)
    return list(labels.items())


def _draw_equal_elbo(axes: Axes) -> list[Any]:
    """Lines of equal neg_elbo = rate + distortion, each with its value where it comes in."""
    (_, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    rates = [right * (i / 400) ** 3 for i in range(401)]
    # Even steps along the diagonal look even, however the scales bend the lines.
    to_data = axes.transAxes + axes.transData.inverted()
    steps = [to_data.transform((f, f)) for f in (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)]
    texts = []
    for level in sorted({float(f"{max(x, 0.0) + y:.3g}") for x, y in steps}):
        axes.plot(rates, [level - r for r in rates], color=_GUIDE, linewidth=0.6, zorder=1)
        x, y = (0.0, level) if level <= top else (level - top, top)
        if bottom < level and x < 0.9 * right:
            text = axes.annotate(
                f"neg_elbo {level:g}",
                (x, y),
                xytext=(2, -2 if level > top else 2),
                textcoords="offset points",
                va="top" if level > top else "bottom",
                fontsize=7,
                color="#6b7075",
                zorder=1,
            )
            texts.append(text)
    return texts


def _merge(
    axes: Axes, labels: Sequence[tuple[str, tuple[float, float]]]
) -> list[tuple[str, tuple[float, float]]]:
    """Labels, with those of runs on the same spot made one, as in `kl_weight 10, 30`."""
    merged: list[tuple[str, tuple[float, float]]] = []
    for label, point in labels:
        x, y = axes.transData.transform(point)
        for i, (other, place) in enumerate(merged):
            u, v = axes.transData.transform(place)
            if math.hypot(x - u, y - v) < 12:
                name = label.partition(" ")[0] + " "
                shared = other.startswith(name) and "," not in label
                merged[i] = (f"{other}, {label.removeprefix(name) if shared else label}", place)
                break
        else:
            merged.append((label, point))
    return merged


def _place_labels(
    axes: Axes,
    labels: Sequence[tuple[str, tuple[float, float]]],
    points: Sequence[tuple[float, float]],
    guides: Sequence[Any],
) -> None:
    """Put each label beside its point where nothing else is; of many, drop what has no room."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    halo = [withStroke(linewidth=2.5, foreground="white")]
    at = [axes.transData.transform(point) for point in points]
    taken = [Bbox.from_bounds(x - 9, y - 9, 18, 18) for x, y in at]
    frame = axes.get_window_extent()
    merged = _merge(axes, labels)
    for label, point in merged:
        text = axes.annotate(
            label,
            point,
            xytext=(8, 0),
            textcoords="offset points",
            fontsize=9,
            va="center",
            path_effects=halo,
            zorder=5,
        )
        for dx, dy, side in _PLACES:
            text.set(position=(dx, dy), horizontalalignment=side)
            box = text.get_window_extent()
            is_inside = frame.containsx(box.x0) and frame.containsx(box.x1)
            if is_inside and not any(box.overlaps(other) for other in taken):
                break
        else:
            if len(merged) > _MOST_LABELS:
                text.remove()
                continue
        taken.append(text.get_window_extent())
    for guide in guides:
        box = guide.get_window_extent()
        if any(box.overlaps(other) for other in taken) or box.x1 > frame.x1:
            guide.remove()
