"""Quality against latency of a diffusion model at numbers of steps, beside other classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from genlab.report.figures.parts import Row, composed, emphasis, named, of

HEIGHT = 340


def front(rows: Sequence[Row], colours: Mapping[str, str]) -> Any:
    """Draw the KID of each way to sample over the time of one image, with intervals.

    Args:
        rows: `class`, `steps`, `label`, `seconds`, `kid`, `low`, `high`.
        colours: of the classes.
    """
    x = alt.X(
        "seconds:Q",
        scale=alt.Scale(type="log", nice=True),
        axis=alt.Axis(title="seconds to draw one image", format="~g", grid=False),
    )
    scale = alt.Scale(zero=True, nice=True)
    y = alt.Y("kid:Q", scale=scale, axis=alt.Axis(title="KID"))
    colour = named("class", colours)
    tooltip = [
        alt.Tooltip("class:N", title="class"),
        alt.Tooltip("steps:N", title="sampling"),
        alt.Tooltip("seconds:Q", title="seconds", format=",.3~r"),
        alt.Tooltip("kid:Q", title="KID", format=",.3~r"),
        alt.Tooltip("low:Q", title="from", format=",.3~r"),
        alt.Tooltip("high:Q", title="to", format=",.3~r"),
    ]
    base = of("front")
    layers = [
        base.mark_line(strokeWidth=1.8, aria=False).encode(x=x, y=y, color=colour),
        base.mark_rule(strokeWidth=3, opacity=0.5, aria=False).encode(
            x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour
        ),
        base.mark_point(size=40, aria=False).encode(x=x, y=y, color=colour, tooltip=tooltip),
        base.mark_text(align="center", dy=-12, aria=False).encode(x=x, y=y, text="label:N"),
    ]
    return composed(layers, {"front": rows}, HEIGHT, emphasis())
