"""Measured quality of samples and reconstructions against the setting that was swept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from genlab.report.figures.parts import Row, composed, emphasis, of

HEIGHT = 320


def quality(
    rows: Sequence[Row], settings: Sequence[str], title: str, colours: Mapping[str, str]
) -> Any:
    """Draw a line for samples and one for reconstructions over the settings, with intervals.

    Args:
        rows: `setting`, `of`, `value`, `low`, `high`.
        settings: in their order, evenly spaced.
        title: of the horizontal axis.
        colours: of the kinds in `of`.
    """
    x = alt.X("setting:N", sort=list(settings), axis=alt.Axis(title=title, labelAngle=0))
    is_log = all(row["low"] > 0 for row in rows)
    scale = alt.Scale(type="log" if is_log else "linear", nice=True)
    y = alt.Y("value:Q", scale=scale, axis=alt.Axis(title="FID of infinitely many images"))
    kinds = alt.Scale(domain=list(colours), range=list(colours.values()))
    legend = alt.Legend(orient="top-left", title=None, symbolType="stroke")
    colour = alt.Color("of:N", scale=kinds, legend=legend)
    tooltip = [
        alt.Tooltip("setting:N", title=title),
        alt.Tooltip("of:N", title="of"),
        alt.Tooltip("value:Q", title="FID", format=",.4~r"),
        alt.Tooltip("low:Q", title="from", format=",.4~r"),
        alt.Tooltip("high:Q", title="to", format=",.4~r"),
    ]
    base = of("quality")
    layers = [
        base.mark_line(strokeWidth=1.8, aria=False).encode(x=x, y=y, color=colour),
        base.mark_rule(strokeWidth=3, opacity=0.5, aria=False).encode(
            x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour
        ),
        base.mark_point(size=40, aria=False).encode(x=x, y=y, color=colour, tooltip=tooltip),
    ]
    return composed(layers, {"quality": rows}, HEIGHT, emphasis())
