"""State the result of a sweep of samplers: the distance to the data, and the cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from genlab.metrics.names import describe
from genlab.report.collect import swept_keys
from genlab.report.findings import Finding
from genlab.report.intervals import mean_interval
from genlab.report.shown import ShownRun
from genlab.runs.points import without_seed

DISTANCE = "test/energy_distance"
_SAMPLER = ("model/sampler", "model.sampler.")


def differ_in_sampler(swept: Sequence[str]) -> bool:
    """Return whether only the sampler differs."""
    return bool(swept) and all(key.startswith(_SAMPLER) for key in swept)


def is_of_samplers(findings: Sequence[Finding], swept: Sequence[str]) -> bool:
    """Return whether only the sampler differs, and all samples were compared with the data."""
    return differ_in_sampler(swept) and all(f.metric(DISTANCE) is not None for f in findings)


def about_samplers(findings: Sequence[Finding]) -> list[str]:
    """State the nearest sampler, the cheapest that may be as near, and the cheapest of all."""
    nearest = min(findings, key=lambda f: f.metric(DISTANCE) or 0.0)
    cheap = sorted(findings, key=lambda f: f.metric("test/evaluations") or 0.0)
    sentences = [
        f"The samples nearest to the test images are those of {_described(nearest)}.",
    ]
    limit = _interval(nearest)[1]
    near = next(f for f in cheap if _interval(f)[0] <= limit)
    if near is not nearest and len(nearest.records) > 1:
        sentences.append(
            f"The cheapest whose 95 % interval over seeds meets that one's is {_described(near)}."
        )
    if cheap[0] not in (nearest, near):
        sentences.append(f"The fewest evaluations are those of {_described(cheap[0])}.")
    return [*sentences, "The weights are the same in all runs, and so is the bound."]


def samplers_chart(runs: Sequence[ShownRun]) -> Any | None:
    """Draw the distance of the samples against their cost; None unless only the sampler differs."""
    from genlab.report.figures.samplers import samplers

    if not differ_in_sampler(without_seed(swept_keys([run.record for run in runs]))):
        return None
    rows = []
    for run in runs:
        cost, distance = run.record.metric("test/evaluations"), run.record.metric(DISTANCE)
        if cost and distance is not None:
            named = {"run": run.number, "label": run.label, "name": run.point}
            rows.append(named | {"evaluations": cost, "distance": distance, "colour": run.colour})
    return samplers(rows, describe(DISTANCE).title) if len(rows) > 1 else None


def _interval(finding: Finding) -> tuple[float, float]:
    values = [v for r in finding.records if (v := r.metric(DISTANCE)) is not None]
    known = mean_interval(values)
    return known.low, known.high


def _described(finding: Finding) -> str:
    low, high = _interval(finding)
    margin = f" +- {(high - low) / 2:.2f}" if len(finding.records) > 1 else ""
    return (
        f"{finding.label} (energy distance {finding.text(DISTANCE)}{margin}, "
        f"{finding.text('test/evaluations')} evaluations of the network, "
        f"{finding.text('test/seconds_per_sample')} s a sample)"
    )
