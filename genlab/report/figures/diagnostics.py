"""A metric of the test by setting, or by the number in its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from genlab.report.figures.parts import IS_SHOWN, OPACITY, Row, composed, emphasis, lines, of

HEIGHT = 170


def by_setting(
    rows: Sequence[Row],
    names: Sequence[str],
    key: str,
    cap: float | None = None,
    forecasts: Sequence[Row] = (),
) -> Any:
    """Draw the value of each run above its setting, from zero on.

    Args:
        rows: `run`, `label`, `name` of the setting, `value`, `colour`.
        names: the settings, in their order.
        key: what the settings are values of; empty if their names say it.
        cap: the most that the metric can be, a dotted line.
        forecasts: `name` and `value`, a dash above a setting.
    """
    x = alt.X(
        "name:N",
        sort=None,
        scale=alt.Scale(domain=list(names)),
        axis=alt.Axis(
            title=key or None,
            labelAngle=0 if all(len(name) <= 8 for name in names) else -35,
            labelLimit=110,
            labelOverlap="greedy",
        ),
    )
    y = alt.Y("value:Q", axis=alt.Axis(title=None, tickCount=4), scale=alt.Scale(zero=True))
    tooltip = [
        alt.Tooltip("label:N", title="run"),
        alt.Tooltip("value:Q", title="value", format=",.5~r"),
    ]
    points = (
        of("runs")
        .transform_filter(IS_SHOWN)
        .mark_point(opacity=alt.ExprRef(OPACITY), cursor="pointer", aria=False)
    )
    layers = [points.encode(x=x, y=y, color=alt.Color("colour:N", scale=None), tooltip=tooltip)]
    if forecasts:
        tick = of("forecasts").mark_tick(style="forecast", size=16, thickness=2, aria=False)
        layers.append(tick.encode(x=x, y=y, tooltip=alt.Tooltip("value:Q", title="forecast")))
    if cap is not None:
        rule = of("cap").mark_rule(style="guide", strokeDash=[2, 3], aria=False)
        layers.append(rule.encode(y=y, tooltip=alt.Tooltip("value:Q", title="at most")))
    tables = {"runs": rows, "forecasts": forecasts, "cap": [{"value": cap}]}
    return composed(layers, tables, HEIGHT, emphasis())


def by_number(rows: Sequence[Row], colours: Mapping[str, str], title: str, key: str) -> Any:
    """Draw a line for each run over the numbers in the names of metrics of one kind.

    Args:
        rows: `run`, `label`, `name` of the setting, `part`, `number`, `value`.
        colours: of each setting.
        title, key: of the axes.
    """
    x = alt.X("number:Q", axis=alt.Axis(title=key, grid=False), scale=alt.Scale(zero=False))
    y = alt.Y("value:Q", axis=alt.Axis(title=title), scale=alt.Scale(zero=False))
    tooltip = [
        alt.Tooltip("label:N", title="run"),
        alt.Tooltip("number:Q", title=key),
        alt.Tooltip("value:Q", title="value", format=",.5~r"),
    ]
    layers = lines("runs", x, y, tooltip, colours)
    return composed(layers, {"runs": rows}, 300, emphasis())
