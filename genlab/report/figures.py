"""Shared parts of a page's charts: plain Plotly figures, so that only a browser needs Plotly.

Every colour is `light|dark`, of which the page takes one. `customdata` of a point holds the number
of its run. Names are escaped by `plotly_text` before they enter a figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genlab.report.collect import Record
from genlab.report.markup import plotly_text

Figure = dict[str, Any]

INK, SOFT, FAINT = "#1d2329|#e8eaed", "#5a636d|#a3abb4", "#a9b0b8|#626a73"
FORECAST = "#c4701f|#e69a4c"
#: Background of a name, so that it is readable on top of a line.
VEIL = "rgba(255,255,255,0.8)|rgba(20,23,26,0.8)"


@dataclass(frozen=True)
class ShownRun:
    """A run with the label and the colour that charts give it.

    Attributes:
        number: its position in the report.
        point: the name of its setting, without the seed.
        label: the same with the seed and, among several sweeps, with the sweep.
        colour: the colour of its point, `light|dark`.
        sweep: the number of its sweep.
    """

    record: Record
    number: int
    point: str
    label: str
    colour: str
    sweep: int = 0


def without_the_key(points: Sequence[str]) -> tuple[dict[str, str], str]:
    """Shorten settings of one key to their values, and return the key; else leave them as is."""
    words = {point.partition(" ")[0] for point in points}
    if len(words) == 1 and not any("," in point for point in points):
        return {p: plotly_text(p.partition(" ")[2] or p) for p in points}, plotly_text(*words)
    return {point: plotly_text(point) for point in points}, ""
