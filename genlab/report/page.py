"""Build the report of runs as one HTML file, readable without a network."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from genlab import __version__
from genlab.media import charts
from genlab.report import vega
from genlab.report.collect import Record
from genlab.report.figures.parts import zoom
from genlab.report.groups import apart, groups
from genlab.report.media import Media, relative_url
from genlab.report.naming import sweep_names
from genlab.report.parts import Part, parts
from genlab.report.sections import SECTIONS, Section
from genlab.runs.text import printable

# The page may fetch nothing: it contains all that it shows.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src data: blob:; font-src data:; base-uri 'none'; "
    "form-action 'none'"
)


def report_page(
    records: Sequence[Record],
    directory: Path,
    sections: Sequence[Section] = (),
    as_one: bool = False,
    renewed: float | None = None,
) -> str:
    """Build the page for `directory`, to which its links to files too large to embed are relative.

    Args:
        sections: of each group of runs, after those of every page.
        as_one: whether runs of several sweeps were asked about as one.
        renewed: seconds after which a browser reads the page again; None for a page that is done.

    Raises:
        RunDirectoryError: there are no records.
    """
    media = Media()
    found = groups(records, as_one)
    shown = parts(found, directory, media)
    for part in shown:
        media.add_pictures([path for kind in part.pictures for path in kind.files.values()])
    for part in shown:
        whole_first = sorted((i >= 0, p) for kind in part.videos for i, p in kind.files.items())
        media.add_videos([path for _, path in whole_first])
    environment = _environment(directory)
    built = [(part, _built(part, (*SECTIONS, *sections), environment)) for part in shown]
    has_charts = any('<div class="chart"' in html for _, found in built for *_, html in found)
    return environment.from_string(_text("page.html.j2")).render(
        policy=_POLICY,
        parts=built,
        apart=apart(found),
        title=" beside ".join(sweep_names(records).values()),
        css=_text("page.css"),
        version=__version__,
        in_nats=any(record.metric("test/neg_elbo") is not None for record in records),
        media=list(media.embedded.values()),
        config=charts.page_config(),
        vega=_script(vega.library()) if has_charts else "",
        code=_script(_text("page.js")),
        renewed=renewed,
    )


def _built(
    part: Part, sections: Sequence[Section], environment: Environment
) -> list[tuple[str, str, str]]:
    """Return the anchor, the title and the HTML of each section that has something to show."""
    built = []
    for section in sections:
        context = section.context(part)
        if context is not None:
            name = part.anchor(section.name)
            html = environment.from_string(section.template).render(**context, part=part)
            built.append((name, section.title, html))
    return built


def _environment(directory: Path) -> Environment:
    """Return the environment of all templates, which escapes whatever is not a constant of them."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.globals["specification"] = _specification
    # a macro, so that what it writes counts as escaped
    environment.globals["chart"] = vars(environment.from_string(_CHART).module)["chart"]
    environment.filters["url"] = lambda path: relative_url(path, directory)
    environment.filters["path"] = lambda path: printable(str(path), kept="")
    environment.filters["name"] = lambda path: printable(path.name, kept="")
    return environment


_CHART = """\
{% macro chart(figure, label, dynamic=False, zooms=False) %}
{% set spec = specification(figure, label, zooms) %}
<div class="chart" style="min-height:{{ spec.height + 50 }}px"{{ " data-dynamic" if dynamic }}>
<div class="vega"></div>
<script type="application/json">{{ spec|tojson }}</script>
</div>
{% endmacro %}"""


def _specification(figure: Any, label: str, zooms: bool) -> dict[str, Any]:
    """Return the Vega-Lite of a chart that is as wide as its place.

    Args:
        label: the chart in words, for those who do not see it.
        zooms: whether a mouse moves and zooms it.
    """
    spec = charts.spec(figure.add_params(zoom()) if zooms else figure)
    return {"height": 300} | spec | {"width": "container", "description": label}


def _text(name: str) -> str:
    return (files("genlab.report") / name).read_text(encoding="utf-8")


def _script(code: str) -> str:
    """Escape a program for a script element."""
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--")
