"""Charts: texts are shown as they are written."""

from __future__ import annotations

import pytest
from matplotlib.text import Text

from genlab.media import matplotlib_charts as charts


@pytest.mark.parametrize("high", [5.0, 1e5])
def test_no_text_of_a_chart_is_a_formula(high: float) -> None:
    figure, (axes,) = charts.panels(1)
    charts.draw_lines(axes, {"$a$": ([1.0, 2.0], [1.0, high])})
    axes.set(yscale="log")
    charts.add_legend(figure)
    charts.pixels(figure)
    texts = {text.get_text() for text in figure.findobj(Text) if text.get_visible()}
    assert not any("mathdefault" in text for text in texts)
    assert {"$a$", "1"} <= texts
