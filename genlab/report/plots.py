"""The rate-distortion plane of a sweep as a PNG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from genlab import charts
from genlab.report.collect import MODEL, Record, swept_keys
from genlab.report.labels import place_labels
from genlab.report.naming import data_name, run_label, short_names, sort_key

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TRAINED, _FORECAST, _COLLAPSED, _GUIDE = "#1f5fa8", "#d9822b", "#b3262e", "#9aa0a6"
_DIFFUSION = "#2a7f62"
_TICKS = [0.0, *(m * 10.0**e for e in range(-4, 6) for m in (1, 3))]


class _Unit(NamedTuple):
    """Of both axes; up to `linear_to` a logarithmic rate goes on linearly to 0."""

    name: str
    level: str
    linear_to: float

    def scale(self, record: Record) -> float:
        """What one nat per image is in it."""
        return 1.0 if self is _NATS else record.bits_per_nat or 0.0

    def point(self, record: Record, prefix: str, rate: str) -> tuple[float, float] | None:
        x, y = record.metric(f"{prefix}/{rate}"), record.metric(f"{prefix}/reconstruction")
        scale = self.scale(record)
        return None if x is None or y is None else (scale * max(x, 0.0), scale * y)


_NATS = _Unit("nats per image", "neg_elbo {}", 1.0)
_BITS = _Unit("bits/dim", "{} bits/dim", 0.001)


def rate_distortion_png(records: Sequence[Record], path: str | os.PathLike[str]) -> bool:
    """Draw each run at its rate (test/kl) and distortion (test/reconstruction).

    In nats per image, and with a diffusion model among them in bits/dim. Thin lines join points of
    equal negative ELBO. The linear forecast, where a run has one, is a hollow marker on a dashed
    line. Returns False, with nothing written, if no run has both numbers.
    """
    swept = swept_keys(records)
    records = sorted(
        (r for r in records if _NATS.point(r, "test", "kl")),
        key=lambda record: [sort_key(record.flat.get(key)) for key in swept],
    )
    has_bits = all(record.bits_per_nat is not None for record in records)
    unit = _BITS if has_bits and any(record.is_diffusion for record in records) else _NATS
    if not records:
        return False

    figure = charts.figure()
    axes = figure.add_subplot()
    axes.set_xlabel(f"rate: kl ({unit.name})")
    axes.set_ylabel(f"distortion: reconstruction ({unit.name})")
    axes.set_title(_title(records, swept), loc="left", fontsize=11)

    trained = [p for r in records if (p := unit.point(r, "test", "kl"))]
    forecasts = _draw_forecast(
        axes, [p for r in records if (p := unit.point(r, "forecast", "rate"))]
    )
    rates = [x for x, _ in trained]
    bars: list[tuple[float, float]] = []
    if unit is _BITS and not forecasts and max(rates) < 10 * min(rates):
        errors = [unit.scale(r) * (r.metric("test/neg_elbo_se") or 0.0) for r in records]
        _set_close_limits(axes, trained, max(errors))
        bars = _draw_errors(axes, trained, errors)
    else:
        _set_limits(axes, [*trained, *forecasts], unit)
    labels = _draw_runs(axes, records, trained, swept)
    guides = _draw_equal_elbo(axes, trained, unit)
    figure.legend(loc="outside lower left", ncols=3, fontsize=8, frameon=False)
    figure.canvas.draw()
    place_labels(axes, labels, [*trained, *forecasts, *bars], guides)

    charts.save(figure, path)
    return True


def _title(records: Sequence[Record], swept: Sequence[str]) -> str:
    compared = " and ".join(short_names(swept).values()) or records[0].run_id
    data = " and ".join(sorted({data_name(record) for record in records}))
    if MODEL in swept:
        families = " and ".join(sorted({record.family for record in records}))
        return f"Rate against distortion of {families} on the test set of {data}"
    return f"What {compared} trades: rate against distortion on the test set of {data}"


def _draw_forecast(axes: Axes, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    known = sorted(points)
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


def _set_limits(axes: Axes, points: Sequence[tuple[float, float]], unit: _Unit) -> None:
    x, y = zip(*points, strict=True)
    # Rates span 0 (a collapsed run) to hundreds (weight 0): linear up to 1 nat, then logarithmic.
    least = unit.linear_to
    axes.set_xscale("symlog", linthresh=least, linscale=0.6)
    right = max(*x, least) * 1.8
    axes.set_xlim(-0.15 * least, right)
    axes.set_xticks([tick for tick in _TICKS if (tick == 0 or tick >= least) and tick <= right])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    room = 0.15 * (max(y) - min(y)) or least
    # The masses that bits/dim are of have no distortion below 0.
    bottom = min(y) - room if unit is _NATS else max(min(y) - room, -0.2 * room)
    axes.set_ylim(bottom, max(y) + room)
    axes.spines[["top", "right"]].set_visible(False)


def _set_close_limits(
    axes: Axes, points: Sequence[tuple[float, float]], largest_error: float
) -> None:
    """Both axes linear and of one span, so that what is next to nothing also looks like it."""
    x, y = zip(*points, strict=True)
    span = 1.6 * max(
        max(x) - min(x) + 2 * largest_error,
        max(y) - min(y),
        0.05 * max(rate + distortion for rate, distortion in points),
    )
    left, bottom = ((max(values) + min(values) - span) / 2 for values in (x, y))
    left, bottom = max(left, 0.0), max(bottom, -0.05 * span)
    axes.set(xlim=(left, left + span), ylim=(bottom, bottom + span))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_errors(
    axes: Axes, points: Sequence[tuple[float, float]], errors: Sequence[float]
) -> list[tuple[float, float]]:
    """Along the rate, which most of a diffusion model's bound is; places on the bars."""
    known = [(*point, error) for point, error in zip(points, errors, strict=True) if error > 0]
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


