"""Format the keys, values, numbers, data and runs that a report names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from genlab.report.choices import class_name, data_choice
from genlab.report.collect import MODEL, Record, one_line
from genlab.runs.identity import DIGITS, ORIGINS, flatten
from genlab.runs.points import short_names, without_seed
from genlab.runs.text import printable

KL_WEIGHT = "model.kl_weight"
# Letters of a name of data.
_LONGEST = 80


def sort_key(value: Any) -> tuple[int, float, str]:
    """Return a sort key: numbers in numeric order, then words, then missing values."""
    if value is None:
        return (2, 0.0, "")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (0, float(value), "")
    return (1, 0.0, str(value))


def setting_text(key: str, value: Any) -> str:
    """Format a configuration value as a person would type it.

    A model has the name of its class, and a run that is started from the digits of its name.
    """
    if value is None:
        return "-"
    if key in ORIGINS and (digits := DIGITS.search(str(value))):
        return digits[1]
    if key == MODEL:
        return str(value).rpartition(".")[2]
    if key.endswith("_target_"):
        return class_name(value)
    if isinstance(value, float):
        return f"{value:.12g}"
    return " ".join(one_line(str(value)).split())


def number_text(value: float | None, decimals: int) -> str:
    """Format a number for people; one that rounds to zero is shown as below the smallest step."""
    if value is None:
        return ""
    if 0 < value < 0.5 * 10**-decimals:
        return f"<{10**-decimals:.{decimals}f}"
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def data_name(record: Record) -> str:
    """Name the data of a run, as far as its configuration is known: `mnist_mini`, `folder cats`."""
    flat = record.flat
    for key in ("data.name", "data.source.name"):
        if flat.get(key):
            return one_line(setting_text(key, flat[key]), _LONGEST)
    name = data_choice(record.config) or class_name(flat.get("data.source._target_"))
    where = flat.get("data.source.root") or flat.get("data.source.path")
    folder = " ".join(PurePath(str(where)).name.split()) if where else ""
    return one_line(f"{name or 'unnamed data'} {folder}".strip(), _LONGEST)


def sweep_names(records: Sequence[Record]) -> dict[Path, str]:
    """Map the directory of each sweep to the shortest suffix that no other one shares."""
    sweeps = list(dict.fromkeys(record.sweep for record in records))
    names = {
        sweep: next(
            (
                end
                for i in range(1, len(sweep.parts) + 1)
                if [other.parts[-i:] for other in sweeps].count(sweep.parts[-i:]) == 1
                and (end := "/".join(sweep.parts[-i:]))
            ),
            str(sweep),
        )
        for sweep in sweeps
    }
    return {sweep: printable(name, kept="") for sweep, name in names.items()}


def run_label(record: Record, swept: Sequence[str]) -> str:
    """Name a run by what distinguishes it from the others, for instance `kl_weight 30`.

    Among models of several classes the class comes first, as in `DDPM, steps 250`, except before
    the KL weight of the model itself, which only a VAE has. Keys that a model does not have are
    left out.
    """
    flat = record.flat
    named = short_names(swept)
    shown = [key for key in swept if key != MODEL]
    names = []
    if MODEL in swept:
        shown = [key for key in shown if flat.get(key) is not None]
        has_weight = KL_WEIGHT in shown and KL_WEIGHT in (flatten(record.config) or record.asked)
        names = [] if has_weight else [record.family]
    return ", ".join(
        [*names, *(f"{named[key]} {setting_text(key, flat.get(key))}" for key in shown)]
    )


def data_names(records: Sequence[Record]) -> str:
    """Name the data of all runs, joined by `and`."""
    return " and ".join(sorted({data_name(record) for record in records}))


def by_settings(swept: Sequence[str]) -> str:
    """Name one or two swept keys for the end of a title: `, by kl_weight`; empty for others."""
    names = list(short_names(without_seed(swept)).values())
    return f", by {' and '.join(names)}" if 0 < len(names) <= 2 else ""


def setting_names(records: Sequence[Record], swept: Sequence[str]) -> list[str]:
    """Name the setting of each run; seeds of one setting share a name.

    Where no seed is swept, runs of one setting come from several sweeps, and their directories
    distinguish them. Where only seeds are swept, each seed is a setting.
    """
    settings = without_seed(swept) or swept
    names = [run_label(record, settings) or record.run_id for record in records]
    if "seed" in swept:
        return apart_by_sweep(names, records)
    return [
        name if names.count(name) == 1 else f"{name} ({record.group}/{record.run_id})"
        for name, record in zip(names, records, strict=True)
    ]


def apart_by_sweep(names: Sequence[str], records: Sequence[Record]) -> list[str]:
    """Add the sweep to the names that runs of several sweeps share."""
    sweeps = sweep_names(records)
    homes: dict[str, set[Path]] = {}
    for name, record in zip(names, records, strict=True):
        homes.setdefault(name, set()).add(record.sweep)
    return [
        name if len(homes[name]) == 1 else f"{name} ({sweeps[record.sweep]})"
        for name, record in zip(names, records, strict=True)
    ]
