"""Samplers by their cost and by the distance of their samples to the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from genlab.report.figures.parts import IS_SHOWN, OPACITY, Row, composed, emphasis, of

HEIGHT = 340


def samplers(rows: Sequence[Row], distance: str) -> Any:
    """Draw each run at its evaluations of the network and at its distance to the data.

    Args:
        rows: `run`, `label`, `name`, `evaluations`, `distance`, `colour`.
        distance: the title of the vertical axis.
    """
    x = alt.X(
        "evaluations:Q",
        scale=alt.Scale(type="log", nice=True),
        axis=alt.Axis(title="evaluations of the network for each sample", format="~r", grid=False),
    )
    y = alt.Y("distance:Q", axis=alt.Axis(title=distance), scale=alt.Scale(zero=True))
    tooltip = [
        alt.Tooltip("label:N", title="run"),
        alt.Tooltip("evaluations:Q", title="evaluations"),
        alt.Tooltip("distance:Q", title="distance", format=",.4~r"),
    ]
    points = (
        of("runs")
        .transform_filter(IS_SHOWN)
        .mark_point(opacity=alt.ExprRef(OPACITY), cursor="pointer", aria=False)
    )
    drawn = points.encode(x=x, y=y, color=alt.Color("colour:N", scale=None), tooltip=tooltip)
    return composed([drawn], {"runs": rows}, HEIGHT, emphasis())
