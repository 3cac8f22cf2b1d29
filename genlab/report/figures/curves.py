"""Curves over training; a page chooses what they show and gives the rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt

from genlab.report.figures.parts import IS_SHOWN, OPACITY, composed, emphasis, of

HEIGHT = 340
#: The name of the table that a page fills: `run`, `label`, `name`, `at`, `value`.
TABLE = "curves"
# A constant has no distance between ticks from which Vega could tell how many digits to write.
_LABEL = "datum.value && datum.label === '0' ? format(datum.value, '.3~g') : datum.label"


def curves(colours: Mapping[str, str]) -> Any:
    """Draw a line for each run of the table `TABLE`, which the page gives.

    Args:
        colours: of each setting.
    """
    colour = alt.Color(
        "name:N", scale=alt.Scale(domain=list(colours), range=list(colours.values()))
    )
    base = of(TABLE).transform_filter(IS_SHOWN)
    look: dict[str, Any] = {"cursor": "pointer", "aria": False}
    encoded = {
        "x": alt.X("at:Q", axis=alt.Axis(title="step"), scale=alt.Scale(zero=False)),
        "y": alt.Y(
            "value:Q",
            axis=alt.Axis(title="value", labelExpr=_LABEL),
            scale=alt.Scale(zero=False),
        ),
        "color": colour,
    }
    tooltip = [
        alt.Tooltip("label:N", title="run"),
        alt.Tooltip("at:Q", title="at", format="~r"),
        alt.Tooltip("value:Q", title="value", format=",.5~r"),
    ]
    line = base.mark_line(**look, strokeWidth=1.6, opacity=alt.ExprRef(OPACITY))
    # Wide and invisible, so that a mouse finds the points of a thin line.
    points = base.mark_point(**look, size=90, opacity=0)
    layers = [line.encode(**encoded, detail="run:N"), points.encode(**encoded, tooltip=tooltip)]
    return composed(layers, {}, HEIGHT, emphasis())
