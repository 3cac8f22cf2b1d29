"""Two or more models at the same settings, such as VAEs and the diffusion models on their latents.

One key with numbers is swept in all of them: each model has its quality and its bound over it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genlab.media import charts
from genlab.report.collect import MODEL, Record, swept_keys
from genlab.report.colours import by_name, on_light
from genlab.report.differences import differences, holm
from genlab.report.intervals import CONFIDENCE, mean_interval, squarable
from genlab.report.naming import data_names, number_text, setting_text
from genlab.report.pictures import picture
from genlab.report.quality import COMPARED, Measured, measured_settings
from genlab.runs.points import short_names, without_seed

#: The quantity that has an axis of its own.
BOUND = "bound"
_BOUND_METRIC = "test/neg_elbo"


@dataclass(frozen=True)
class Line:
    """A quantity of one model over the settings; lower is better.

    Attributes:
        family: the class of the model.
        of: `samples`, `reconstructions` or `bound`.
        values: the mean over the seeds and its 95 % interval, by the value of the key.
        seeds: the same of each seed.
    """

    family: str
    of: str
    values: dict[float, Measured]
    seeds: dict[float, dict[str, float]]

    @property
    def name(self) -> str:
        """The name of the line in a legend."""
        return f"{self.of} of the {self.family}"

    @property
    def best(self) -> float:
        """The value of the key with the lowest mean."""
        return min(self.values, key=lambda x: self.values[x].value)

    @property
    def ties(self) -> list[float]:
        """The other values of the key that are not told apart from the best.

        Neither are the intervals of the two apart, nor do they differ by the paired differences
        over their seeds, at 5 % for all comparisons with the best together (Holm 1979).
        """
        best = self.best
        others = [x for x in sorted(self.values) if x != best]
        paired = [differences([self.seeds.get(x, {}), self.seeds.get(best, {})]) for x in others]
        known = dict(zip(others, paired, strict=True))
        adjusted = holm([found[0].p if found else 1.0 for found in known.values()])
        return [
            x
            for x, p in zip(others, adjusted, strict=True)
            if self.values[x].low <= self.values[best].high and p > 1 - CONFIDENCE
        ]


@dataclass(frozen=True)
class Comparison:
    """Several models over one key.

    Attributes:
        key: the key, in its short form.
        lines: what is known of each model.
        features: in which the distances were measured.
    """

    key: str
    lines: tuple[Line, ...]
    features: str


def comparison(records: Sequence[Record]) -> Comparison | None:
    """Compare models that share a swept number and were measured; None where there is no such key.

    A quantity with fewer than two settings is left out.
    """
    swept = without_seed(swept_keys(records))
    shared = [key for key in swept if key != MODEL]
    if MODEL not in swept or len(shared) != 1:
        return None
    (key,) = shared
    families: dict[str, list[Record]] = {}
    for record in records:
        if record.result and not record.is_diverged and _number(record, key) is not None:
            families.setdefault(record.family, []).append(record)
    lines, features = [], ""
    for family, runs in families.items():
        settings = measured_settings(runs)
        features = settings[0].features if settings else features
        for name, of in COMPARED.items():
            values: dict[float, Measured] = {}
            seeds: dict[float, dict[str, float]] = {}
            for setting in settings:
                x = _number(runs[setting.runs[0]], key)
                if x is not None and name in setting.distances:
                    values[x] = setting.distances[name]
                    of_runs = zip(setting.runs, setting.of_runs[name], strict=True)
                    seeds[x] = {_seed(runs[i]): measured.value for i, measured in of_runs}
            lines.append(Line(family, of, values, seeds))
        lines.append(_bound(family, runs, key))
    kept = tuple(line for line in lines if len(line.values) > 1)
    measured = {line.family for line in kept if line.of != BOUND}
    return Comparison(short_names(shared)[key], kept, features) if len(measured) > 1 else None


def about_models(records: Sequence[Record]) -> list[str]:
    """State in a sentence for each model which value of the shared key is best, and what ties."""
    found = comparison(records)
    if found is None:
        return []
    families = list(dict.fromkeys(line.family for line in found.lines))
    reconstructs = {line.family for line in found.lines if line.of == "reconstructions"}
    return [
        _about([line for line in found.lines if line.family == family], found.key)
        for family in sorted(families, key=lambda family: family in reconstructs)
    ]


def _about(lines: Sequence[Line], key: str) -> str:
    parts: list[str] = []
    for line in lines:
        best = line.best
        value, *ends = (number_text(number, 1) for number in line.values[best])
        told = f"{value} nats" if line.of == BOUND else f"FID {value}"
        ties = [setting_text(key, x) for x in line.ties]
        also = f"; not told apart from {', '.join(ties)}" if ties else ""
        whose = f"{line.of} of the {line.family}" if not parts else f"its {line.of}"
        verb = "is lowest" if line.of == BOUND else "are best"
        interval = f", 95 % {' to '.join(ends)}" if ends[0] != ends[1] else ""
        at = f"{key} {setting_text(key, best)}"
        parts.append(f"{whose} {verb} at {at} ({told}{interval}{also})")
    text = ", ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def models_charts(records: Sequence[Record]) -> dict[str, Any] | None:
    """Draw quality and bound of each model; None where models do not share a swept number."""
    found = comparison(records)
    if found is None:
        return None
    return {
        "figures": _figures(found, _shades(found)),
        "features": found.features,
        "key": found.key,
    }


def draw_models(records: Sequence[Record], *paths: str | os.PathLike[str]) -> bool:
    """Draw quality and bound of each model, for all paths once.

    Returns False, with nothing written, where models do not share a swept number.
    """
    import altair as alt

    found = comparison(records)
    if found is None:
        return False
    light = {name: on_light(colour) for name, colour in _shades(found).items()}
    families = " and ".join(dict.fromkeys(line.family for line in found.lines))
    title = alt.Title(
        f"{families} by {found.key}, on the test images of {data_names(records)}",
        subtitle=f"FID in the features {found.features}; a bound has the colour of its model's "
        "samples; rings: the lowest; bars: 95 % intervals",
    )
    charts.save(picture(_figures(found, light), [], title), *paths)
    return True


def _shades(found: Comparison) -> dict[str, str]:
    """Return the colour of each line: that of its model, or of reconstructions."""
    kinds = [line.of if line.of == "reconstructions" else line.family for line in found.lines]
    shades = by_name(kinds)
    return {line.name: shades[kind] for line, kind in zip(found.lines, kinds, strict=True)}


def _figures(found: Comparison, shades: Mapping[str, str]) -> list[Any]:
    from genlab.report.figures.models import models

    parts = {
        "quality": ("FID of infinitely many images", [x for x in found.lines if x.of != BOUND]),
        "bound": ("bound on -log p(x), nats per image", [x for x in found.lines if x.of == BOUND]),
    }
    return [
        models(list(_rows(lines)), table, found.key, title, shades)
        for table, (title, lines) in parts.items()
        if lines
    ]


def _rows(lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
    for line in lines:
        for x, measured in sorted(line.values.items()):
            yield {"x": x, "of": line.name, **measured._asdict(), "is_best": x == line.best}


def _bound(family: str, runs: Sequence[Record], key: str) -> Line:
    seeds: dict[float, dict[str, float]] = {}
    for run in runs:
        x, bound = _number(run, key), squarable(run.metric(_BOUND_METRIC))
        if x is not None and bound is not None:
            seeds.setdefault(x, {})[_seed(run)] = bound
    intervals = {x: mean_interval(list(bounds.values())) for x, bounds in seeds.items()}
    values = {x: Measured(found.mean, found.low, found.high) for x, found in intervals.items()}
    return Line(family, BOUND, values, seeds)


def _number(record: Record, key: str) -> float | None:
    return squarable(record.flat.get(key))


def _seed(record: Record) -> str:
    return str(record.flat.get("seed"))
