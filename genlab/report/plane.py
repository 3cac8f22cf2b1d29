"""The rate-distortion plane of a sweep as data, independent of how it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from genlab.report.collect import MODEL, Record, swept_keys
from genlab.report.naming import data_names, sort_key
from genlab.runs.points import short_names

Point = tuple[float, float]
Kind = Literal["trained", "collapsed", "diffusion"]


class Unit(NamedTuple):
    """The unit of both axes; below `linear_to` a logarithmic axis of rates is linear."""

    name: str
    level: str
    linear_to: float

    def scale(self, record: Record) -> float:
        """Return the value of one nat per image in this unit."""
        return 1.0 if self is NATS else record.bits_per_nat or 0.0

    def point(self, record: Record, prefix: str, rate: str) -> Point | None:
        """Return rate and distortion of the run or of its forecast; None where one is not known."""
        x, y = record.metric(f"{prefix}/{rate}"), record.metric(f"{prefix}/reconstruction")
        scale = self.scale(record)
        return None if x is None or y is None else (scale * max(x, 0.0), scale * y)


NATS = Unit("nats per image", "neg_elbo {}", 1.0)
BITS = Unit("bits/dim", "{} bits/dim", 0.001)


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


def round_levels(points: Sequence[Point]) -> list[float]:
    """Return round values of the bound around those of the points, for lines of equal bound."""
    from matplotlib.ticker import MaxNLocator

    bounds = [rate + distortion for rate, distortion in points]
    room = max(0.5 * (max(bounds) - min(bounds)), 0.02 * max(bounds))
    levels = MaxNLocator(10, steps=[1, 2, 5, 10]).tick_values(
        min(bounds) - room, max(bounds) + room
    )
    return [float(level) for level in levels if level > 0]
