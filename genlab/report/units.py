"""The KL of each latent unit of a VAE, which shows the units that a KL weight leaves in use."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from genlab.media import matplotlib_charts as charts
from genlab.report.collect import Record, one_line, swept_keys
from genlab.report.colours import colours
from genlab.report.curves import numbers
from genlab.report.figures import SOFT, VEIL, Figure, ShownRun, without_the_key
from genlab.report.markup import plotly_text
from genlab.report.naming import KL_WEIGHT, by_settings, data_names, setting_names, sort_key
from genlab.runs.points import without_seed

#: Nats: a smaller KL is drawn here, since a logarithmic axis has no place for 0.
FLOOR = 1e-3
_SWITCHED_OFF = f"less than {FLOOR:g} nats: switched off"
_MOST_LABELS = 8
_LONGEST_NAME = 40
# The height of a name, in decades of the axis.
_NAME_DECADES = 0.3


def units_figure(runs: Sequence[ShownRun]) -> Figure | None:
    """Draw a line for each run, its units from the largest KL to the smallest; None without any.

    A dashed line shows the KL of each unit in the linear forecast, once for every setting.
    """
    known = [(run, kl) for run in runs if (kl := kl_by_unit(run.record.bound))]
    if not known:
        return None
    expected = {run.point: (run, f) for run, _ in known if (f := _forecast(run.record.bound))}
    is_alone = len({run.point for run, _ in known}) == len(known)
    traces = [
        _trace(run, f, f"{plotly_text(run.point)}, linear forecast", "dash", 1.4)
        for run, f in expected.values()
    ]
    traces += [
        _trace(run, kl, plotly_text(run.label), "solid", 2.2 if is_alone else 1.3)
        for run, kl in known
    ]
    most = max(len(trace["x"]) for trace in traces)
    lowest, highest = _limits([trace["y"] for trace in traces])
    ticks = _ticks(highest)
    layout = {
        "xaxis": {
            "title": {"text": "latent units of a run, by their KL"},
            "range": [0.5, most + 0.5],
            **({"dtick": 1} if most <= 10 else {}),
        },
        "yaxis": {
            "type": "log",
            "range": [math.log10(lowest), math.log10(highest)],
            "title": {"text": "KL (nats)"},
            "tickvals": ticks,
            "ticktext": [_tick_text(tick) for tick in ticks],
            "automargin": True,
        },
        "showlegend": False,
        "hovermode": "closest",
        "annotations": [*_names(known), _foot(most)],
    }
    return {"data": traces, "layout": layout, "height": 400}


def units_note(runs: Sequence[ShownRun]) -> str:
    """Explain the lines, and name the weights at which the linear forecast has no active unit."""
    known = [run.record for run in runs if kl_by_unit(run.record.bound)]
    sentences = [
        "Each line is a run, its latent units sorted by how many nats they carry about the image. "
        f"Below {FLOOR:g} nats a unit is switched off: q(z|x) is the prior, whatever the image."
    ]
    if any(_forecast(record.bound) for record in known):
        sentences.append("Dashed: what a linear VAE gives each, known before training from a PCA.")
    thresholds = {record.metric("forecast/collapse_threshold") for record in known}
    threshold = thresholds.pop()
    if threshold is not None and not thresholds:
        sentences.append(
            "It spends a unit only on a direction in which the images vary enough to be worth the "
            f"weight, and the widest of them is worth a weight of {threshold:.3g}."
        )
        weights = {_weight(record) for record in known}
        above = sorted(weight for weight in weights if weight is not None and weight > threshold)
        if above:
            these = f"a weight of {above[0]:g}" + (" and more" if len(above) > 1 else "")
            sentences.append(f"So at {these} no unit pays for its KL.")
    return " ".join(sentences)


def draw_units(records: Sequence[Record], *paths: str | os.PathLike[str]) -> bool:
    """Draw the same for all paths once, the seeds of a setting averaged.

    Returns False, with nothing written, if no run has the KL of its units.
    """
    records = [record for record in records if kl_by_unit(record.bound)]
    if not records:
        return False
    swept = swept_keys(records)
    settings = without_seed(swept)
    records = sorted(records, key=lambda r: [sort_key(r.flat.get(key)) for key in settings])
    shades = colours([{key: record.flat.get(key) for key in settings} for record in records])
    points: dict[str, list[Record]] = {}
    looks: dict[str, str] = {}
    for name, record, shade in zip(setting_names(records, swept), records, shades, strict=True):
        points.setdefault(name, []).append(record)
        looks[name] = shade.partition("|")[0]

    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = charts.panels(1)
    drawn = []
    for name, members in points.items():
        found = [kl for record in members if (kl := kl_by_unit(record.bound))]
        mean = [fmean(values) for values in zip(*found, strict=False)]
        forecast = next((f for record in members if (f := _forecast(record.bound))), ())
        drawn += [mean, forecast]
        for values, style in ((forecast, "--"), (mean, "-")):
            axes.plot(
                range(1, len(values) + 1),
                [max(value, FLOOR) for value in values],
                color=looks[name],
                linestyle=style,
                linewidth=1.2 if style == "--" else 1.6,
                marker="" if style == "--" else "o",
                markersize=4,
                # matplotlib leaves names that begin with an underscore out of the legend
                label=f"_{name}" if style == "--" else one_line(name, _LONGEST_NAME),
            )
    lowest, highest = _limits(drawn)
    axes.set(xlabel="latent units of a run, by their KL", yscale="log", ylim=(lowest, highest))
    axes.set_ylabel("KL (nats)")
    axes.annotate(
        _SWITCHED_OFF,
        (1, FLOOR),
        xycoords=("axes fraction", "data"),
        xytext=(0, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
        color="#6b7075",
    )
    axes.set_yticks(ticks := _ticks(highest), [_tick_text(tick) for tick in ticks])
    axes.tick_params(which="minor", left=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(color="#e3e5e8", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_title(records, settings, any(drawn[1::2])), fontsize="medium")
    if len(points) > 1:
        charts.add_legend(figure)
    for path in paths:
        charts.save(figure, path)
    return True


def kl_by_unit(bound: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Return nats per unit of a bound.json, largest first; None if they are absent or invalid."""
    found = numbers(bound.get("kl_by_unit"))
    return tuple(sorted(found, reverse=True)) if found else None


