"""The KL of each latent unit of a VAE, which shows the units that a KL weight leaves in use."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from genlab.media import charts
from genlab.report.bounds import numbers
from genlab.report.collect import Record, swept_keys
from genlab.report.naming import KL_WEIGHT, by_settings, data_names
from genlab.report.pictures import averaged, picture
from genlab.report.shown import ShownRun
from genlab.runs.points import without_seed

#: Nats: a smaller KL is drawn here, since a logarithmic axis has no place for 0.
FLOOR = 1e-3
#: Lines of runs; of more, every second, every third, ... is drawn.
_MOST_LINES = 250


def units_chart(runs: Sequence[ShownRun]) -> Any | None:
    """Draw a line for each run, its units from the largest KL to the smallest; None without any.

    A dashed line shows the KL of each unit in the linear forecast, once for every setting. Of very
    many runs some are drawn, at even steps.
    """
    from genlab.report.figures.units import units

    known = [(run, kl) for run in runs if (kl := kl_by_unit(run.record.bound))]
    if not known:
        return None
    expected = {run.point: (run, f) for run, _ in known if (f := _forecast(run.record.bound))}
    rows = [
        row
        for run, kl in expected.values()
        for row in _rows(run, kl, f"{run.point}, linear forecast", "forecast")
    ]
    rows += [
        row
        for run, kl in known[:: -(-len(known) // _MOST_LINES)]
        for row in _rows(run, kl, run.label, "run")
    ]
    return units(rows, {run.point: run.colour for run, _ in known}, FLOOR)


def units_note(runs: Sequence[ShownRun]) -> str:
    """Explain the lines, and name the weights at which the linear forecast has no active unit."""
    known = [run.record for run in runs if kl_by_unit(run.record.bound)]
    sentences = [
        "Each line is a run, its latent units sorted by how many nats they carry about the image. "
        f"Below {FLOOR:g} nats a unit is switched off: q(z|x) is the prior, whatever the image."
    ]
    if any(_forecast(record.bound) for record in known):
        sentences.append("Dashed: what a linear VAE gives each, known before training from a PCA.")
    thresholds = {record.metric("forecast/collapse_threshold") for record in known}
    threshold = thresholds.pop()
    if threshold is not None and not thresholds:
        sentences.append(
            "It spends a unit only on a direction in which the images vary enough to be worth the "
            f"weight, and the widest of them is worth a weight of {threshold:.3g}."
        )
        weights = {_weight(record) for record in known}
        above = sorted(weight for weight in weights if weight is not None and weight > threshold)
        if above:
            these = f"a weight of {above[0]:g}" + (" and more" if len(above) > 1 else "")
            sentences.append(f"So at {these} no unit pays for its KL.")
    return " ".join(sentences)


def draw_units(records: Sequence[Record], *paths: str | os.PathLike[str]) -> bool:
    """Draw the same for all paths once, the seeds of a setting averaged.

    Returns False, with nothing written, if no run has the KL of its units.
    """
    records = [record for record in records if kl_by_unit(record.bound)]
    runs = averaged(records, _mean_bound)
    chart = units_chart(runs)
    if chart is None:
        return False
    settings = without_seed(swept_keys(records))
    is_foretold = any(_forecast(run.record.bound) for run in runs)
    charts.save(picture([chart], runs, _title(records, settings, is_foretold)), *paths)
    return True


def _mean_bound(records: Sequence[Record]) -> dict[str, Any]:
    found = [kl for record in records if (kl := kl_by_unit(record.bound))]
    forecast = next((list(f) for record in records if (f := _forecast(record.bound))), None)
    mean = [fmean(values) for values in zip(*found, strict=False)]
    return {"kl_by_unit": mean, "forecast_kl_by_unit": forecast}


def kl_by_unit(bound: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Return nats per unit of a bound.json, largest first; None if they are absent or invalid."""
    found = numbers(bound.get("kl_by_unit"))
    return tuple(sorted(found, reverse=True)) if found else None


def _forecast(bound: Mapping[str, Any]) -> tuple[float, ...] | None:
    found = numbers(bound.get("forecast_kl_by_unit"))
    return tuple(sorted(found, reverse=True)) if found else None


def _weight(record: Record) -> float | None:
    weight = record.metric("test/beta_effective")
    quoted = record.flat.get(KL_WEIGHT)
    return float(quoted) if weight is None and isinstance(quoted, int | float) else weight


def _rows(run: ShownRun, kl: Sequence[float], label: str, part: str) -> list[dict[str, Any]]:
    named = {"run": run.number, "label": label, "name": run.point, "part": part}
    return [
        named | {"unit": i, "kl": max(nats, FLOOR), "nats": f"{nats:.3g}"}
        for i, nats in enumerate(kl, 1)
    ]


def _title(records: Sequence[Record], settings: Sequence[str], is_foretold: bool) -> str:
    dashed = "; dashed: forecast of the linear model" if is_foretold else ""
    of = f"{data_names(records)}{by_settings(settings)}"
    return f"KL of each latent unit on the test set of {of}{dashed}"
