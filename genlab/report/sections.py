"""The sections of a page: a list that is open to packages outside of genlab."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from genlab.report.averaging import averages_charts
from genlab.report.bounds import bound_charts
from genlab.report.collect import swept_keys
from genlab.report.colours import by_name
from genlab.report.details import configurations, environments, unfinished
from genlab.report.diagnostics import diagnostics as diagnostic_charts
from genlab.report.families import TITLES, about_families, comparisons, family_tables, front
from genlab.report.figures.curves import curves as curves_figure
from genlab.report.figures.families import front as front_figure
from genlab.report.models import comparison, models_charts
from genlab.report.parts import Part
from genlab.report.plane import plane_chart
from genlab.report.quality import quality_chart
from genlab.report.replicates import CAPTION, cells, has_replicates, summarise
from genlab.report.samplers import samplers_chart
from genlab.report.training import training_curves
from genlab.report.units import units_chart, units_note
from genlab.runs.text import printable


@dataclass(frozen=True)
class Section:
    """A section of the page of a group of runs.

    Attributes:
        name: its anchor, a word.
        title: its heading.
        context: called with the part of the page; returns what the template needs, or None where
            there is nothing to show.
        template: Jinja. It may call `chart(figure, label)` with a chart of Altair; text that it is
            given is escaped; `part` is there besides the context.
    """

    name: str
    title: str
    context: Callable[[Part], Mapping[str, Any] | None]
    template: str


def plane(part: Part) -> Mapping[str, Any] | None:
    """Return the rate-distortion plane."""
    figure = plane_chart(part.runs, list(part.sweeps.values()))
    return None if figure is None else {"figure": figure, "runs": _cards(part)}


def models(part: Part) -> Mapping[str, Any] | None:
    """Return quality and bound of several models over one setting."""
    return models_charts(part.records)


def samplers(part: Part) -> Mapping[str, Any] | None:
    """Return the cost and the distance of samplers."""
    figure = samplers_chart(part.runs)
    return None if figure is None else {"figure": figure}


def quality(part: Part) -> Mapping[str, Any] | None:
    """Return the measured quality of samples and reconstructions, unless `models` shows it."""
    return quality_chart(part.records) if comparison(part.records) is None else None


def averages(part: Part) -> Mapping[str, Any] | None:
    """Return what was measured of averages of the weights that were made after the training."""
    figures = averages_charts(part.runs)
    return {"figures": figures} if figures else None


def claims(part: Part) -> Mapping[str, Any] | None:
    """Return the classes of models of a page under equal budgets, beside the diffusion model's."""
    found = comparisons(part.of_page)
    ours = found[0].diffusion.records if found else ()
    if not any(record in part.records for record in ours):
        return None
    rows = front(found)
    return {
        "sentence": about_families(found),
        "tables": family_tables(found),
        "titles": TITLES,
        "features": found[0].diffusion.features,
        "figure": front_figure(rows, by_name(row["class"] for row in rows)) if rows else None,
    }


def bound(part: Part) -> Mapping[str, Any] | None:
    """Return the bounds of diffusion models over log-SNR."""
    figures = bound_charts(part.runs)
    return {"figures": figures} if figures else None


def units(part: Part) -> Mapping[str, Any] | None:
    """Return the KL of each latent unit."""
    figure = units_chart(part.runs)
    return None if figure is None else {"figure": figure, "note": units_note(part.runs)}


def curves(part: Part) -> Mapping[str, Any] | None:
    """Return the curves of the training."""
    found = training_curves(part.records)
    if not found["names"]:
        return None
    # A diffusion model's reconstruction term is equally close to zero in every run.
    is_diffusion = any(record.is_diffusion for record in part.records)
    wanted = "val/neg_elbo" if is_diffusion else "val/reconstruction"
    first = wanted if wanted in found["names"] else found["names"][0]
    shades = {point: colour for point, (colour, _) in part.settings.items()}
    found["runs"] = [
        {**run, "label": shown.label, "name": shown.point}
        for run, shown in zip(found["runs"], part.runs, strict=True)
    ]
    return {"curves": found, "first": first, "figure": curves_figure(shades)}


