"""One colour for each point of a sweep, the same in every chart, table and caption of a page."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from genlab.report.naming import sort_key

#: `light|dark`, for a light and a dark page; distinguishable with red-green colour blindness.
CATEGORIES = (
    "#0072b2|#56a8e0",
    "#d55e00|#f08a3c",
    "#009e73|#2fc49b",
    "#b0508f|#e39ac6",
    "#a87400|#e6b94a",
    "#2f7fb0|#8fd0f5",
    "#4d4d4d|#c4c4c4",
)
# Viridis (van der Walt & Smith 2015) at even steps, without the end that a page of its own
# lightness would hide.
_ON_LIGHT = ("#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#93b81f")
_ON_DARK = ("#8a77d6", "#5b8fd0", "#35a8b8", "#2fc49b", "#7ad151", "#f0e13c")


def colours(values: Sequence[Mapping[str, Any]]) -> list[str]:
    """Choose a colour, `light|dark`, for each run by its swept values without the seed.

    Runs of the same values share a colour. A single numeric key, or more values than there are
    categories, get colours of a sequential scale, by rank; a few words get well separated colours.
    """
    keys = list(dict.fromkeys(itertools.chain.from_iterable(values)))
    places = [tuple(sort_key(run.get(key)) for key in keys) for run in values]
    ranks = {place: i for i, place in enumerate(sorted(set(places)))}
    is_number = len(keys) == 1 and all(place[0][0] != 1 for place in ranks)
    if len(ranks) <= (2 if is_number else len(CATEGORIES)):
        return [CATEGORIES[ranks[place]] for place in places]
    last = len(ranks) - 1
    return [
        f"{_between(_ON_LIGHT, ranks[p] / last)}|{_between(_ON_DARK, ranks[p] / last)}"
        for p in places
    ]


def _between(scale: Sequence[str], fraction: float) -> str:
    at = fraction * (len(scale) - 1)
    i = min(int(at), len(scale) - 2)
    low, high = (
        [int(colour[j : j + 2], 16) for j in (1, 3, 5)] for colour in (scale[i], scale[i + 1])
    )
    return "#" + "".join(
        f"{round(a + (at - i) * (b - a)):02x}" for a, b in zip(low, high, strict=True)
    )
