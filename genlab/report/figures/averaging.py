"""Charts of averages of the weights: bound and quality against their length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from genlab.report.figures.parts import IS_SHOWN, Row, composed, emphasis, lines, of

HEIGHT = 320


def averages(name: str, rows: Sequence[Row], colours: Mapping[str, str], title: str) -> Any:
    """Draw a line for each run over the widths of its averages, with intervals where known.

    Args:
        name: of the chart among those of one picture.
        rows: `run`, `label`, `name` of its setting, `part`, `width`, `value`, `low`, `high`.
        colours: of each setting.
        title: of the vertical axis.
    """
    x = alt.X(
        "width:Q",
        scale=alt.Scale(type="log", nice=False, padding=12),
        axis=alt.Axis(
            title="relative width of the average",
            values=[0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.25],
            format="~r",
            grid=False,
        ),
    )
    scale = alt.Scale(zero=False)
    y = alt.Y("value:Q", axis=alt.Axis(title=title), scale=scale)
    tooltip = [
        alt.Tooltip("label:N", title="run"),
        alt.Tooltip("width:Q", title="width", format="~r"),
        alt.Tooltip("value:Q", title=title, format=",.2f"),
    ]
    layers = lines(name, x, y, tooltip, colours)
    if any(row["low"] < row["high"] for row in rows):
        bars = of(name).transform_filter(IS_SHOWN).mark_rule(strokeWidth=3, opacity=0.4, aria=False)
        layers.insert(0, bars.encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q"))
    shades = alt.Scale(domain=list(colours), range=list(colours.values()))
    legend = alt.Undefined if len(colours) > 1 else None
    colour = alt.Color("name:N", scale=shades, title=None, legend=legend)
    layers = [layer.encode(color=colour) for layer in layers]
    return composed(layers, {name: rows}, HEIGHT, emphasis())
