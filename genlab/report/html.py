"""Build the report of one or several sweeps as one HTML file, readable without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from genlab import __version__
from genlab.report.answer import answer
from genlab.report.collect import Record, manifest_of, swept_keys
from genlab.report.colours import colours
from genlab.report.details import configs_section, environment_section, unfinished_section
from genlab.report.diagnostics import bound_figures, diagnostic_figures
from genlab.report.figures import ShownRun
from genlab.report.markup import Markup, element, join, script_code, script_json
from genlab.report.media import Kind, Media, picture_kinds, relative_url, video_kinds
from genlab.report.naming import data_names, run_label, setting_text, sweep_names
from genlab.report.plane_figure import plane_figure
from genlab.report.sections import (
    curves_section,
    diagnostics_section,
    gallery_section,
    plane_section,
    table_section,
    units_section,
)
from genlab.report.tables import Table, in_order, sweep_table
from genlab.report.training import training_curves
from genlab.report.units import units_figure, units_note
from genlab.runs.manifest import Manifest
from genlab.runs.points import short_names, without_seed
from genlab.runs.text import printable

# The page may fetch nothing: it contains all that it shows.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src data: blob:; font-src data:; base-uri 'none'; "
    "form-action 'none'"
)


def report_page(records: Sequence[Record], directory: Path) -> str:
    """Build the page for `directory`, to which its links to files too large to embed are relative.

    Raises:
        RunDirectoryError: there are no records.
    """
    table = sweep_table(records)
    # The chart of the active units makes a sentence about them superfluous.
    has_units = any(column.heading == "active units" for column in table.columns)
    columns = [c for c in table.columns if c.heading != "verdict" or not has_units]
    table = replace(table, columns=columns)
    runs = _runs(in_order(records))
    sweeps = sweep_names([run.record for run in runs])
    manifests = {sweep: manifest_of(sweep) for sweep in sweeps}
    ordered = [run.record for run in runs]
    media, pictures, videos = Media(), picture_kinds(ordered), video_kinds(ordered, directory)
    media.add_pictures([path for kind in pictures for path in kind.files.values()])
    whole_first = sorted((i >= 0, path) for kind in videos for i, path in kind.files.items())
    media.add_videos([path for _, path in whole_first])

    numbers = {path: i for i, path in enumerate(media.embedded)}
    gallery = [_gallery_entry(kind, media, numbers, directory) for kind in (*videos, *pictures)]
    curves = training_curves(ordered)
    # A diffusion model's reconstruction term is equally close to zero in every run.
    is_diffusion = any(record.is_diffusion for record in ordered)
    curves["first"] = "val/neg_elbo" if is_diffusion else "val/reconstruction"
    diagnostics = [*diagnostic_figures(runs), *bound_figures(runs)]
    plane, units = plane_figure(runs, list(sweeps.values())), units_figure(runs)
    sections = [
        ("plane", "Rate and distortion", plane_section() if plane else None),
        ("units", "Latent units", units_section(units_note(runs)) if units else None),
        ("curves", "Training", curves_section() if curves["names"] else None),
        ("runs", "Runs", table_section(table, runs)),
        ("gallery", "Pictures and videos", gallery_section(media, directory) if gallery else None),
        ("diagnostics", "Diagnostics", diagnostics_section() if diagnostics else None),
        ("unfinished", "Without a result", unfinished_section(ordered)),
        ("configs", "Configurations", configs_section(runs)),
        ("environment", "Environment", environment_section(ordered, manifests)),
    ]
    content = {
        "runs": [_run_entry(run, row, table) for run, row in zip(runs, table.rows, strict=True)],
        "sweeps": list(sweeps.values()),
        "plane": plane,
        "units": units,
        "curves": curves,
        "gallery": gallery,
        "diagnostics": diagnostics,
    }
    shown = [(name, title, body) for name, title, body in sections if body is not None]
    package = files("genlab.report")
    return Template((package / "page.html").read_text(encoding="utf-8")).substitute(
        policy=_POLICY,
        title=join(" beside ".join(sweeps.values())),
        css=(package / "page.css").read_text(encoding="utf-8"),
        header=_header(runs, sweeps, manifests),
        contents=join(
            *(element("li", element("a", title, href=f"#{name}")) for name, title, _ in shown)
        ),
        sections=join(*(_section(*section) for section in shown)),
        version=join(__version__),
        content=script_json(content),
        media=join(*(_medium(i, *embedded) for i, embedded in enumerate(media.embedded.values()))),
        plotly=_plotly() if plane or units or diagnostics or curves["names"] else "",
        code=script_code((package / "page.js").read_text(encoding="utf-8")),
    )


def question(records: Sequence[Record], manifest: Manifest | None) -> str:
    """Return the question of a sweep: the one in its manifest, else one made of its swept keys."""
    if manifest is not None and manifest.question:
        return printable(manifest.question)
    data = data_names([record for record in records if record.flat])
    settings = list(short_names(without_seed(swept_keys(records))).values())
    where = f" on {data}" if data else ""
    if not settings:
        return f"How well does {records[0].family or 'this model'} do{where}?"
    verb = "do" if len(settings) > 1 else "does"
    return f"What {verb} {' and '.join(settings)} change{where}?"


def _runs(records: Sequence[Record]) -> list[ShownRun]:
    swept = swept_keys(records)
    settings = without_seed(swept)
    sweeps = sweep_names(records)
    shades = colours([{key: record.flat.get(key) for key in settings} for record in records])
    runs = []
    for i, (record, colour) in enumerate(zip(records, shades, strict=True)):
        point = run_label(record, settings) or record.run_id
        seed = f", seed {setting_text('seed', record.flat.get('seed'))}" if "seed" in swept else ""
        where = f"{sweeps[record.sweep]}: " if len(sweeps) > 1 else ""
        sweep = list(sweeps).index(record.sweep)
        runs.append(ShownRun(record, i, point, f"{where}{point}{seed}", colour, sweep))
    return runs


def _header(
    runs: Sequence[ShownRun], sweeps: Mapping[Path, str], manifests: Mapping[Path, Manifest | None]
) -> Markup:
    records = [run.record for run in runs]
    asked = [
        question([r for r in records if r.sweep == sweep], manifests[sweep]) for sweep in sweeps
    ]
    finding, *rest = _sentences(answer(records))
    done = sum(record.state == "completed" for record in records)
    missing = len(records) - done
    counts = f"{done} run{'' if done == 1 else 's'} with a result"
    return element(
        "header",
        element("p", " beside ".join(sweeps.values()), class_="eyebrow"),
        element("h1", " ".join(dict.fromkeys(asked))),
        element("p", finding, class_="finding", id="answer"),
        element("p", " ".join(rest), class_="more") if rest else None,
        element(
            "p",
            counts,
            ", " if missing else None,
            element("a", f"{missing} without", href="#unfinished") if missing else None,
            class_="counts",
        ),
    )


def _sentences(text: str) -> list[str]:
    """Split off the first sentence; a point in a number or a name does not end it."""
    first, mark, rest = text.partition(". ")
    return [first + ("." if mark else ""), *([rest] if rest else [])]


def _section(name: str, title: str, body: Markup) -> Markup:
    return element("section", element("h2", title), body, id=name)


def _gallery_entry(
    kind: Kind, media: Media, numbers: Mapping[Path, int], directory: Path
) -> dict[str, Any]:
    """Describe a kind for the page's script: for each run the index of a medium, or a link."""
    return {
        "name": kind.name,
        "title": kind.title,
        "video": kind.is_video,
        "files": [
            [i, numbers[path] if path in numbers else relative_url(path, directory)]
            for i, path in sorted(kind.files.items())
            if path not in media.broken
        ],
    }


def _run_entry(run: ShownRun, row: Mapping[str, Any], table: Table) -> dict[str, Any]:
    numbers = [(column, column.text(row)) for column in table.columns]
    return {
        "id": run.record.run_id,
        "label": run.label,
        "point": run.point,
        "sweep": run.sweep,
        "state": run.record.state,
        "error": run.record.error,
        "colour": run.colour,
        "facts": [
            [column.heading, text]
            for column, text in numbers
            if text and (column.source.startswith("test/") or column.heading == "forecast")
        ],
        "values": {
            column.heading.replace(" ", "_"): value
            for column in table.columns
            if isinstance(value := column.value(row), int | float)
        },
    }


def _medium(number: int, mime: str, text: str) -> Markup:
    return element("script", Markup(text), type="text/plain", id=f"m{number}", data_mime=mime)


def _plotly() -> Markup:
    library = (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    # As text that the page runs once its words are visible, since compiling it takes a second.
    return element("script", script_code(library), type="text/plain", id="plotly")
