"""Measured quality against the settings of a sweep, and the settings that bound and quality choose.

It is read from quality.json, and where a run has none, from its result.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from genlab.media import charts
from genlab.report.collect import Record, one_line, swept_keys
from genlab.report.colours import colours, on_light
from genlab.report.intervals import mean_interval, squarable
from genlab.report.naming import by_settings, data_names, run_label, sort_key
from genlab.report.pictures import picture
from genlab.report.shown import brief_names
from genlab.runs.points import without_seed

#: The measured distances that are compared, with the words for each.
COMPARED = {"fid_infinity": "samples", "rfid_infinity": "reconstructions"}
# Letters of the name of features.
_LONGEST_NAME = 60


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
        of_runs: the same of each of `runs`, in their order.
        neg_elbo: of the test, mean over the seeds; None for a model without a bound.
        runs: the numbers of its runs.
        features: in which the distances were measured.
    """

    label: str
    x: float | None
    distances: dict[str, Measured]
    of_runs: dict[str, list[Measured]]
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
        of_runs = {
            name: [by_run[i][features][name] for i in numbers]
            for name in COMPARED
            if all(name in by_run[i][features] for i in numbers)
        }
        found.append(
            Setting(
                label,
                float(value) if is_number else None,  # type: ignore[arg-type]
                {name: _mean(distances) for name, distances in of_runs.items()},
                of_runs,
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
        ranked = _ranked(settings, name)
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
    best_bound = _best_bound(settings)
    if best_bound is not None:
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
    settings = measured_settings(records)
    if len(settings) < 2:
        return None
    return {
        "figure": _figure(settings, _shades()),
        "sentence": about_quality(records),
        "features": settings[0].features,
    }


def draw_quality(records: Sequence[Record], *paths: str | os.PathLike[str]) -> bool:
    """Draw the FID of each setting, for all paths once.

    Returns False, with nothing written, unless two settings were measured.
    """
    import altair as alt

    settings = measured_settings(records)
    if len(settings) < 2:
        return False
    light = {of: on_light(colour) for of, colour in _shades().items()}
    by = by_settings(without_seed(swept_keys(records)))
    title = f"FID to the test images of {data_names(records)}{by}"
    explained = f"in the features {settings[0].features}; rings: the lowest; bars: 95 % intervals"
    heading = alt.Title(title, subtitle=explained)
    charts.save(picture([_figure(settings, light)], [], heading), *paths)
    return True


def _shades() -> dict[str, str]:
    """Return the colour of each kind of images, in the order of `COMPARED`."""
    return dict(zip(COMPARED.values(), colours([{"of": 0}, {"of": 1}]), strict=True))


def _figure(settings: Sequence[Setting], shades: Mapping[str, str]) -> Any:
    from genlab.report.figures.quality import quality

    labels = [setting.label for setting in settings]
    names = brief_names(labels)
    key = labels[0].partition(" ")[0] if names[labels[0]] != labels[0] else "setting"
    best = {name: found[0] for name in COMPARED if (found := _ranked(settings, name))}
    rows = [
        {"setting": names[setting.label], "of": COMPARED[name], **measured._asdict()}
        | {"is_best": setting is best[name]}
        for setting in settings
        for name, measured in setting.distances.items()
    ]
    shown = {of: colour for of, colour in shades.items() if any(row["of"] == of for row in rows)}
    bound = _best_bound(settings)
    chosen = None if bound is None else names[bound.label]
    return quality(rows, [names[label] for label in labels], key, shown, chosen)


def _ranked(settings: Sequence[Setting], distance: str) -> list[Setting]:
    """Return the settings with this distance, the lowest first."""
    known = [s for s in settings if distance in s.distances]
    return sorted(known, key=lambda s: s.distances[distance].value)


def _best_bound(settings: Sequence[Setting]) -> Setting | None:
    """Return the setting of the lowest bound; None unless two have one."""
    known = [(s.neg_elbo, s) for s in settings if s.neg_elbo is not None]
    return min(known, key=lambda found: found[0])[1] if len(known) > 1 else None


def _distances(record: Record) -> Iterator[tuple[str, dict[str, Measured]]]:
    """Yield the features of a run's measurements, and its distances in them."""
    if not record.is_readable:
        return
    for metric in record.result.get("metrics", {}):
        stem, _, features = str(metric).removeprefix("test/").partition("_infinity_")
        if stem == "fid" and features and not features.startswith(("low_", "high_")):
            found = {}
            for name in COMPARED:
                value = record.metric(f"test/{name}_{features}")
                ends = [record.metric(f"test/{name}_{end}_{features}") for end in ("low", "high")]
                found[name] = _measured(value, *(value if end is None else end for end in ends))
            yield from _known(features, found)
    for measurement in record.quality:
        if is_of_average(measurement):
            continue
        values = measurement.get("values")
        if measurement.get("split") == "test" and isinstance(values, dict):
            found = {}
            for name in COMPARED:
                estimate = values.get(name)
                if isinstance(estimate, Mapping):
                    found[name] = _measured(*map(estimate.get, Measured._fields))
            yield from _known(str(measurement.get("features")), found)


def _known(
    features: str, found: Mapping[str, Measured | None]
) -> Iterator[tuple[str, dict[str, Measured]]]:
    if found.get("fid_infinity") is not None:
        known = {name: measured for name, measured in found.items() if measured is not None}
        yield one_line(features, _LONGEST_NAME), known


def _measured(value: Any, low: Any, high: Any) -> Measured | None:
    numbers = [known for one in (value, low, high) if (known := squarable(one)) is not None]
    return Measured(*numbers) if len(numbers) == 3 else None


def is_of_average(measurement: Mapping[str, Any]) -> bool:
    """Return whether a measurement is of an average made after the training, not of the run."""
    settings = measurement.get("settings")
    return isinstance(settings, dict) and "ema" in settings


def _mean(found: Sequence[Measured]) -> Measured:
    of_seeds = mean_interval([one.value for one in found])
    of_samples = math.sqrt(sum(((one.high - one.low) / 2) ** 2 for one in found)) / len(found)
    half = max(of_samples, (of_seeds.high - of_seeds.low) / 2)
    return Measured(of_seeds.mean, of_seeds.mean - half, of_seeds.mean + half)
