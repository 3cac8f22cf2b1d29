"""Place names beside points so that none overlaps another, a point, or the edge of a chart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import altair as alt

from genlab.report.figures.parts import of

#: Widths of a plot in pixels for which names are placed; a wider one has the places of the last
#: that is not wider than it, which then are further apart.
WIDTHS = (270, 430, 660)
_LETTER, _HEIGHT = 0.58, 1.25
# Trade-off curves fall to the right, so that there is room above and right of most points.
_PLACES = [
    (x * distance, y * distance, side)
    for distance in (9, 16, 26, 40, 58)
    for x, y, side in (
        (1, -1, "left"),
        (1, 0, "left"),
        (0, -1.2, "center"),
        (1, 1, "left"),
        (0, 1.2, "center"),
        (-1, -1, "right"),
        (-1, 0, "right"),
        (-1, 1, "right"),
    )
]


class Name(NamedTuple):
    """A text to be placed at a point of a chart, in its data's units.

    Attributes:
        colour: None for that of notes.
        also: further points that the name may be placed at.
    """

    text: str
    x: float
    y: float
    colour: str | None = None
    size: float = 12
    also: tuple[tuple[float, float], ...] = ()


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


class Frame(NamedTuple):
    """The plot of a chart: its height in pixels, and the place of values as fractions of it.

    Attributes:
        height: of the plot, in pixels.
        across, up: map a value to its place from the left and from the bottom, in [0, 1].
    """

    height: float
    across: Callable[[float], float]
    up: Callable[[float], float]


def place(
    names: Sequence[Name], points: Iterable[tuple[float, float]], frame: Frame
) -> list[dict[str, Any]]:
    """Return the rows of a table of placed names, for each width of `WIDTHS`.

    A name without room is left out. Its place is the point, moved by `dx` and `dy` pixels, for
    plots at least `least` and below `most` pixels wide.
    """
    rows = []
    points = list(points)
    for width, wider in zip(WIDTHS, (*WIDTHS[1:], 1e9), strict=True):
        taken = [
            _Box(x - 6, y - 6, x + 6, y + 6)
            for x, y in (_pixels(*point, width, frame) for point in points)
        ]
        least = 0 if width == WIDTHS[0] else width
        for name in names:
            at = [(name.x, name.y), *name.also]
            found = next((f for x, y in at if (f := _find(name, x, y, width, frame, taken))), None)
            if found is not None:
                x, y, dx, dy, side, box = found
                taken.append(box)
                look = {"text": name.text, "colour": name.colour, "size": name.size}
                moved = {"x": x, "y": y, "dx": dx, "dy": dy, "side": side}
                rows.append(look | moved | {"least": least, "most": wider})
    return rows


def layers(table: str, x: Any, y: Any) -> list[Any]:
    """Return the layers of a table of placed names, each on a veil of paper."""
    base = (
        of(table)
        .transform_filter("width >= datum.least && width < datum.most")
        .encode(x=x, y=y, text="text:N")
    )
    look: dict[str, Any] = {
        "dx": alt.ExprRef("datum.dx"),
        "dy": alt.ExprRef("datum.dy"),
        "align": alt.ExprRef("datum.side"),
        "fontSize": alt.ExprRef("datum.size"),
        "baseline": "middle",
        "tooltip": None,
        "aria": False,
    }
    coloured = base.transform_filter("isValid(datum.colour)")
    notes = base.transform_filter("!isValid(datum.colour)")
    return [
        base.mark_text(**look, style="veil"),
        notes.mark_text(**look, style="note"),
        coloured.mark_text(**look).encode(color=alt.Color("colour:N", scale=None)),
    ]


def _pixels(x: float, y: float, width: float, frame: Frame) -> tuple[float, float]:
    return width * frame.across(x), frame.height * (1 - frame.up(y))


def _find(
    name: Name, u: float, v: float, width: float, frame: Frame, taken: Sequence[_Box]
) -> tuple[float, float, float, float, str, _Box] | None:
    x, y = _pixels(u, v, width, frame)
    across, height = _LETTER * name.size * len(name.text), _HEIGHT * name.size
    for dx, dy, side in _PLACES:
        left = x + dx - {"left": 0.0, "center": across / 2, "right": across}[side]
        box = _Box(left, y + dy - height / 2, left + across, y + dy + height / 2)
        is_inside = box.left >= 0 and box.right <= width and box.top >= 0
        if is_inside and box.bottom <= frame.height and not any(box.meets(b) for b in taken):
            return u, v, dx, dy, side, box
    return None
