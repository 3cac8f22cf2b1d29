"""The bound of diffusion models in each bin of log-SNR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from genlab.report.figures.parts import Row, composed, emphasis, lines

HEIGHT = 320


def bounds(
    name: str,
    rows: Sequence[Row],
    colours: Mapping[str, str],
    limits: tuple[float, float],
    ticks: Sequence[float],
    title: str,
) -> Any:
    """Draw a line for each run over the centres of its bins.

    Args:
        name: of the chart among those of one picture.
        rows: a row for each bin, `run`, `label`, `name` of its setting, `part`, `log_snr`, `nats`.
        colours: of each setting.
        limits, ticks: log-SNRs.
        title: of the vertical axis.
    """
    x = alt.X(
        "log_snr:Q",
        scale=alt.Scale(domain=list(limits), nice=False, zero=False),
        axis=alt.Axis(title="log-SNR (data on the right)", values=list(ticks), grid=False),
    )
    y = alt.Y("nats:Q", axis=alt.Axis(title=title), scale=alt.Scale(zero=False))
    tooltip = [
        alt.Tooltip("label:N", title="run"),
        alt.Tooltip("log_snr:Q", title="log-SNR", format="~r"),
        alt.Tooltip("nats:Q", title="nats", format=".3f"),
    ]
    layers = lines(name, x, y, tooltip, colours)
    return composed(layers, {name: rows}, HEIGHT, emphasis())
