"""The rate-distortion plane."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from genlab.report.figures import names
from genlab.report.figures.parts import IS_SHOWN, OPACITY, Row, composed, emphasis, of

HEIGHT = 460
_STAR = "M0-1L.24-.32L.95-.31L.38.12L.59.81L0 .4L-.59.81L-.38.12L-.95-.31L-.24-.32Z"
_CROSS = "M-.5-1L0-.5L.5-1L1-.5L.5 0L1 .5L.5 1L0 .5L-.5 1L-1 .5L-.5 0L-1-.5Z"
_HEXAGON = "M0-1L.87-.5L.87 .5L0 1L-.87 .5L-.87-.5Z"
_HOURGLASS = "M-.8-1L.8-1L-.8 1L.8 1Z"
_BOW_TIE = "M-1-.8L1 .8L1-.8L-1 .8Z"
#: Shapes of each kind of run, one for each sweep of a page; Vega's wedge and arrow are too thin.
_SHAPES = {
    "trained": ("circle", "square", "triangle-up", "triangle-right"),
    "collapsed": (_CROSS, "cross", "triangle-down", "triangle-left"),
    "diffusion": ("diamond", _HEXAGON, _HOURGLASS, _BOW_TIE),
}
_TICKS = [0.0, *(m * 10.0**e for e in range(-4, 6) for m in (1, 3))]
#: Share of the axis, in units of its logarithmic part, that is linear.
_CONSTANT = 1 / 3
_LINES = 10
_MOST_NAMES = 24
_EQUAL, _FORECAST = "equal neg_elbo", "forecast of the linear model"


def plane(
    runs: Sequence[Row],
    limits: tuple[tuple[float, float], tuple[float, float]],
    unit: str,
    linear_to: float | None = None,
    forecasts: Sequence[Row] = (),
    spread: Sequence[Row] = (),
    spread_name: str = "",
    collapse: str = "",
    is_joined: bool = False,
) -> Any:
    """Draw runs at their rate and distortion, with lines of equal sum.

    Args:
        runs: a row each: `run`, `label`, `name`, `x`, `y`, `kind`, `place` of its sweep,
            `legend`, `colour`, and the texts `reconstruction`, `kl`, `neg_elbo`, `units`.
        limits: of both axes, in `unit`.
        linear_to: rates below it are on a linear part of the axis, rates above on a logarithmic
            one; None for a linear axis.
        forecasts: rows of `x`, `y`, `label`, `kl`, `reconstruction`.
        spread: rows of `x`, `y`, `left`, `right`, `bottom`, `top`, drawn as bars.
        spread_name, collapse: what the legend says of the bars, and of a forecast at rate 0.
        is_joined: whether a line joins the runs in the order of their rates.
    """
    (left, right), (bottom, top) = limits
    axis = _Axis(left, right, linear_to)
    frame = names.Frame(HEIGHT, axis.place, lambda y: (y - bottom) / (top - bottom))
    scale: dict[str, Any] = {"domain": [left, right], "nice": False, "zero": False}
    ticks: dict[str, Any] = {}
    if linear_to is not None:
        scale |= {"type": "symlog", "constant": linear_to * _CONSTANT}
        ticks = {"values": [t for t in _TICKS if (t == 0 or t >= linear_to) and t <= right]}
    x = alt.X(
        "x:Q",
        scale=alt.Scale(**scale),
        axis=alt.Axis(title=f"rate: kl ({unit})", format="~r", grid=False, **ticks),
    )
    y = alt.Y(
        "y:Q",
        scale=alt.Scale(domain=[bottom, top], nice=False, zero=False),
        axis=alt.Axis(title=f"distortion: reconstruction ({unit})", grid=False),
    )
    levels = round_levels(axis, bottom, top)
    layers = [_equal(x, y)]
    if forecasts:
        layers += _forecasts(forecasts, collapse, x, y)
    if is_joined:
        joined = of("runs").mark_line(strokeWidth=1.2, style="soft", aria=False)
        layers.append(joined.encode(x=x, y=y))
    if spread:
        layers += _spread(spread_name, x, y)
    layers += [_runs(runs, x, y), *names.layers("names", x, y)]
    points = [(row["x"], row["y"]) for row in (*runs, *forecasts)]
    for row in spread:
        points += _between([(row["left"], row["y"]), (row["right"], row["y"])], frame, axis)
        points += _between([(row["x"], row["bottom"]), (row["x"], row["top"])], frame, axis)
    for line in ([*runs] if is_joined else [], forecasts):
        points += _between([(row["x"], row["y"]) for row in line], frame, axis)
    shown = [*_named(runs, frame), *_level_names(levels, axis, bottom, top)]
    tables = {
        "equal": _equal_rows(levels, axis, bottom, top),
        "forecasts": [{**row, "legend": _FORECAST} for row in forecasts],
        "collapse": [{**row, "legend": collapse} for row in forecasts if row["x"] == 0][:1],
        "spread": [{**row, "legend": spread_name} for row in spread],
        "runs": runs,
        "names": names.place(shown, points, frame),
    }
    return composed(layers, tables, HEIGHT, emphasis())


class _Axis:
    """The axis of rates: where a rate is, as a fraction from the left, and which rate is there."""

    def __init__(self, left: float, right: float, linear_to: float | None) -> None:
        self.constant = None if linear_to is None else linear_to * _CONSTANT
        self.start, self.end = self._bend(left), self._bend(right)

    def place(self, rate: float) -> float:
        return (self._bend(rate) - self.start) / (self.end - self.start)

    def rate(self, place: float) -> float:
        bent = self.start + place * (self.end - self.start)
        if self.constant is None:
            return bent
        return math.copysign(self.constant * math.expm1(abs(bent)), bent)

    def _bend(self, rate: float) -> float:
        if self.constant is None:
            return rate
        return math.copysign(math.log1p(abs(rate) / self.constant), rate)


def round_levels(axis: _Axis, bottom: float, top: float) -> list[float]:
    """Return round sums of rate and distortion, at nearly even steps along the diagonal.

    Each is a multiple of the step to the one before it, 1, 2 or 5 times a power of ten, which grows
    where the axis of rates is logarithmic.
    """

    def sum_at(place: float) -> float:
        return max(axis.rate(place), 0.0) + bottom + place * (top - bottom)

    levels: list[float] = []
    place = 0.02
    level = sum_at(place)
    while place < 0.97 and len(levels) < 3 * _LINES:
        wanted = sum_at(min(place + 1 / _LINES, 1.0)) - sum_at(place)
        step = round_step(wanted)
        level = step * math.ceil((level + (0.6 * wanted if levels else 0.0)) / step - 1e-9)
        place = _find(sum_at, level)
        if place < 0.98:
            levels.append(float(f"{level:.12g}"))
    return levels


def round_step(least: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(max(least, 1e-12)))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= least * (1 - 1e-9))


def _find(sum_at: Any, level: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if sum_at(middle) < level else (low, middle)
    return high


def _equal_rows(
    levels: Sequence[float], axis: _Axis, bottom: float, top: float
) -> list[dict[str, Any]]:
    """Return lines of equal neg_elbo across the plot, and beyond its upper and lower edge."""
    rows = []
    room = top - bottom
    for level in levels:
        for i in range(81):
            rate = max(axis.rate(i / 80), 0.0)
            if bottom - room <= level - rate <= top + room:
                rows.append({"x": rate, "y": level - rate, "level": level, "legend": _EQUAL})
    return rows


def _equal(x: Any, y: Any) -> Any:
    line = of("equal").mark_line(clip=True, strokeWidth=0.8, style="guide", aria=False)
    return line.encode(x=x, y=y, detail="level:N", strokeDash=_dash(_EQUAL, [1, 0]))


def _dash(name: str, dash: list[int]) -> Any:
    return alt.StrokeDash(
        "legend:N",
        scale=alt.Scale(domain=[name], range=[dash]),
        legend=alt.Legend(title=None, orient="bottom", symbolSize=300),
    )


def _forecasts(rows: Sequence[Row], collapse: str, x: Any, y: Any) -> list[Any]:
    base = of("forecasts")
    tooltip = [
        alt.Tooltip("label:N", title="forecast for"),
        alt.Tooltip("reconstruction:N", title="reconstruction"),
        alt.Tooltip("kl:N", title="kl"),
    ]
    line = base.mark_line(strokeWidth=1.5, style="forecast", aria=False)
    points = base.mark_point(size=60, style="forecast", filled=False, aria=False)
    layers = [
        line.encode(x=x, y=y, strokeDash=_dash(_FORECAST, [5, 4])),
        points.encode(x=x, y=y, tooltip=tooltip),
    ]
    if collapse and any(row["x"] == 0 for row in rows):
        shape = alt.Shape(
            "legend:N",
            scale=alt.Scale(domain=[collapse], range=[_STAR]),
            legend=alt.Legend(title=None, orient="bottom"),
        )
        star = of("collapse").mark_point(size=170, style="forecast", filled=True, aria=False)
        tooltip = [alt.Tooltip("legend:N", title="forecast")]
        layers.append(star.encode(x=x, y=y, shape=shape, tooltip=tooltip))
    return layers


def _spread(name: str, x: Any, y: Any) -> list[Any]:
    rule = of("spread").mark_rule(strokeWidth=1.2, style="name", aria=False)
    across = rule.encode(x=_at(x, "left"), x2="right:Q", y=y, strokeDash=_dash(name, [1, 0]))
    up = rule.encode(x=x, y=_at(y, "bottom"), y2="top:Q")
    return [across, up]


def _at(channel: Any, field: str) -> Any:
    copy = channel.copy()
    copy.shorthand = f"{field}:Q"
    return copy


def _runs(runs: Sequence[Row], x: Any, y: Any) -> Any:
    legends = {row["legend"]: row for row in runs}
    shapes = {
        name: _SHAPES[row["kind"]][row["place"] % len(_SHAPES[row["kind"]])]
        for name, row in legends.items()
    }
    mark = (
        of("runs")
        .transform_filter(IS_SHOWN)
        .mark_point(
            filled=True,
            size=110,
            opacity=1,
            fillOpacity=alt.ExprRef(OPACITY),
            aria=False,
            cursor="pointer",
        )
    )
    return mark.encode(
        x=x,
        y=y,
        color=alt.Color("colour:N", scale=None),
        shape=alt.Shape(
            "legend:N",
            scale=alt.Scale(domain=list(shapes), range=list(shapes.values())),
            legend=alt.Legend(title=None, orient="bottom", columns=1),
        ),
        tooltip=[
            alt.Tooltip("label:N", title="run"),
            *(alt.Tooltip(f"{name}:N", title=name) for name in ("reconstruction", "kl")),
            alt.Tooltip("neg_elbo:N", title="neg_elbo"),
            alt.Tooltip("units:N", title="active units"),
        ],
    )


def _between(
    line: Sequence[tuple[float, float]], frame: names.Frame, axis: _Axis
) -> list[tuple[float, float]]:
    """Return points on the straight pieces of a drawn line, which names keep off."""
    found = []
    for (x, y), (u, v) in itertools.pairwise(line):
        across, end = frame.across(x), frame.across(u)
        found += [
            (axis.rate(across + i / 24 * (end - across)), y + i / 24 * (v - y)) for i in range(25)
        ]
    return found


def _named(runs: Sequence[Row], frame: names.Frame) -> list[names.Name]:
    """Name each setting once, and settings at one place together, as in `kl_weight 10, 30`.

    Where there are many places none is named.
    """
    settings: dict[str, Row] = {}
    for row in runs:
        settings.setdefault(row["name"], row)
    merged: list[tuple[list[str], Row]] = []
    for name, row in settings.items():
        at = frame.across(row["x"]), frame.up(row["y"])
        for texts, other in merged:
            if math.dist(at, (frame.across(other["x"]), frame.up(other["y"]))) < 0.02:
                texts.append(name)
                break
        else:
            if len(merged) == _MOST_NAMES:
                return []
            merged.append(([name], row))
    return [names.Name(_joined(texts), row["x"], row["y"], row["colour"]) for texts, row in merged]


def _joined(texts: Sequence[str], longest: int = 40) -> str:
    key = texts[0].partition(" ")[0] + " "
    is_of_one_key = all(text.startswith(key) and "," not in text for text in texts)
    rest = [text.removeprefix(key) if is_of_one_key else text for text in texts[1:]]
    joined = ", ".join([texts[0], *rest])
    if len(joined) <= longest:
        return joined
    more = f" and {len(rest)} more" if rest else ""
    return f"{texts[0] if len(texts[0]) <= longest else texts[0][: longest - 1] + '…'}{more}"


def _level_names(
    levels: Sequence[float], axis: _Axis, bottom: float, top: float
) -> list[names.Name]:
    """Write the value of each line where it leaves the plot on the left or at the top."""
    found = []
    for level in levels:
        start = max(axis.rate(0.0), 0.0)
        rate = level - top if level - start > top else start
        found.append(names.Name(f"{level:g}", rate, level - rate, None, 11))
    return found
