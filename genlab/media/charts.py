"""Altair charts: their common look, and PNG and SVG files of them (no torch, no display).

A figure is a function: a small table in, a chart out. It names no colour, size or font. A mark
takes a *style* (`guide`, `forecast`, ...), and a category takes the next colour of the palette;
both are in `config`, so that one chart fits a light and a dark page:

    def loss_by_step(rows: Rows) -> alt.Chart:
        import altair as alt
        return alt.Chart(charts.table(rows)).mark_line().encode(alt.X("step:Q"), alt.Y("nats:Q"))

    charts.save(loss_by_step(rows), "loss.png", "loss.svg")   # files, always light
    charts.spec(loss_by_step(rows))                           # for vegaEmbed(.., {config: ..})
    charts.config(), charts.config(dark=True)                 # the two looks of a page
    charts.page_config()                                      # both in one, chosen by CSS

Fields have fixed names, since Vega-Lite reads `.` and `[` in a name; names that a user chose are
values of a table. Altair and vl-convert are imported where they are used: together 0.3 s.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from genlab.runs.files import write_atomically
from genlab.runs.text import printable

Name = TypeVar("Name")

if TYPE_CHECKING:
    import altair as alt

    Chart = alt.TopLevelMixin

Rows = Iterable[Mapping[str, Any]]
Points = tuple[Sequence[float], Sequence[float]]

#: (light, dark) for each category, distinguishable with red-green colour blindness (after Wong
#: 2011, Nature Methods 8).
CATEGORIES = (
    ("#0072b2", "#56a8e0"),
    ("#d55e00", "#f08a3c"),
    ("#009e73", "#2fc49b"),
    ("#b0508f", "#e39ac6"),
    ("#a87400", "#e6b94a"),
    ("#2f7fb0", "#8fd0f5"),
    ("#4d4d4d", "#c4c4c4"),
)
#: Viridis (van der Walt & Smith 2015) at even steps, without the end that the page would hide.
ORDERED = (
    ("#46327e", "#8a77d6"),
    ("#365c8d", "#5b8fd0"),
    ("#277f8e", "#35a8b8"),
    ("#1fa187", "#2fc49b"),
    ("#4ac16d", "#7ad151"),
    ("#93b81f", "#f0e13c"),
)
#: Dashes by order, for what a colour does not tell: solid, dashed, dotted, ...
DASHES = ([1, 0], [7, 4], [2, 3], [10, 3, 2, 3], [14, 4], [10, 3, 2, 3, 2, 3])
#: Width of a line in pixels, and how far one is wider than the next that lies on it.
_WIDTH, _WIDER = 2.0, 3.0
#: Lines are taken to lie on each other if half of their points are this part of all values apart.
_NEAR = 0.01
#: Pixels of a letter and of the mark before a name in a key.
_LETTER, _MARK = 6.2, 40
#: (light, dark) of a page's paper, text, secondary text, lines, and of what is not measured.
PAPER, INK, SOFT = ("#ffffff", "#14171a"), ("#1d2329", "#e8eaed"), ("#5a636d", "#a3abb4")
FAINT, GRID = ("#a9b0b8", "#626a73"), ("#e3e5e8", "#2b3036")
FORECAST, COLLAPSED = ("#c4701f", "#e69a4c"), ("#b3262e", "#ff8a80")
#: vl-convert contains the first of them, so that a file is the same on every machine.
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
_CLIP = re.compile(r'(url\(#clip|id="clip)(\d+)(\)|")')
#: Pixels of a PNG for each pixel of its chart.
SCALE = 2


def config(dark: bool = False) -> dict[str, Any]:
    """Return the look of all charts as a Vega-Lite config, for light or for dark paper.

    Styles of marks: `guide` (a thin line to read values by), `note` (its text), `name` (the name of
    a point), `soft` (of less weight), `veil` (the paper around a name, on top of lines), `forecast`
    (computed, not measured), `collapsed`, `faint` (what is not selected). Style of the title of one
    panel among several: `panel`.
    """
    paper, ink, soft, faint, line, forecast, collapsed = (
        colour[dark] for colour in (PAPER, INK, SOFT, FAINT, GRID, FORECAST, COLLAPSED)
    )
    text = {"font": FONT, "fontSize": 12}
    return {
        "background": paper,
        "font": FONT,
        "padding": 10,
        "view": {"stroke": None, "continuousWidth": 420, "continuousHeight": 300},
        "title": {
            "anchor": "start",
            "frame": "group",
            "color": ink,
            "fontSize": 14,
            "fontWeight": 600,
            "subtitleColor": soft,
            "subtitleFontSize": 12,
            "subtitlePadding": 4,
            "offset": 12,
        },
        "axis": {
            "labelColor": soft,
            "labelFontSize": 11,
            "titleColor": ink,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "domainColor": faint,
            "tickColor": faint,
            "gridColor": line,
            "labelOverlap": "greedy",
            "labelFlush": False,
        },
        "header": {"labelColor": ink, "labelFontSize": 12, "title": None, "labelAnchor": "start"},
        "legend": {
            "labelColor": ink,
            "titleColor": soft,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "labelLimit": 0,
            "layout": {"bottom": {"anchor": "start", "direction": "vertical"}},
            "symbolBaseFillColor": soft,
            "symbolBaseStrokeColor": soft,
            "symbolStrokeWidth": 2,
        },
        "range": {
            "category": [colour[dark] for colour in CATEGORIES],
            "ordinal": [colour[dark] for colour in ORDERED],
            "ramp": [colour[dark] for colour in ORDERED],
        },
        "mark": {"color": CATEGORIES[0][dark]},
        "text": {"color": ink, **text},
        "point": {"filled": True, "size": 70, "opacity": 1},
        "style": {
            "guide": {"color": faint, "strokeWidth": 0.8},
            "note": {"color": soft, "fontSize": 11},
            "soft": {"color": soft},
            "name": {"color": ink},
            "veil": {"stroke": paper, "strokeWidth": 4, "strokeJoin": "round"},
            "forecast": {"color": forecast},
            "collapsed": {"color": collapsed},
            "faint": {"color": faint},
            "panel": {"fill": ink, "fontSize": 13, "fontWeight": "normal"},
        },
    }


def page_config() -> dict[str, Any]:
    """Return both looks in one, with colours of CSS, for SVG on a page that is light or dark.

    A page takes the light one on paper. A chart has no ground of its own, and its legend shows no
    more than what a chart asks for, since a page names the settings itself.
    """
    found: dict[str, Any] = _both(config(), config(dark=True))
    legend = {"disable": True, "labelLimit": 290}
    return found | {"background": None, "padding": 2, "legend": found["legend"] | legend}


def _both(light: Any, dark: Any) -> Any:
    if isinstance(light, dict):
        return {key: _both(value, dark[key]) for key, value in light.items()}
    if isinstance(light, list):
        return [_both(*pair) for pair in zip(light, dark, strict=True)]
    return light if light == dark else f"light-dark({light}, {dark})"


def table(rows: Rows) -> alt.Data:
    """Convert rows to the data of a chart: numbers that are not finite become null (gaps)."""
    import altair as alt

    return alt.Data(values=[_plain(dict(row)) for row in rows])


def widths(lines: Mapping[Name, Points]) -> dict[Name, float]:
    """Choose the width of each line, in pixels, so that all can be seen, drawn in this order.

    A line on which others lie is wider than they are, and so shows on both sides of them.
    """
    values = [y for _, ys in lines.values() for y in ys if math.isfinite(y)]
    near = _NEAR * (max(values) - min(values)) if values else 0.0
    names = list(lines)
    layers = dict.fromkeys(names, 0)
    for i in reversed(range(len(names))):
        above = [layers[n] for n in names[i + 1 :] if _is_on(lines[n], lines[names[i]], near)]
        layers[names[i]] = 1 + max(above) if above else 0
    return {name: _WIDTH + _WIDER * layer for name, layer in layers.items()}


def _is_on(upper: Points, lower: Points, near: float) -> bool:
    order = np.argsort(lower[0])
    x, y = (np.asarray(part, float)[order] for part in lower)
    at, value = (np.asarray(part, float) for part in upper)
    inside = (at >= x[0]) & (at <= x[-1])
    apart = np.abs(np.interp(at[inside], x, y) - value[inside])
    return bool(inside.any() and np.median(apart) <= near)


def key(names: Sequence[str], width: float, title: str | None = None) -> alt.Legend:
    """Make the key of a chart of this width in pixels: below it, with the columns that fit."""
    import altair as alt

    columns = int(width / (_MARK + _LETTER * max(map(len, names))))
    return alt.Legend(
        title=title,
        orient="bottom",
        columns=max(1, min(len(names), columns)),
        symbolType="stroke",
        symbolSize=400,
    )


def decades(values: Iterable[float]) -> list[float]:
    """Return ticks of a logarithmic axis over these values: powers of ten, or 1, 2, 5 in between.

    Values that are not above 0 have no place on such an axis.
    """
    found = [value for value in values if 0 < value < math.inf]
    if not found:
        return []
    low, high = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)))
    steps = (1, 2, 5) if high - low < 3 else (1,)
    return [step * 10.0**i for i in range(low, high + 1) for step in steps]


def spec(chart: Chart) -> dict[str, Any]:
    """Return the chart as a Vega-Lite specification without a look, whose texts are safe to show.

    Control characters become visible escapes; vl-convert would abort the process at one.
    """
    import altair as alt

    # Validation takes 0.15 ms a row, and Altair checks what a chart is made of when it is made.
    # So does the conversion of named tables, which are plain already.
    whole: Any = chart.copy(deep=False)  # type: ignore[attr-defined]
    tables, whole.datasets = whole.datasets, alt.Undefined
    made = whole.to_dict(validate=False)
    made.pop("config", None)
    if tables is not alt.Undefined:
        made["datasets"] = {**made.get("datasets", {}), **tables}
    return dict(_plain(made))


def png(chart: Chart) -> bytes:
    """Return the chart as the content of a PNG file, the same bytes for the same chart."""
    return _png(svg(chart))


def svg(chart: Chart) -> str:
    """Return the chart as the content of an SVG file, the same text for the same chart."""
    import vl_convert

    content: str = vl_convert.vegalite_to_svg(
        json.dumps(spec(chart)), config=config(), allowed_base_urls=[]
    )
    # Vega counts clip paths on from chart to chart.
    ids: dict[str, str] = {}
    return _CLIP.sub(lambda m: m[1] + ids.setdefault(m[2], str(len(ids))) + m[3], content)


def _png(drawn: str) -> bytes:
    import vl_convert

    content: bytes = vl_convert.svg_to_png(drawn, scale=SCALE)
    return content


def pixels(chart: Chart) -> npt.NDArray[np.uint8]:
    """Return the chart as a picture (H, W, 3)."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png(chart))).convert("RGB"))


def save(chart: Chart, *paths: str | os.PathLike[str]) -> None:
    """Write the chart atomically to each path, as SVG or PNG by its suffix; folders must exist."""
    drawn = svg(chart)
    for path in paths:
        write_atomically(path, drawn if Path(path).suffix == ".svg" else _png(drawn))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    # Numbers and arrays of numpy have a method that converts them to plain ones.
    return _plain(value.tolist()) if hasattr(value, "tolist") else value
