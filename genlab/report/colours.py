"""One colour for each point of a sweep, the same in every chart, table and caption of a page."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from genlab.media.charts import CATEGORIES, ORDERED
from genlab.report.naming import sort_key

_PAIR = re.compile(r"light-dark\((#[0-9a-f]{6}), #[0-9a-f]{6}\)")


def colours(values: Sequence[Mapping[str, Any]]) -> list[str]:
    """Choose a colour of CSS, `light-dark(.., ..)`, for each run by its swept values but the seed.

    Runs of the same values share a colour. A single numeric key, or more values than there are
    categories, get colours of a sequential scale, by rank; a few words get well separated colours.
    """
    keys = list(dict.fromkeys(itertools.chain.from_iterable(values)))
    places = [tuple(sort_key(run.get(key)) for key in keys) for run in values]
    ranks = {place: i for i, place in enumerate(sorted(set(places)))}
    is_number = len(keys) == 1 and all(place[0][0] != 1 for place in ranks)
    if len(ranks) <= (2 if is_number else len(CATEGORIES)):
        return [both(*CATEGORIES[ranks[place]]) for place in places]
    last = len(ranks) - 1
    return [
        both(*(_between(scale, ranks[p] / last) for scale in zip(*ORDERED, strict=True)))
        for p in places
    ]


def by_name(names: Iterable[str]) -> dict[str, str]:
    """Choose a colour of CSS for each name."""
    known = list(dict.fromkeys(names))
    return dict(zip(known, colours([{"name": name} for name in known]), strict=True))


def both(on_light: str, on_dark: str) -> str:
    """Return the colour of CSS that is the first on a light page, the second on a dark one."""
    return f"light-dark({on_light}, {on_dark})"


def on_light(colour: str) -> str:
    """Return the colour that a page takes on light paper."""
    found = _PAIR.fullmatch(colour)
    return found[1] if found else colour


def _between(scale: Sequence[str], fraction: float) -> str:
    at = fraction * (len(scale) - 1)
    i = min(int(at), len(scale) - 2)
    low, high = (
        [int(colour[j : j + 2], 16) for j in (1, 3, 5)] for colour in (scale[i], scale[i + 1])
    )
    return "#" + "".join(
        f"{round(a + (at - i) * (b - a)):02x}" for a, b in zip(low, high, strict=True)
    )
