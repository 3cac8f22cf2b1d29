"""The former charts, drawn by Matplotlib: in use until each is a chart of `genlab.media.charts`."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from genlab.runs.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = tuple[Sequence[float], Sequence[float]]

#: Colours distinguishable with red-green colour blindness (Wong 2011, Nature Methods 8).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLES = ("-", "--", ":", "-.")
#: Inches in a legend: a line with its gaps, a letter, a row.
_LEGEND_HANDLE, _LEGEND_LETTER, _LEGEND_ROW = 0.6, 0.065, 0.17


def figure(width: float = 8.0, height: float = 5.5) -> Figure:
    """Make an empty figure of this size in inches, without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(made)
    return made


def panels(count: int, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    """Make a figure with `count` axes side by side."""
    made = figure(max(6.0, 4.2 * count), height)
    return made, [made.add_subplot(1, count, i + 1) for i in range(count)]


def draw_lines(
    axes: Axes,
    lines: Mapping[str, Points],
    marker: str = "",
    looks: Mapping[str, tuple[int, int]] | None = None,
) -> None:
    """Draw a line for each name.

    Args:
        looks: index of the colour and of the style of each; None takes the next colour, and after
            the last colour the next style.
    """
    for i, (name, (x, y)) in enumerate(lines.items()):
        colour, style = looks[name] if looks else (i, i // len(COLOURS))
        axes.plot(
            x,
            y,
            label=name,
            color=COLOURS[colour % len(COLOURS)],
            linestyle=_STYLES[style % len(_STYLES)],
            linewidth=1.4,
            marker=marker,
            markersize=4,
        )
    axes.grid(color="#e3e5e8", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def add_legend(made: Figure) -> None:
    """Add one legend below all axes; a name that occurs in several axes is listed once."""
    named: dict[str, Artist] = {}
    for axes in made.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    if not named:
        return
    # as many columns as fit, and as much room below the axes as the rows need
    longest = max(map(len, named))
    columns = int(made.get_figwidth() / (_LEGEND_HANDLE + _LEGEND_LETTER * longest))
    columns = max(1, min(4, columns))
    rows = -(-len(named) // columns)
    made.set_figheight(made.get_figheight() + _LEGEND_ROW * (rows - 1))
    made.legend(
        list(named.values()),
        list(named),
        loc="outside lower left",
        ncols=columns,
        fontsize=8,
        frameon=False,
    )


def literal(made: Figure) -> None:
    """Show every text literally: a name with dollar signs is not read as a formula.

    The numbers at logarithmic axes, which are formulas by default, therefore become plain numbers.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter, LogFormatterMathtext

    for axes in made.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatterMathtext):
                axis.set_major_formatter(lambda value, _: f"{value:g}")
            if isinstance(axis.get_minor_formatter(), LogFormatterMathtext):
                axis.set_minor_formatter(LogFormatter())
    for text in made.findobj(Text):
        text.set_parse_math(False)


def png(made: Figure) -> bytes:
    """Return the figure as the content of a PNG file."""
    literal(made)
    buffer = io.BytesIO()
    made.savefig(buffer, format="png")
    return buffer.getvalue()


def pixels(made: Figure) -> npt.NDArray[np.uint8]:
    """Return the figure as a picture (H, W, 3)."""
    literal(made)
    canvas = made.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]


def save(made: Figure, path: str | os.PathLike[str]) -> None:
    """Write the figure atomically as PNG or SVG, by the path's suffix; its folder must exist."""
    write_atomically(path, _svg(made) if Path(path).suffix == ".svg" else png(made))


def _svg(made: Figure) -> bytes:
    """Return the content of an SVG file, the same bytes for the same figure: no date, fixed ids."""
    import matplotlib

    literal(made)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "genlab"}):
        made.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
