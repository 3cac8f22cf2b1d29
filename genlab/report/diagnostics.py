"""Small charts of the other test metrics, and of the bound over log-SNR."""

from __future__ import annotations

import math
from collections.abc import Sequence

from genlab.metrics.names import describe, ordered
from genlab.report.collect import Record
from genlab.report.curves import BoundCurve, bound_curve, shown_log_snr
from genlab.report.figures import FAINT, FORECAST, Figure, ShownRun, without_the_key
from genlab.report.markup import plotly_text

_CAPS = {"active_units": "model.latent_dim", "mutual_information": "test/information_cap"}


def bound_figures(runs: Sequence[ShownRun]) -> list[Figure]:
    """Return charts of the bound of each diffusion model over log-SNR, from noise to data."""
    found = [(run, c) for run in runs if (c := bound_curve(run.record.bound))]
    if not found:
        return []
    left, right = shown_log_snr([c for _, c in found])
    figures = [_bound_figure("Bound in each bin of log-SNR (nats)", found, left, right, None)]
    if len({c.edges for _, c in found}) == 1 and len(found) > 1:
        lowest = min(found, key=lambda f: f[0].record.metric("test/neg_elbo") or math.inf)
        title = f"Difference from {lowest[0].label} (nats)"
        figures.append(_bound_figure(title, found, left, right, lowest[1]))
    return figures


def diagnostic_figures(runs: Sequence[ShownRun]) -> list[Figure]:
    """Return a small chart for every diagnostic of the test that differs between runs."""
    names: set[str] = set()
    for run in runs:
        metrics = run.record.result.get("metrics")
        for metric in metrics if isinstance(metrics, dict) else ():
            split, _, name = str(metric).partition("/")
            if split == "test" and describe(name).is_diagnostic and not name.endswith("_se"):
                names.add(name)
    figures = []
    for name in ordered(names):
        known = [(r, v) for r in runs if (v := r.record.metric(f"test/{name}")) is not None]
        if len(known) > 1 and len({value for _, value in known}) > 1:
            figures.append(_diagnostic(name, known))
    return figures


def _bound_figure(
    title: str,
    found: Sequence[tuple[ShownRun, BoundCurve]],
    left: float,
    right: float,
    base: BoundCurve | None,
) -> Figure:
    below = None if base is None else base.points(left, right)[1]
    traces = []
    for run, spent in found:
        x, y = spent.points(left, right)
        y = y if below is None else [a - b for a, b in zip(y, below, strict=True)]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plotly_text(run.label),
                "x": x,
                "y": y,
                "customdata": [run.number] * len(x),
                "hoverinfo": "text",
                "hovertext": [
                    f"{plotly_text(run.label)}<br>log-SNR {a:g}: {b:.2f} nats"
                    for a, b in zip(x, y, strict=True)
                ],
                "line": {"width": 1.8, "color": run.colour},
                "marker": {"size": 5, "color": run.colour},
            }
        )
    layout = {
        "xaxis": {"title": {"text": "log-SNR (data on the right)"}},
        "showlegend": False,
        "hovermode": "closest",
    }
    return {"title": title, "data": traces, "layout": layout, "height": 380, "wide": True}


def _diagnostic(name: str, known: Sequence[tuple[ShownRun, float]]) -> Figure:
    """Plot one metric of all runs by setting, with its forecast and upper limit if it has any."""
    names, key = without_the_key([run.point for run, _ in known])
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "runs",
            "x": [names[run.point] for run, _ in known],
            "y": [value for _, value in known],
            "customdata": [run.number for run, _ in known],
            "hoverinfo": "text",
            "hovertext": [f"{plotly_text(run.label)}<br>{value:.5g}" for run, value in known],
            "marker": {"size": 9, "color": [run.colour for run, _ in known]},
            "cliponaxis": False,
        }
    ]
    expected = {
        names[run.point]: value
        for run, _ in known
        if (value := run.record.metric(f"forecast/{name}")) is not None
    }
    if expected:
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "forecast of the linear model",
                "x": list(expected),
                "y": list(expected.values()),
                "marker": {"symbol": "line-ew-open", "size": 16, "color": FORECAST},
                "cliponaxis": False,
            }
        )
    shapes, cap = [], _cap(name, known[0][0].record)
    if cap is not None:
        line = {"dash": "dot", "width": 1, "color": FAINT}
        shapes.append(
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": cap, "y1": cap, "line": line}
        )
    layout = {
        "xaxis": {"type": "category", "automargin": True, "title": {"text": key}},
        "yaxis": {"rangemode": "tozero"},
        "shapes": shapes,
        "showlegend": False,
        "hovermode": "closest",
    }
    return {"title": describe(name).full_title, "data": traces, "layout": layout, "height": 250}


def _cap(name: str, record: Record) -> float | None:
    source = _CAPS.get(name)
    value = None if source is None else record.metric(source) or record.flat.get(source)
    return float(value) if isinstance(value, int | float) else None