def runs(part: Part) -> Mapping[str, Any] | None:
    """Return the table of all runs, and that of the means over seeds."""
    points = summarise(part.records, swept_keys(part.records))
    seeds = cells(points) if has_replicates(points) else None
    rows = list(zip(part.runs, part.table.rows, part.table.cells(), strict=True))
    return {
        "rows": rows,
        "seeds": seeds,
        "caption_of_seeds": f"{CAPTION[:1].upper()}{CAPTION[1:]}.",
    }


def gallery(part: Part) -> Mapping[str, Any] | None:
    """Return the pictures and the videos by kind."""
    kinds = (*part.videos, *part.pictures)
    if not kinds:
        return None
    counts = {len(numbers) for _, numbers in part.settings.values()}
    columns = counts.pop() if len(counts) == 1 and len(part.sweeps) == 1 else 0
    mine = {path for kind in kinds for path in kind.files.values()}
    return {
        "kinds": kinds,
        "columns": columns if 1 < columns < 4 else 0,
        "too_large": [path for path in part.media.too_large if path in mine],
        "broken": [path for path in part.media.broken if path in mine],
    }


def diagnostics(part: Part) -> Mapping[str, Any] | None:
    """Return the charts of the other metrics of the test."""
    found = diagnostic_charts(part.runs)
    return {"charts": found} if found else None


def without_result(part: Part) -> Mapping[str, Any] | None:
    """Return the runs without a result."""
    found = unfinished(part.records)
    return {"runs": found} if found else None


def configs(part: Part) -> Mapping[str, Any] | None:
    """Return the configurations."""
    return configurations(part.runs)


def environment(part: Part) -> Mapping[str, Any] | None:
    """Return the commands of the sweeps, and the packages and machines of the runs."""
    commands = [
        printable(" ".join(manifest.command))
        for manifest in part.manifests.values()
        if manifest is not None and manifest.command
    ]
    found = environments(part.records)
    return {"commands": commands, "environments": found} if commands or found else None


def _cards(part: Part) -> list[dict[str, Any]]:
    """Return of each run what a card beside the plane shows: facts and pictures."""
    cards = []
    shown = {kind.name: kind for kind in part.pictures}
    for run, row in zip(part.runs, part.table.rows, strict=True):
        facts = [
            (column.heading, text)
            for column in part.table.columns
            if (column.source.startswith("test/") or column.heading == "forecast")
            and (text := column.text(row))
        ]
        pictures = [
            (name, number)
            for name in ("reconstructions", "samples")
            if name in shown
            and run.number in shown[name].files
            and (number := part.medium(shown[name].files[run.number])) is not None
        ]
        cards.append({"run": run, "facts": facts, "pictures": pictures})
    return cards


def _template(name: str) -> str:
    path = files("genlab.report") / "templates" / f"{name}.html.j2"
    return path.read_text(encoding="utf-8")


def _own(name: str, title: str, context: Callable[[Part], Mapping[str, Any] | None]) -> Section:
    return Section(name, title, context, _template(name))


#: The sections of a page, in their order: the figure that answers first, then the numbers.
SECTIONS: tuple[Section, ...] = (
    _own("models", "Models by setting", models),
    _own("samplers", "Cost and quality of samples", samplers),
    _own("plane", "Rate and distortion", plane),
    _own("quality", "Quality of samples", quality),
    _own("averages", "Averages of the weights", averages),
    _own("claims", "Classes of models under equal budgets", claims),
    _own("bound", "Where the bound is spent", bound),
    _own("units", "Latent units", units),
    _own("runs", "Runs", runs),
    _own("gallery", "Pictures and videos", gallery),
    _own("curves", "Training", curves),
    _own("diagnostics", "Diagnostics", diagnostics),
    _own("unfinished", "Without a result", without_result),
    _own("configs", "Configurations", configs),
    _own("environment", "Environment", environment),
)
