"""Charts: what a file shows is what the table holds, the same on every machine."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import altair as alt
import numpy as np
import pytest
from PIL import Image

from genlab.media import charts


def texts(chart: alt.TopLevelMixin) -> list[str]:
    """The texts that the SVG of a chart shows."""
    root = ElementTree.fromstring(charts.svg(chart))
    return [text.text for text in root.iter("{http://www.w3.org/2000/svg}text") if text.text]


def line(rows: charts.Rows, kind: str = "linear") -> alt.Chart:
    return (
        alt.Chart(charts.table(rows))
        .mark_line()
        .encode(alt.X("x:Q"), alt.Y("y:Q").scale(type=kind), alt.Color("name:N"))
    )


@pytest.mark.parametrize("kind", ["linear", "log", "symlog"])
@pytest.mark.parametrize("high", [5.0, 1e5, 1e-5])
def test_ticks_are_numbers_and_names_are_as_they_are_typed(kind: str, high: float) -> None:
    rows = [{"x": x, "y": y, "name": "$a_1$"} for x, y in ((1.0, 1.0), (2.0, high))]
    shown = set(texts(line(rows, kind)))
    assert "$a_1$" in shown
    ticks = shown - {"$a_1$", "x", "y", "name"}
    values = [float(tick.replace("−", "-").replace(",", "")) for tick in ticks]
    assert len(values) > 4


def test_no_text_ends_the_process() -> None:
    """vl-convert aborts at a character that XML forbids."""
    name = "a\x00b\x1b[31m\x07\ud800\ufffe\U000e0001"
    rows = [{"x": x, "y": 1.0, "name": name} for x in range(2)]
    chart = line(rows).properties(title={"text": name, "subtitle": [name]})
    shown = texts(chart)
    assert len([text for text in shown if r"\x1b[31m" in text]) == 3
    assert charts.png(chart)


def test_what_is_not_finite_is_a_gap() -> None:
    values = [1.0, math.nan, math.inf, np.float32(2.5), np.int64(3)]
    chart = line([{"x": x, "y": y} for x, y in enumerate(values)])
    kept = [row["y"] for row in charts.spec(chart)["data"]["values"]]
    assert kept == [1.0, None, None, 2.5, 3]
    assert charts.png(chart)


def test_files_are_the_same_bytes_each_time_and_complete(tmp_path: Path) -> None:
    chart = line([{"x": x, "y": x * x, "name": "a"} for x in range(9)])
    first, second = ([tmp_path / f"{n}.png", tmp_path / f"{n}.svg"] for n in "ab")
    charts.save(chart, *first)
    charts.save(chart, *second)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert len(list(tmp_path.iterdir())) == 4  # and no temporary one
    size = re.search(r'width="(\d+)" height="(\d+)"', first[1].read_text())
    assert size
    drawn = Image.open(first[0]).size
    assert drawn == tuple(charts.SCALE * int(number) for number in size.groups())
    assert charts.pixels(chart).shape == (*drawn[::-1], 3)


def test_a_font_of_every_machine_is_used() -> None:
    assert set(re.findall('font-family="([^"]*)"', charts.svg(line([{"x": 1, "y": 1}])))) == {
        charts.FONT
    }
    one = alt.Chart(charts.table([{"x": 1}])).mark_text(text="Rag 0.123")
    ink = np.asarray(Image.open(io.BytesIO(charts.png(one))).convert("L")) < 100
    assert ink.any()  # a font that vl-convert lacks would leave no text at all


def contrast(colour: str, paper: str) -> float:
    """Contrast of two colours (WCAG 2.2, relative luminance)."""

    def luminance(of: str) -> float:
        parts = [int(of[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(colour), luminance(paper)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_colours_are_readable_on_their_paper(dark: bool) -> None:
    paper = charts.PAPER[dark]
    for colour in (charts.INK[dark], charts.SOFT[dark]):
        assert contrast(colour, paper) >= 4.5
    for pair in (*charts.CATEGORIES, charts.FORECAST, charts.COLLAPSED):
        assert contrast(pair[dark], paper) >= 3, pair[dark]


def test_both_looks_of_a_page_differ_in_colours_alone() -> None:
    def without_colours(node: object) -> object:
        if isinstance(node, dict):
            return {key: without_colours(value) for key, value in node.items()}
        if isinstance(node, list):
            return [without_colours(value) for value in node]
        return "colour" if isinstance(node, str) and node.startswith("#") else node

    light, dark = charts.config(), charts.config(dark=True)
    assert light != dark
    assert without_colours(light) == without_colours(dark)


def test_importing_charts_imports_no_library_of_charts() -> None:
    code = (
        "import sys, genlab.media.charts;"
        "print({'torch', 'altair', 'vl_convert', 'matplotlib'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_lines_that_lie_on_each_other_differ_in_width() -> None:
    x = [0.0, 1.0, 2.0, 3.0]
    found = charts.widths(
        {
            "a": (x, [0.0, 1.0, 2.0, 3.0]),
            "b": (x[::-1], [3.0, 2.0, 1.0, 0.001]),  # on a
            "apart": (x, [3.0, 2.0, 1.0, 0.0]),
            "c": ([0.5, 2.5], [0.5, 2.5]),  # on a and b, with other points
            "beside": ([5.0, 6.0], [5.0, 6.0]),
        }
    )
    assert found["a"] > found["b"] > found["c"] == found["apart"] == found["beside"]
    assert charts.widths({"one": (x, x)}) == {"one": found["c"]}
    assert charts.widths({"none": ([], [])}) == {"none": found["c"]}


@pytest.mark.parametrize("values", [[0.003, 4000.0], [12.0, 12.0], [19.0, 43.0], [1e-9, 1.0]])
def test_logarithmic_ticks_enclose_the_values_and_are_round(values: list[float]) -> None:
    ticks = charts.decades([*values, 0.0, -1.0, math.inf, math.nan])
    assert ticks == sorted(ticks) and len(ticks) >= 2
    assert ticks[0] <= min(values) and max(values) <= ticks[-1]
    assert all(f"{tick:.0e}"[0] in "125" for tick in ticks)
    assert charts.decades([0.0]) == []
