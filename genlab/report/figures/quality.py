"""Measured quality of samples and reconstructions against the setting that was swept."""

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
    of,
    with_intervals,
)

HEIGHT = 320
_TITLE = "FID of infinitely many images"
#: Part of a value that is left free below the lowest and above the highest of a logarithmic axis.
_ROOM = 0.25


def quality(
    rows: Sequence[Row],
    settings: Sequence[str],
    title: str,
    colours: Mapping[str, str],
    bound: str | None,
) -> Any:
    """Draw a line for samples and one for reconstructions over the settings, with intervals.

    A ring marks the lowest value of each line, and a guide the setting of the best bound.

    Args:
        rows: `setting`, `of`, `value`, `low`, `high`, `is_best`.
        settings: in their order, evenly spaced.
        title: of the horizontal axis.
        colours: of the kinds in `of`.
        bound: the setting whose bound is best; None for no guide.
    """
    x = alt.X(
        "setting:N", sort=list(settings), axis=alt.Axis(title=title, labelAngle=0, grid=False)
    )
    y = alt.Y("value:Q", **_axis(rows), title=_TITLE)
    colour = named("of", colours)
    tooltip = [
        alt.Tooltip("setting:N", title=title),
        alt.Tooltip("of:N", title="of"),
        alt.Tooltip("value:Q", title="FID", format=",.4~r"),
        alt.Tooltip("low:Q", title="from", format=",.4~r"),
        alt.Tooltip("high:Q", title="to", format=",.4~r"),
    ]
    low = alt.Y("low:Q", title=_TITLE)
    lines = with_intervals("quality", x, y, low, colour, tooltip, ticks=10)
    layers = [*_guide(bound, x), *lines]
    best = [] if bound is None else [{"setting": bound, "text": "best bound"}]
    return composed(layers, {"quality": rows, "bound": best}, HEIGHT, emphasis())


def _axis(rows: Sequence[Row]) -> dict[str, Any]:
    """Return scale and axis of the values: logarithmic if all intervals are above 0."""
    lowest, highest = min(row["low"] for row in rows), max(row["high"] for row in rows)
    if lowest <= 0:
        return {"scale": alt.Scale(zero=True)}
    return logarithmic(lowest / (1 + _ROOM), highest * (1 + _ROOM))


def _guide(bound: str | None, x: Any) -> list[Any]:
    if bound is None:
        return []
    base = of("bound")
    rule = base.mark_rule(style="guide", strokeDash=[4, 3], aria=False).encode(x=x)
    note = base.mark_text(style="note", baseline="bottom", aria=False)
    return [rule, note.encode(x=x, y=alt.value(-4), text="text:N")]
