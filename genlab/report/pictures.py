"""Charts as files beside a page: runs of one setting averaged, names in a legend, light colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from genlab.report.collect import Record, swept_keys
from genlab.report.colours import on_light
from genlab.report.naming import setting_names, sort_key
from genlab.report.shown import ShownRun, shown_runs
from genlab.runs.points import without_seed

#: Pixels of a plot across.
WIDTH = 640
_LONGEST_NAME = 40


def averaged(
    records: Sequence[Record], mean_bound: Callable[[Sequence[Record]], dict[str, Any]]
) -> list[ShownRun]:
    """Return one run for each setting, in order, with the mean of the bounds of its seeds."""
    swept = swept_keys(records)
    settings = without_seed(swept)
    records = sorted(records, key=lambda r: [sort_key(r.flat.get(key)) for key in settings])
    shades = [run.colour for run in shown_runs(records)]
    points: dict[str, list[Record]] = {}
    looks: dict[str, str] = {}
    for name, record, shade in zip(setting_names(records, swept), records, shades, strict=True):
        points.setdefault(name, []).append(record)
        looks[name] = on_light(shade)
    runs = []
    for i, (name, members) in enumerate(points.items()):
        known = [e for r in members if (e := r.metric("test/neg_elbo")) is not None]
        metrics = {**(members[0].result.get("metrics") or {})}
        if known:
            metrics["test/neg_elbo"] = fmean(known)
        record = replace(
            members[0], bound=mean_bound(members), result={**members[0].result, "metrics": metrics}
        )
        short = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
        runs.append(ShownRun(record, i, short, short, looks[name]))
    return runs


def on_paper(runs: Sequence[ShownRun]) -> list[ShownRun]:
    """Return the runs with the colours of light paper."""
    return [replace(run, colour=on_light(run.colour)) for run in runs]


def picture(drawn: Sequence[Any], runs: Sequence[ShownRun], title: Any) -> Any:
    """Put charts side by side below a title, with a legend if there are several settings.

    Args:
        title: a text, or a title of Altair.
    """
    import altair as alt

    width = WIDTH if len(drawn) == 1 else 400
    sized = [chart.properties(width=width) for chart in drawn]
    if len(sized) == 1:
        return sized[0].properties(title=title)
    tables = {name: rows for chart in sized for name, rows in chart.datasets.items()}
    for chart in sized:
        chart.datasets = alt.Undefined
    whole = alt.hconcat(*sized, title=title)
    whole.datasets = tables
    return whole
