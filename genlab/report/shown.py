"""The runs of a page or a picture with the number, the names and the colour that all parts use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from genlab.report.collect import Record, comparable, swept_keys
from genlab.report.colours import colours
from genlab.report.naming import run_label, setting_text, sweep_names
from genlab.runs.points import without_seed


@dataclass(frozen=True)
class ShownRun:
    """A run with the label and the colour that charts give it.

    Attributes:
        number: its position in its part of the report.
        point: the name of its setting, without the seed.
        label: the same with the seed and, among several sweeps, with the sweep.
        colour: the colour of its point, of CSS.
        sweep: the number of its sweep.
    """

    record: Record
    number: int
    point: str
    label: str
    colour: str
    sweep: int = 0


def shown_runs(
    records: Sequence[Record], keys: Sequence[str] | None = None, others: Sequence[str] = ()
) -> list[ShownRun]:
    """Name and colour runs, in their order, by the keys that distinguish them.

    Args:
        keys: those that are named; None names all that are swept.
        others: further keys; a run that differs from another of its setting in one of them is a
            setting of its own, named by the end of its directory's name.
    """
    swept = swept_keys(records) if keys is None else keys
    settings = without_seed(swept)
    sweeps = sweep_names(records)
    shades = colours([{key: record.flat.get(key) for key in settings} for record in records])
    kinds: dict[str, set[str]] = {}
    for record in records:
        values = json.dumps([comparable(record.flat.get(key)) for key in without_seed(others)])
        kinds.setdefault(run_label(record, settings), set()).add(values)
    runs = []
    for i, (record, colour) in enumerate(zip(records, shades, strict=True)):
        name = run_label(record, settings)
        point = name or record.run_id
        if name and len(kinds[name]) > 1:
            point = f"{name} (…{record.run_id[-8:]})"
        seed = f", seed {setting_text('seed', record.flat.get('seed'))}" if "seed" in swept else ""
        where = f"{sweeps[record.sweep]}: " if len(sweeps) > 1 else ""
        sweep = list(sweeps).index(record.sweep)
        runs.append(ShownRun(record, i, point, f"{where}{point}{seed}", colour, sweep))
    return runs


def brief_names(points: Sequence[str], longest: int = 40) -> dict[str, str]:
    """Shorten settings of one key to their values if there are more than three, up to 24."""
    words = {point.partition(" ")[0] for point in points}
    is_of_one_key = len(words) == 1 and not any("," in point for point in points)
    names = {
        point: point.partition(" ")[2] or point
        if is_of_one_key and 3 < len(points) <= 24
        else point
        for point in points
    }
    return {
        point: name if len(name) <= longest else f"{name[: longest - 1]}…"
        for point, name in names.items()
    }
