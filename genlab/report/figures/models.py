"""A quantity of several models over a number that was swept in all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from genlab.report.figures.parts import (
    Row,
    composed,
    emphasis,
    logarithmic,
    named,
    with_intervals,
)

HEIGHT = 320
#: Times its lowest positive value that a quantity must span for a logarithmic axis.
_WIDE = 5
#: Part of the lowest mean at which a logarithmic axis begins, at the least.
_BELOW = 2
#: 1e-6 in the place of 0.000001.
_SHORT = "format(datum.value, datum.value != 0 && abs(datum.value) < 0.001 ? '~e' : '~g')"


def models(
    rows: Sequence[Row], table: str, key: str, title: str, colours: Mapping[str, str]
) -> Any:
    """Draw a line with intervals for each name in `of`; a ring marks its lowest value.

    The horizontal axis is logarithmic, and linear about 0 where 0 is one of the values.

    Args:
        rows: `x`, `of`, `value`, `low`, `high`, `is_best`.
        table: the name of these rows in a picture of several charts.
        key: the title of the horizontal axis.
        title: of the vertical axis.
        colours: of the names in `of`, and of those of the other charts of a picture.
    """
    x = alt.X("x:Q", **_across([row["x"] for row in rows]), title=key)
    floor, upward = _upward(rows)
    y = alt.Y("value:Q", **upward, title=title)
    # what a logarithmic axis cannot show of an interval is cut
    rows = [{**row, "end": max(row["low"], floor)} for row in rows]
    colour = named("of", colours, list(dict.fromkeys(row["of"] for row in rows)))
    tooltip = [
        alt.Tooltip("x:Q", title=key, format="~g"),
        alt.Tooltip("of:N", title="of"),
        alt.Tooltip("value:Q", title="mean", format=",.4~r"),
        alt.Tooltip("low:Q", title="from", format=",.4~r"),
        alt.Tooltip("high:Q", title="to", format=",.4~r"),
    ]
    layers = with_intervals(table, x, y, alt.Y("end:Q", title=title), colour, tooltip, ticks=8)
    return composed(layers, {table: rows}, HEIGHT, emphasis())


def _across(values: Sequence[float]) -> dict[str, Any]:
    """Return scale and axis of the settings, with a tick at each of them."""
    ticks = sorted(set(values))
    axis = alt.Axis(values=ticks, labelExpr=_SHORT, grid=False, labelOverlap="greedy")
    positive = [value for value in ticks if value > 0]
    low, high = ticks[0], ticks[-1]
    scale: dict[str, Any] = {"nice": False, "zero": False}
    if low < 0 or len(positive) < 2 or high < _WIDE * positive[0]:
        room = 0.03 * (high - low)
        return {"scale": alt.Scale(domain=[low - room, high + room], **scale), "axis": axis}
    if low > 0:
        domain = [low / 1.5, high * 1.5]
        return {"scale": alt.Scale(type="log", domain=domain, nice=False), "axis": axis}
    # 0 is about a decade to the left of the lowest other value
    constant = positive[0] / 10
    domain = [-constant / 2, high * 1.5]
    scale = {"type": "symlog", "constant": constant, "nice": False}
    return {"scale": alt.Scale(domain=domain, **scale), "axis": axis}


def _upward(rows: Sequence[Row]) -> tuple[float, dict[str, Any]]:
    """Return the lower end of the vertical axis, and its scale and axis."""
    least = min(row["value"] for row in rows)
    lowest, highest = min(row["low"] for row in rows), max(row["high"] for row in rows)
    if least <= 0 or highest < _WIDE * least:
        return lowest, {"scale": alt.Scale(zero=False), "axis": alt.Axis(format=",~r")}
    low, high = max(lowest, least / _BELOW) / 1.25, highest * 1.25
    return low, logarithmic(low, high)
