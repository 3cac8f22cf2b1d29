"""Build the sections of a page that its script fills or sorts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genlab.report.collect import swept_keys
from genlab.report.figures import ShownRun
from genlab.report.markup import Markup, element, join
from genlab.report.media import Media, relative_url
from genlab.report.replicates import CAPTION, Replicates, cells, has_replicates, summarise
from genlab.report.tables import Table
from genlab.runs.text import printable


def plane_section() -> Markup:
    """Build the section of the rate-distortion plane."""
    return join(
        element(
            "p",
            "Each point is a run: right is more nats of information in the latent code, up is a "
            "worse reconstruction; thin lines join equal neg_elbo. Point at a run to see it, click "
            "to keep it beside others.",
            class_="note",
        ),
        element("div", class_="key"),
        element(
            "div",
            element(
                "div",
                element("div", class_="chart", id="plane-chart"),
                element("ul", class_="legend", id="legend"),
            ),
            element("aside", id="pointed", aria_label="the run that is pointed at"),
            class_="beside",
        ),
        element("div", id="kept", role="region", aria_label="runs that were kept"),
    )


def units_section(note: str) -> Markup:
    """Build the section of the KL of each latent unit, with its note."""
    return join(
        element("p", note, class_="note"),
        element("div", class_="key"),
        element("div", class_="chart", id="units-chart"),
    )


def curves_section() -> Markup:
    """Build the section of the curves over training."""
    return join(
        element(
            "p",
            "What was logged on the way: val/ is measured on images held out from training.",
            class_="note",
        ),
        element(
            "div",
            element("label", "Metric ", element("select", id="metric"), for_="metric"),
            element(
                "label", element("input", type="checkbox", id="logarithmic"), " logarithmic scale"
            ),
            class_="controls",
        ),
        element("div", class_="key"),
        element("div", class_="chart", id="curve-chart"),
    )


def diagnostics_section() -> Markup:
    """Build the section of the other test metrics."""
    return join(
        element(
            "p",
            "What else was measured on the test set, by setting; a point or a line is a run. Where "
            "there are any, an orange dash is the linear forecast, and a dotted line the most that "
            "can be read: all units, or the logarithm of the number of images.",
            class_="note",
        ),
        element("div", class_="key"),
        element("div", class_="charts"),
    )


def table_section(table: Table, runs: Sequence[ShownRun]) -> Markup:
    """Build the section of the sortable table of all runs."""
    headings = [element("th", element("span", "keep", class_="hidden"), scope="col")]
    for column in table.columns:
        button = element("button", column.heading, type="button")
        kind = "number" if column.numeric else None
        headings.append(element("th", button, scope="col", aria_sort="none", class_=kind))
    rows = []
    for run, row, texts in zip(runs, table.rows, table.cells(), strict=True):
        box = element("input", type="checkbox", aria_label=f"keep {run.label}")
        shown = [element("td", box, element("span", class_="swatch"), class_="keep")]
        for column, cell in zip(table.columns, texts, strict=True):
            is_state = column.heading == "state"
            text = element("span", cell, class_=f"state {run.record.state}") if is_state else cell
            value = column.value(row)
            shown.append(
                element(
                    "td",
                    text,
                    class_="number" if column.numeric else None,
                    data_value=repr(float(value)) if isinstance(value, int | float) else None,
                )
            )
        rows.append(
            element("tr", *shown, data_run=run.number, style=_shades(run.colour), title=run.label)
        )
    points = summarise([run.record for run in runs], swept_keys([run.record for run in runs]))
    return join(
        element(
            "div",
            element(
                "label",
                "Filter ",
                element(
                    "input",
                    type="search",
                    id="filter",
                    placeholder="words, or kl<5",
                    autocomplete="off",
                    spellcheck="false",
                ),
                for_="filter",
            ),
            element("span", id="matches", role="status"),
            element("button", "Keep none", type="button", id="keep-none", class_="plain"),
            class_="controls",
        ),
        element(
            "div",
            element(
                "table",
                element("thead", element("tr", *headings)),
                element("tbody", *rows),
                id="table",
            ),
            class_="scroll",
            tabindex="0",
            role="region",
            aria_label="table of runs",
        ),
        element("p", table.caption, class_="note"),
        _seeds_table(points) if has_replicates(points) else None,
    )


def _seeds_table(points: Sequence[Replicates]) -> Markup:
    """Build the table of mean, 95 % interval and standard deviation of each setting over seeds."""
    headings, rows = cells(points)
    head = element("tr", *(element("th", text, scope="col", class_="number") for text in headings))
    body = [element("tr", *(element("td", text, class_="number") for text in row)) for row in rows]
    return join(
        element("h3", "By setting, over seeds"),
        element(
            "div",
            element("table", element("thead", head), element("tbody", *body)),
            class_="scroll",
            tabindex="0",
            role="region",
            aria_label="means over seeds",
        ),
        element("p", f"{CAPTION[:1].upper()}{CAPTION[1:]}.", class_="note"),
    )


def gallery_section(media: Media, directory: Path) -> Markup:
    """Build the section of pictures and videos, with links to files too large to embed."""
    notes = []
    if media.too_large:
        links = [
            element("li", element("a", _name(path), href=url), f" in {_name(path.parents[1])}")
            for path in media.too_large
            if (url := relative_url(path, directory))
        ]
        notes.append(
            element(
                "details",
                element(
                    "summary",
                    f"{len(links)} files are too large together for this page and lie beside it",
                ),
                element("ul", *links),
            )
        )
    if media.broken:
        names = ", ".join(f"{_name(p.parents[1])}/{_name(p)}" for p in media.broken)
        notes.append(element("p", f"Could not be read: {names}.", class_="note"))
    return join(
        element(
            "p",
            "Every run gets the same inputs and the same noise, so that what differs is the model.",
            class_="note",
        ),
        element("div", class_="controls", id="kinds", role="group", aria_label="what to show"),
        element("div", id="shown"),
        *notes,
    )


def _name(path: Path) -> str:
    return printable(path.name, kept="")


def _shades(colour: str) -> str:
    light, _, dark = colour.partition("|")
    return f"--light:{light};--dark:{dark}"
