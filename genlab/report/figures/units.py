"""The KL of each latent unit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from genlab.report.figures import names
from genlab.report.figures.parts import Row, composed, emphasis, lines

HEIGHT = 360
_MOST_NAMES = 8


def units(rows: Sequence[Row], colours: Mapping[str, str], floor: float) -> Any:
    """Draw a line for each run over its units, in the order of their KL, on a logarithmic axis.

    Args:
        rows: a row for each unit, `run`, `label`, `name` of its setting, `part` (`run` or
            `forecast`), `unit` from 1, `nats`, and its `kl`.
        colours: of each setting.
        floor: nats; a smaller KL is drawn there.
    """
    most = max(row["unit"] for row in rows)
    low, high = floor / 2, 3 * max(1.0, *(row["kl"] for row in rows))
    frame = names.Frame(
        HEIGHT,
        lambda unit: (unit - 0.5) / most,
        lambda kl: math.log(max(kl, low) / low) / math.log(high / low),
    )
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000, 10000) if most <= 20 * step)
    x = alt.X(
        "unit:Q",
        scale=alt.Scale(domain=[0.5, most + 0.5], nice=False, zero=False),
        axis=alt.Axis(
            title="latent units of a run, by their KL",
            values=[1, *range(step, most + 1, step)] if step > 1 else list(range(1, most + 1)),
            format="d",
            grid=False,
        ),
    )
    powers = [10.0**e for e in range(round(math.log10(floor)), math.floor(math.log10(high)) + 1)]
    y = alt.Y(
        "kl:Q",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(
            title="KL (nats)",
            values=powers,
            labelExpr=f"datum.value <= {floor:g} ? '≤ {floor:g}' : format(datum.value, '~r')",
        ),
    )
    tooltip = [
        alt.Tooltip("label:N", title="run"),
        alt.Tooltip("unit:Q", title="unit"),
        alt.Tooltip("nats:N", title="nats"),
    ]
    layers = lines("units", x, y, tooltip, colours)
    starts: dict[str, Row] = {}
    for row in rows:
        if row["part"] == "run" and row["unit"] == 1:
            starts.setdefault(row["name"], row)
    placed = []
    if 1 < len(starts) <= _MOST_NAMES:
        placed = [
            names.Name(name, 1, row["kl"], colours[name], also=_along(rows, row["run"]))
            for name, row in sorted(starts.items(), key=lambda start: -start[1]["kl"])
        ]
    placed.append(names.Name(f"below {floor:g} nats: switched off", most, floor))
    marks = [(row["unit"], row["kl"]) for row in rows]
    layers += names.layers("names", x, y)
    tables = {"units": rows, "names": _at_kl(names.place(placed, marks, frame))}
    return composed(layers, tables, HEIGHT, emphasis())


def _along(rows: Sequence[Row], run: int) -> tuple[tuple[float, float], ...]:
    """Return the points of the line of a run behind its first."""
    mine = [row for row in rows if row["run"] == run and row["part"] == "run"]
    return tuple((row["unit"], row["kl"]) for row in mine[1:])


def _at_kl(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [dict(row) | {"unit": row["x"], "kl": row["y"]} for row in rows]