def _forecast(bound: Mapping[str, Any]) -> tuple[float, ...] | None:
    found = numbers(bound.get("forecast_kl_by_unit"))
    return tuple(sorted(found, reverse=True)) if found else None


def _weight(record: Record) -> float | None:
    weight = record.metric("test/beta_effective")
    quoted = record.flat.get(KL_WEIGHT)
    return float(quoted) if weight is None and isinstance(quoted, int | float) else weight


def _trace(run: ShownRun, kl: Sequence[float], name: str, dash: str, width: float) -> Figure:
    x = list(range(1, len(kl) + 1))
    return {
        "type": "scatter",
        "mode": "lines" if dash != "solid" else "lines+markers",
        "name": name,
        "x": x,
        "y": [max(value, FLOOR) for value in kl],
        "customdata": [run.number] * len(x),
        "hoverinfo": "text",
        "hovertext": [
            f"<b>{name}</b><br>unit {i} of {len(kl)}: {value:.3g} nats"
            for i, value in zip(x, kl, strict=True)
        ],
        "line": {"width": width, "color": run.colour, "dash": dash},
        "marker": {"size": 5, "color": run.colour},
    }


def _names(known: Sequence[tuple[ShownRun, Sequence[float]]]) -> list[Figure]:
    """Name each setting above its line, if there are few enough settings.

    The name is at the start of the line, or further along where another name is in the way.
    """
    lines = {run.point: (run, kl) for run, kl in known}
    if len(lines) > _MOST_LABELS:
        return []
    texts = without_the_key(list(lines))[0]
    if len(lines) <= 3:
        texts = {name: plotly_text(one_line(name, _LONGEST_NAME)) for name in lines}
    step = max(len(kl) for _, kl in known) // 4
    names: list[Figure] = []
    place, before = 0, math.inf
    for name, (run, kl) in sorted(lines.items(), key=lambda line: -line[1][1][0]):
        start = math.log10(max(kl[0], FLOOR))
        place = place + step if before - start < _NAME_DECADES else 0
        place, before = (place if place < len(kl) else 0), start
        names.append(
            {
                "x": place + 1,
                "y": math.log10(max(kl[place], FLOOR)),
                "text": texts[name],
                "showarrow": False,
                "xanchor": "left",
                "yanchor": "bottom",
                "xshift": 4,
                "yshift": 4,
                "font": {"size": 12, "color": run.colour},
                "bgcolor": VEIL,
                "borderpad": 0,
            }
        )
    return names


def _foot(most: int) -> Figure:
    return {
        "x": most + 0.5,
        "y": math.log10(FLOOR),
        "text": _SWITCHED_OFF,
        "showarrow": False,
        "xanchor": "right",
        "yanchor": "top",
        "yshift": -3,
        "font": {"size": 11, "color": SOFT},
    }


def _limits(curves: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return limits from below the floor to above the largest KL, and always above the floor."""
    highest = max((max(curve, default=0.0) for curve in curves), default=0.0)
    return FLOOR / 2, 2 * max(highest, 1.0)


def _ticks(highest: float) -> list[float]:
    lowest, top = round(math.log10(FLOOR)), math.floor(math.log10(highest))
    return [10.0**e for e in range(lowest, top + 1)]


def _tick_text(tick: float) -> str:
    return f"≤ {tick:g}" if tick <= FLOOR else f"{tick:g}"


def _title(records: Sequence[Record], settings: Sequence[str], is_foretold: bool) -> str:
    dashed = "\ndashed: forecast of the linear model" if is_foretold else ""
    of = f"{data_names(records)}{by_settings(settings)}"
    return f"KL of each latent unit on the test set of {of}{dashed}"
