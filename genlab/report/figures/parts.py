"""Shared parts of the charts of a page: emphasis of runs from outside, zoom, lines, scales."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt

Row = Mapping[str, Any]
#: Lines whose points are drawn and which a legend names; more cannot be told apart.
_FEW = 24
#: How visible a mark of a run is.
OPACITY = "isValid(emphasis) ? emphasis[datum.run] : 1"
#: The marks of runs that are not filtered out.
IS_SHOWN = "!isValid(emphasis) || emphasis[datum.run] > 0"


def emphasis() -> Any:
    """Return the parameter by which a page tells a chart how visible each run is, by number."""
    return alt.param(name="emphasis", value=None)


def zoom() -> Any:
    """Return the parameter that lets a mouse move a chart and, with the shift key, zoom it.

    It is for a page alone: what moves is clipped, which makes a file slow to draw.
    """
    return alt.selection_interval(
        name="zoom",
        bind="scales",
        zoom="wheel![event.shiftKey]",
        translate="[pointerdown[event.pointerType === 'mouse'], window:pointerup] "
        "> window:pointermove!",
    )


def composed(
    layers: Sequence[Any],
    tables: Mapping[str, Iterable[Row]],
    height: float,
    *parameters: Any,
) -> Any:
    """Return a chart of layers, whose data are tables by name.

    Altair copies the data of a chart with each layer that is put on top of it, but not a name.
    """
    chart = alt.layer(*layers).resolve_scale(shape="independent", strokeDash="independent")
    chart = chart.add_params(*parameters).properties(height=height)
    chart.datasets = {name: [dict(row) for row in rows] for name, rows in tables.items()}
    return chart


def of(table: str) -> Any:
    """Return a chart of the rows of a named table."""
    return alt.Chart(alt.NamedData(name=table))


def named(field: str, colours: Mapping[str, str], shown: Sequence[str] = ()) -> Any:
    """Return the colour of names, with a legend above the chart.

    Args:
        field: of the rows, with the name.
        colours: of each name.
        shown: the names in the legend; empty for all.
    """
    values = list(shown) if shown else alt.Undefined
    legend = alt.Legend(orient="top", title=None, symbolType="stroke", values=values)
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    return alt.Color(f"{field}:N", scale=scale, legend=legend)


def logarithmic(low: float, high: float) -> dict[str, Any]:
    """Return scale and ticks of a logarithmic axis between two positive numbers."""
    steps = (1, 2, 5) if high < 1000 * low else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    ticks = [t for power in powers for step in steps if low <= (t := step * 10.0**power) <= high]
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    return {"scale": scale, "axis": alt.Axis(values=ticks, format=",~r")}


def with_intervals(
    table: str, x: Any, y: Any, low: Any, colour: Any, tooltip: Sequence[Any], ticks: float
) -> list[Any]:
    """Return the layers of lines with intervals, and rings around the rows that are `is_best`.

    Args:
        table: its rows have `high` and `is_best`, and the fields of the others.
        low: the lower end of an interval, on the axis of y.
        ticks: pixels across the ends of an interval.
    """
    base = of(table)
    points: dict[str, Any] = {"x": x, "y": y, "color": colour, "tooltip": list(tooltip)}
    bars = base.mark_errorbar(ticks={"size": ticks, "opacity": 1}, rule={"size": 1.5})
    rings = base.transform_filter("datum.is_best").mark_point(
        size=200, filled=False, strokeWidth=1.8, aria=False
    )
    return [
        base.mark_line(strokeWidth=1.2, aria=False).encode(x=x, y=y, color=colour),
        bars.encode(x=x, y=low, y2="high:Q", color=colour),
        base.mark_point(size=22, aria=False).encode(**points),
        rings.encode(**points),
    ]


def lines(
    table: str,
    x: Any,
    y: Any,
    tooltip: Sequence[Any],
    names: Mapping[str, str],
) -> list[Any]:
    """Return the layers of lines of runs, each with its points if there are few names.

    Args:
        table: a row for each point, with `run`, `name`, and the fields of x, y and tooltip; rows of
            one run that have different `part`s are different lines, `forecast` a dashed one.
        names: the colour of each name.
    """
    is_few = len(names) <= _FEW
    colour = alt.Color(
        "name:N",
        scale=alt.Scale(domain=list(names), range=list(names.values())),
        title=None,
        legend=alt.Undefined if is_few else None,
    )
    dash = alt.StrokeDash(
        "part:N", scale=alt.Scale(domain=["run", "forecast"], range=[[1, 0], [5, 4]]), legend=None
    )
    base = of(table).transform_filter(IS_SHOWN)
    look: dict[str, Any] = {"cursor": "pointer", "aria": False}
    drawn = base.mark_line(**look, strokeWidth=1.8, opacity=alt.ExprRef(OPACITY))
    tooltips = [] if is_few else [tooltip[0]]
    layers = [
        drawn.encode(x=x, y=y, color=colour, strokeDash=dash, detail="run:N", tooltip=tooltips)
    ]
    if is_few:
        dots = base.transform_filter("datum.part == 'run'").mark_point(
            **look, size=30, opacity=alt.ExprRef(OPACITY)
        )
        layers.append(dots.encode(x=x, y=y, color=colour, tooltip=list(tooltip)))
    return layers
