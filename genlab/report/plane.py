"""The rate-distortion plane of a sweep, for a page and as a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from genlab.media import charts
from genlab.report.collect import MODEL, Record, swept_keys
from genlab.report.intervals import mean_interval
from genlab.report.naming import data_names, number_text, sort_key, sweep_names
from genlab.report.pictures import on_paper, picture
from genlab.report.shown import ShownRun, brief_names, shown_runs
from genlab.runs.points import short_names

Point = tuple[float, float]
Kind = Literal["trained", "collapsed", "diffusion"]


class Unit(NamedTuple):
    """The unit of both axes; below `linear_to` a logarithmic axis of rates is linear."""

    name: str
    linear_to: float

    def scale(self, record: Record) -> float:
        """Return the value of one nat per image in this unit."""
        return 1.0 if self is NATS else record.bits_per_nat or 0.0

    def point(self, record: Record, prefix: str, rate: str) -> Point | None:
        """Return rate and distortion of the run or of its forecast; None where one is not known."""
        x, y = record.metric(f"{prefix}/{rate}"), record.metric(f"{prefix}/reconstruction")
        scale = self.scale(record)
        return None if x is None or y is None else (scale * max(x, 0.0), scale * y)


NATS = Unit("nats per image", 1.0)
BITS = Unit("bits/dim", 0.001)


@dataclass(frozen=True)
class Plane:
    """The runs that have a rate (test/kl) and a distortion (test/reconstruction).

    Attributes:
        unit: nats per image, or bits/dim if one of the runs is of a diffusion model.
        records: sorted by the swept values.
        points, errors: of each record; the error is one standard error of neg_elbo.
        forecasts: those of the records that have one, sorted by rate.
        swept: the keys in which all runs differ, including runs that are not in the plane.
    """

    unit: Unit
    records: list[Record]
    points: list[Point]
    errors: list[float]
    forecasts: list[tuple[Point, Record]]
    swept: list[str]

    @property
    def is_close(self) -> bool:
        """Return whether the rates are close, so that both axes can be linear and of one span."""
        rates = [x for x, _ in self.points]
        return self.unit is BITS and not self.forecasts and max(rates) < 10 * min(rates)

    @property
    def title(self) -> str:
        """The settings that are compared, and the data."""
        compared = " and ".join(short_names(self.swept).values()) or self.records[0].run_id
        data = data_names(self.records)
        if MODEL in self.swept:
            families = " and ".join(sorted({record.family for record in self.records}))
            return f"Rate against distortion of {families} on the test set of {data}"
        return f"What {compared} trades: rate against distortion on the test set of {data}"

    def close_limits(self) -> tuple[Point, Point]:
        """Return limits of the same span for both axes, so that small differences look small."""
        x, y = zip(*self.points, strict=True)
        span = 1.6 * max(
            max(x) - min(x) + 2 * max(self.errors),
            max(y) - min(y),
            0.05 * max(rate + distortion for rate, distortion in self.points),
        )
        left, bottom = ((max(values) + min(values) - span) / 2 for values in (x, y))
        left, bottom = max(left, 0.0), max(bottom, -0.05 * span)
        return (left, left + span), (bottom, bottom + span)

    def wide_limits(self) -> tuple[Point, Point]:
        """Return limits from rate 0 to beyond the largest, with room above and below the points."""
        x, y = zip(*self.points, *(point for point, _ in self.forecasts), strict=True)
        room = 0.15 * (max(y) - min(y)) or self.unit.linear_to
        # bits/dim are computed from probability masses, so that no distortion is below 0.
        bottom = min(y) - room if self.unit is NATS else max(min(y) - room, -0.2 * room)
        right = max(*x, self.unit.linear_to) * 1.8
        return (-0.15 * self.unit.linear_to, right), (bottom, max(y) + room)

    def kind(self, record: Record) -> tuple[Kind, str]:
        """Return the kind of a run, and its name in a legend."""
        name = record.family if MODEL in self.swept else "trained run"
        if record.is_diffusion:
            return "diffusion", name
        if record.metric("test/active_units") == 0:
            return "collapsed", f"{name}, collapsed: no latent unit is active"
        return "trained", name


def plane(records: Sequence[Record]) -> Plane | None:
    """Build the plane of these runs; None if no run has both rate and distortion."""
    swept = swept_keys(records)
    shown = sorted(
        (r for r in records if NATS.point(r, "test", "kl")),
        key=lambda record: [sort_key(record.flat.get(key)) for key in swept],
    )
    if not shown:
        return None
    has_bits = all(record.bits_per_nat is not None for record in shown)
    unit = BITS if has_bits and any(record.is_diffusion for record in shown) else NATS
    forecasts = [(p, r) for r in shown if (p := unit.point(r, "forecast", "rate"))]
    return Plane(
        unit=unit,
        records=shown,
        points=[p for r in shown if (p := unit.point(r, "test", "kl"))],
        errors=[unit.scale(r) * (r.metric("test/neg_elbo_se") or 0.0) for r in shown],
        forecasts=sorted(forecasts, key=lambda forecast: forecast[0]),
        swept=swept,
    )


def plane_chart(runs: Sequence[ShownRun], sweeps: Sequence[str] = ("",)) -> Any | None:
    """Draw the rate-distortion plane of these runs; None if no run has both numbers."""
    from genlab.report.figures import plane as figures

    shown = plane([run.record for run in runs])
    if shown is None:
        return None
    by_path = {run.record.path: run for run in runs}
    placed = [by_path[record.path] for record in shown.records]
    texts = brief_names(list(dict.fromkeys(run.point for run in placed)))
    rows = [
        _row(run, point, shown, texts, sweeps)
        for run, point in zip(placed, shown.points, strict=True)
    ]
    families = {r.family for r in shown.records}
    spread, spread_name = _spread(shown, placed)
    collapse = ""
    at_zero = next((r for (rate, _), r in shown.forecasts if rate == 0), None)
    threshold = at_zero and at_zero.metric("forecast/collapse_threshold")
    if threshold is not None:
        collapse = f"a linear VAE collapses above a weight of {threshold:.3g}"
    is_diffusion = any(record.is_diffusion for record in shown.records)
    is_curve = len(shown.swept) == 1 and len(families) == 1 and len(set(sweeps)) == 1
    return figures.plane(
        rows,
        shown.close_limits() if shown.is_close else shown.wide_limits(),
        shown.unit.name,
        None if shown.is_close else shown.unit.linear_to,
        [_forecast(point, record, by_path) for point, record in shown.forecasts],
        spread,
        spread_name,
        collapse,
        is_joined=is_curve and not is_diffusion and shown.swept != ["seed"],
    )


def draw_rate_distortion(records: Sequence[Record], *paths: str | os.PathLike[str]) -> bool:
    """Draw each run at its rate (test/kl) and distortion (test/reconstruction), for all paths once.

    The unit is nats per image, or bits/dim if one of the runs is of a diffusion model. Thin lines
    join points of equal negative ELBO. The linear forecast, where a run has one, is a hollow marker
    on a dashed line. Returns False, with nothing written, if no run has both numbers.
    """
    shown = plane(records)
    if shown is None:
        return False
    runs = on_paper(shown_runs(list(records)))
    chart = plane_chart(runs, list(sweep_names(records).values()))
    charts.save(picture([chart], runs, shown.title), *paths)
    return True


def _row(
    run: ShownRun, point: Point, shown: Plane, texts: Mapping[str, str], sweeps: Sequence[str]
) -> dict[str, Any]:
    kind, legend = shown.kind(run.record)
    decimals = 2 if shown.unit is NATS else 3
    rate, distortion = point
    active = run.record.metric("test/active_units")
    units = run.record.flat.get("model.latent_dim", "?")
    return {
        "run": run.number,
        "label": run.label,
        "name": texts[run.point],
        "x": rate,
        "y": distortion,
        "kind": kind,
        "place": run.sweep,
        "legend": f"{legend} ({sweeps[run.sweep]})" if len(sweeps) > 1 else legend,
        "colour": run.colour,
        "reconstruction": number_text(distortion, decimals),
        "kl": number_text(rate, decimals),
        "neg_elbo": f"{number_text(rate + distortion, decimals)} {shown.unit.name}",
        "units": "-" if active is None else f"{active:g} of {units}",
    }


def _forecast(point: Point, record: Record, by_path: Mapping[Path, ShownRun]) -> dict[str, Any]:
    rate, distortion = point
    return {
        "x": rate,
        "y": distortion,
        "label": by_path[record.path].point,
        "kl": number_text(rate, 2),
        "reconstruction": number_text(distortion, 2),
    }


def _spread(shown: Plane, runs: Sequence[ShownRun]) -> tuple[list[dict[str, float]], str]:
    """Return the bars of each setting, and what they are: of its mean over seeds, else of a test.

    The error over test images is shown where the rates are close: in a wide plane it is too small.
    """
    groups: dict[tuple[int, str], list[Point]] = {}
    for run, point in zip(runs, shown.points, strict=True):
        groups.setdefault((run.sweep, run.point), []).append(point)
    bars = []
    for points in groups.values():
        rate, distortion = (mean_interval(values) for values in zip(*points, strict=True))
        if len(points) > 1:
            bars.append(
                {
                    "x": rate.mean,
                    "y": distortion.mean,
                    "left": max(rate.low, 0.0),
                    "right": rate.high,
                    "bottom": distortion.low,
                    "top": distortion.high,
                }
            )
    if bars or not shown.is_close:
        return bars, "mean over seeds, with its 95 % interval"
    for (x, y), error in zip(shown.points, shown.errors, strict=True):
        if error > 0:
            sides = {"left": x - error, "right": x + error, "bottom": y, "top": y}
            bars.append({"x": x, "y": y} | sides)
    return bars, "standard error of neg_elbo over test images"