def _draw_runs(
    axes: Axes,
    records: Sequence[Record],
    points: Sequence[tuple[float, float]],
    swept: Sequence[str],
) -> list[tuple[str, tuple[float, float]]]:
    """Draw them; the labels that are still to be placed, one for the runs of all seeds."""
    kinds = [_kind(record, MODEL in swept) for record in records]
    for kind in sorted(set(kinds), key=lambda kind: "oXD".index(kind[0])):
        marker, colour, label = kind
        some = [point for point, other in zip(points, kinds, strict=True) if other == kind]
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
    autoencoders = [(r, p) for r, p in zip(records, points, strict=True) if not r.is_diffusion]
    if len(swept_keys([record for record, _ in autoencoders])) == 1 and "seed" not in swept:
        curve = sorted(point for _, point in autoencoders)
        axes.plot(*zip(*curve, strict=True), color=_TRAINED, linewidth=1.2, zorder=3)
    without_seed = [key for key in swept if key != "seed"]
    labels: dict[str, tuple[float, float]] = {}
    for record, point in zip(records, points, strict=True):
        labels.setdefault(run_label(record, without_seed) or record.run_id, point)
    return list(labels.items())


def _kind(record: Record, name_family: bool) -> tuple[str, str, str]:
    """The marker, the colour and the name in the legend of runs like this one."""
    name = record.family if name_family else "trained run"
    if record.is_diffusion:
        return "D", _DIFFUSION, name
    if record.metric("test/active_units") == 0:
        return "X", _COLLAPSED, f"{name}, collapsed: no latent unit is active"
    return "o", _TRAINED, name


def _draw_equal_elbo(axes: Axes, points: Sequence[tuple[float, float]], unit: _Unit) -> list[Any]:
    """Lines of equal neg_elbo = rate + distortion, each with its value where it comes in."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    left = max(left, 0.0)
    rates = [left + (right - left) * (i / 400) ** 3 for i in range(401)]
    texts = []
    for level in _levels(axes) if unit is _NATS else _round_levels(points):
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
    """Even steps along the diagonal look even, however the scales bend the lines."""
    to_data = axes.transAxes + axes.transData.inverted()
    steps = [to_data.transform((f, f)) for f in (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)]
    return sorted({float(f"{max(x, 0.0) + y:.3g}") for x, y in steps})


def _round_levels(points: Sequence[tuple[float, float]]) -> list[float]:
    """Round numbers around those of the points, by which their bounds can be read off."""
    from matplotlib.ticker import MaxNLocator

    bounds = [rate + distortion for rate, distortion in points]
    room = max(0.5 * (max(bounds) - min(bounds)), 0.02 * max(bounds))
    levels = MaxNLocator(10, steps=[1, 2, 5, 10]).tick_values(
        min(bounds) - room, max(bounds) + room
    )
    return [float(level) for level in levels if level > 0]
