"""Place labels beside the points of a chart without overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_LABELS = 12
_LONGEST = 40
# Trade-off curves fall to the right, so that there is room above and right of most points.
_PLACES = [
    (x * distance, y * distance, side)
    for distance in (8, 16, 26)
    for x, y, side in (
        (1, 1, "left"),
        (1, 0, "left"),
        (0, 1.2, "center"),
        (1, -1, "left"),
        (0, -1.2, "center"),
        (-1, 1, "right"),
        (-1, 0, "right"),
        (-1, -1, "right"),
    )
]


def _merge(
    axes: Axes, labels: Sequence[tuple[str, tuple[float, float]]]
) -> list[tuple[str, tuple[float, float]]]:
    """Merge the labels of runs at the same position, as in `kl_weight 10, 30`.

    A label that would be too long for a chart names its first run and `and 7 more`.
    """
    merged: list[tuple[str, tuple[float, float]]] = []
    left_out: dict[int, tuple[str, int]] = {}
    for label, point in labels:
        x, y = axes.transData.transform(point)
        for i, (other, place) in enumerate(merged):
            u, v = axes.transData.transform(place)
            if math.hypot(x - u, y - v) < 12:
                name = label.partition(" ")[0] + " "
                shared = other.startswith(name) and "," not in label
                longer = f"{other}, {label.removeprefix(name) if shared else label}"
                if i in left_out or len(longer) > _LONGEST:
                    first, more = left_out.get(i, (other, 0))
                    left_out[i] = first, more + 1
                    longer = f"{first} and {more + 1} more"
                merged[i] = (longer, place)
                break
        else:
            merged.append((label, point))
    return merged


def place_labels(
    axes: Axes,
    labels: Sequence[tuple[str, tuple[float, float]]],
    points: Sequence[tuple[float, float]],
    guides: Sequence[Any],
) -> None:
    """Put each label beside its point without overlap; of many labels, drop those without room."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    halo = [withStroke(linewidth=2.5, foreground="white")]
    at = [axes.transData.transform(point) for point in points]
    taken = [Bbox.from_bounds(x - 9, y - 9, 18, 18) for x, y in at]
    frame = axes.get_window_extent()
    merged = _merge(axes, labels)
    for label, point in merged:
        text = axes.annotate(
            label,
            point,
            xytext=(8, 0),
            textcoords="offset points",
            fontsize=9,
            va="center",
            path_effects=halo,
            zorder=5,
            parse_math=False,
        )
        for dx, dy, side in _PLACES:
            text.set(position=(dx, dy), horizontalalignment=side)
            box = text.get_window_extent()
            is_inside = frame.containsx(box.x0) and frame.containsx(box.x1)
            if is_inside and not any(box.overlaps(other) for other in taken):
                break
        else:
            if len(merged) > _MOST_LABELS:
                text.remove()
                continue
        taken.append(text.get_window_extent())
    for guide in guides:
        box = guide.get_window_extent()
        if any(box.overlaps(other) for other in taken) or box.x1 > frame.x1:
            guide.remove()
        else:
            taken.append(box)
