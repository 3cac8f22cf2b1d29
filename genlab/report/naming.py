"""What things are called in a report: keys, values, numbers, data, runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genlab.report.collect import MODEL, Record
from genlab.runs.points import short_names

KL_WEIGHT = "model.kl_weight"


def sort_key(value: Any) -> tuple[int, float, str]:
    """Numbers in their order, then words, then nothing."""
    if value is None:
        return (2, 0.0, "")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (0, float(value), "")
    return (1, 0.0, str(value))


def value_text(key: str, value: Any) -> str:
    """A value of the configuration as a person would type it; of a class, its name alone."""
    if value is None:
        return "-"
    if key.endswith("_target_"):
        return str(value).rpartition(".")[2]
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value)


def number_text(value: float | None, decimals: int) -> str:
    """A number for people; one too small to be seen says so."""
    if value is None:
        return ""
    if 0 < value < 0.5 * 10**-decimals:
        return f"<{10**-decimals:.{decimals}f}"
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def data_name(record: Record) -> str:
    """What the run was trained on, as far as its configuration says."""
    flat = record.flat
    for key in ("data.name", "data.source.name", "data.source._target_", "data._target_"):
        if flat.get(key):
            return value_text(key, flat[key])
    return "unnamed data"


def sweep_names(records: Sequence[Record]) -> dict[Path, str]:
    """The directory of each sweep with the shortest end of it that no other one shares."""
    sweeps = list(dict.fromkeys(record.sweep for record in records))
    return {
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


def run_label(record: Record, swept: Sequence[str]) -> str:
    """What distinguishes a run from the others, for instance `kl_weight 30`.

    Among models of several classes the class comes first, as in `DDPM, steps 250`, except before
    the KL weight, which a VAE alone has, and what a model does not have is passed over.
    """
    flat = record.flat
    named = short_names(swept)
    shown = [key for key in swept if key != MODEL]
    names = []
    if MODEL in swept:
        shown = [key for key in shown if flat.get(key) is not None]
        names = [] if KL_WEIGHT in shown else [record.family]
    return ", ".join([*names, *(f"{named[key]} {value_text(key, flat.get(key))}" for key in shown)])


def setting_names(records: Sequence[Record], swept: Sequence[str]) -> list[str]:
    """What tells the setting of each from the others; seeds of one share a name.

    Without seeds runs of one setting are of several sweeps, and stay apart by their directories.
    Seeds alone are settings themselves.
    """
    knobs = [key for key in swept if key != "seed"] or swept
    names = [run_label(record, knobs) or record.run_id for record in records]
    if "seed" in swept:
        return names
    return [
        name if names.count(name) == 1 else f"{name} ({record.group}/{record.run_id})"
        for name, record in zip(names, records, strict=True)
    ]
