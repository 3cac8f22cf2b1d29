"""What the charts of a page share: plain Plotly figures, so that only a browser needs Plotly.

Every colour is `light|dark`, of which the page takes one. A point of a run carries the run's number
in `customdata`. Names pass `plotly_text` on their way into a figure.
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
#: Behind a name, so that it can be read where a line passes.
VEIL = "rgba(255,255,255,0.8)|rgba(20,23,26,0.8)"


@dataclass(frozen=True)
class Run:
    """A run as charts show it.

    Attributes:
        number: its place in the report.
        point: what distinguishes its setting, without the seed.
        label: the same with the seed and, among several sweeps, with the sweep.
        colour: `light|dark`, that of its point.
        sweep: the number of its sweep.
    """

    record: Record
    number: int
    point: str
    label: str
    colour: str
    sweep: int = 0


def without_the_knob(points: Sequence[str]) -> tuple[dict[str, str], str]:
    """Of settings of one knob the values alone, and the knob's name; else as they are."""
    words = {point.partition(" ")[0] for point in points}
    if len(words) == 1 and not any("," in point for point in points):
        return {p: plotly_text(p.partition(" ")[2] or p) for p in points}, plotly_text(*words)
    return {point: plotly_text(point) for point in points}, ""
