"""Measured quality against the settings of a sweep, and the settings that bound and quality choose.

It is read from quality.json, and where a run has none, from its result.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from genlab.errors import RunDirectoryError
from genlab.report.collect import Record, swept_keys
from genlab.report.colours import colours
from genlab.report.intervals import mean_interval
from genlab.report.naming import run_label, sort_key
from genlab.report.shown import brief_names
from genlab.runs.points import without_seed
from genlab.runs.run import Run

#: The measured distances that are compared, with the words for each.
COMPARED = {"fid_infinity": "samples", "rfid_infinity": "reconstructions"}


class Measured(NamedTuple):
    """A distance, and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Setting:
    """A setting of a sweep, with its measured distances.

    Attributes:
        label: its swept keys and their values.
        x: the value of the only swept key, if that is a number.
        distances: by their names in `COMPARED`; means over the seeds.
        neg_elbo: of the test, mean over the seeds; None for a model without a bound.
        runs: the numbers of its runs.
        features: in which the distances were measured.
    """

    label: str
    x: float | None
    distances: dict[str, Measured]
    neg_elbo: float | None
    runs: tuple[int, ...] = ()
    features: str = ""


def measured_settings(records: Sequence[Record]) -> list[Setting]:
    """Return the settings with a measured quality, in order, all in the same features.

    Several seeds of a setting give its mean, with the interval of the seeds where it is wider than
    that of the samples.
    """
    by_run = [dict(_distances(record)) for record in records]
    counts = Counter(features for found in by_run for features in found)
    if not counts:
        return []
    features = max(counts, key=lambda name: (counts[name], name))
    swept = without_seed(swept_keys(records))
    groups: dict[str, list[int]] = {}
    order = sorted(
        range(len(records)), key=lambda i: [sort_key(records[i].flat.get(k)) for k in swept]
    )
    for i in order:
        if features in by_run[i]:
            label = run_label(records[i], swept) or records[i].run_id
            groups.setdefault(label, []).append(i)
    found = []
    for label, numbers in groups.items():
        value = records[numbers[0]].flat.get(swept[0]) if len(swept) == 1 else None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        bounds = [b for i in numbers if (b := records[i].metric("test/neg_elbo")) is not None]
        distances = {
            name: _mean([by_run[i][features][name] for i in numbers])
            for name in COMPARED
            if all(name in by_run[i][features] for i in numbers)
        }
        found.append(
            Setting(
                label,
                float(value) if is_number else None,  # type: ignore[arg-type]
                distances,
                sum(bounds) / len(bounds) if bounds else None,
                tuple(numbers),
                features,
            )
        )
    return found


def about_quality(records: Sequence[Record]) -> str:
    """State which settings have the best samples, reconstructions and bound; empty if unknown."""
    settings = measured_settings(records)
    if len(settings) < 2:
        return ""
    chosen: dict[str, str] = {}
    parts = []
    for name, of in COMPARED.items():
        ranked = sorted(
            (s for s in settings if name in s.distances), key=lambda s: s.distances[name].value
        )
        if len(ranked) > 1:
            best = ranked[0].distances[name]
            ties = [s.label for s in ranked[1:] if s.distances[name].low <= best.high]
            also = f", not told apart from {', '.join(ties)}" if ties else ""
            half = (best.high - best.low) / 2
            parts.append(f"{ranked[0].label} for {of} ({best.value:.1f} \u00b1 {half:.1f}{also})")
            chosen[of] = ranked[0].label
    if not parts:
        return ""
    sentence = f"The FID is lowest at {' and at '.join(parts)}."
    bounds = [s for s in settings if s.neg_elbo is not None]
    if len(bounds) > 1:
        best_bound = min(bounds, key=lambda s: s.neg_elbo or math.inf)
        agrees = {of for of, label in chosen.items() if label == best_bound.label}
        told = f"the bound is best at {best_bound.label} ({best_bound.neg_elbo:.1f} nats)"
        if not agrees:
            sentence += f" Bound and quality choose different settings: {told}."
        elif agrees == set(chosen):
            sentence += f" Bound and quality choose the same setting: {told}."
        else:
            sentence += f" The bound chooses as the {agrees.pop()} do: {told}."
    return sentence


def quality_chart(records: Sequence[Record]) -> dict[str, Any] | None:
    """Draw the FID of each setting; None unless two settings were measured.

    Returns:
        `figure`, the `sentence` about it and the `features` in which it was measured.
    """
    from genlab.report.figures.quality import quality

    settings = measured_settings(records)
    if len(settings) < 2:
        return None
    labels = [setting.label for setting in settings]
    names = brief_names(labels)
    key = labels[0].partition(" ")[0] if names[labels[0]] != labels[0] else "setting"
    rows = [
        {"setting": names[setting.label], "of": COMPARED[name], **measured._asdict()}
        for setting in settings
        for name, measured in setting.distances.items()
    ]
    shades = colours([{"of": 0.0}, {"of": 1.0}])
    kinds = dict(zip(COMPARED.values(), shades, strict=True))
    shown = {of: colour for of, colour in kinds.items() if any(row["of"] == of for row in rows)}
    figure = quality(rows, [names[label] for label in labels], key, shown)
    sentence = about_quality(records)
    return {"figure": figure, "sentence": sentence, "features": settings[0].features}


def _distances(record: Record) -> Iterator[tuple[str, dict[str, Measured]]]:
    """Yield the features of a run's measurements, and its distances in them."""
    if not record.is_readable:
        return
    for name, value in record.result.get("metrics", {}).items():
        stem, _, features = str(name).removeprefix("test/").partition("_infinity_")
        if stem == "fid" and features and not features.startswith(("low_", "high_")):
            found = {
                distance: Measured(v, _or(low, v), _or(high, v))
                for distance in COMPARED
                if (v := record.metric(f"test/{distance}_{features}")) is not None
                for low, high in [
                    [record.metric(f"test/{distance}_{end}_{features}") for end in ("low", "high")]
                ]
            }
            if isinstance(value, int | float):
                yield features, found
    try:
        kept = Run(record.path).quality
    except RunDirectoryError:
        return
    for measurement in kept:  # the newest last
        if is_of_average(measurement):
            continue
        if measurement.get("split") == "test" and isinstance(measurement.get("values"), dict):
            found = {
                name: Measured(*numbers)
                for name in COMPARED
                if (numbers := _numbers(measurement["values"].get(name)))
            }
            if "fid_infinity" in found:
                yield str(measurement.get("features")), found


def is_of_average(measurement: Mapping[str, Any]) -> bool:
    """Return whether a measurement is of an average made after the training, not of the run."""
    settings = measurement.get("settings")
    return isinstance(settings, dict) and "ema" in settings


def _numbers(estimate: Any) -> tuple[float, float, float] | None:
    if not isinstance(estimate, Mapping):
        return None
    found = [estimate.get(name) for name in ("value", "low", "high")]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in found):
        return None
    value, low, high = (float(n) for n in found if n is not None)
    return value, low, high


def _mean(found: Sequence[Measured]) -> Measured:
    of_seeds = mean_interval([one.value for one in found])
    of_samples = math.sqrt(sum(((one.high - one.low) / 2) ** 2 for one in found)) / len(found)
    half = max(of_samples, (of_seeds.high - of_seeds.low) / 2)
    return Measured(of_seeds.mean, of_seeds.mean - half, of_seeds.mean + half)


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
