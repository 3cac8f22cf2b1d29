"""Schedules of the KL term over training: pure functions of the global step, without state.

A schedule multiplies `kl_weight` by a number in [0, 1] that ends at 1, or sets a capacity as the
target of the KL. Validation always uses the final values. To add one, write a subclass here and a
YAML file in `conf/model/kl_schedule/`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from genlab.errors import number, whole


class KLSchedule(ABC):
    """The multiplier of `kl_weight` and the capacity, at each optimizer step."""

    final_weight = 1.0

    @abstractmethod
    def weight(self, step: int) -> float:
        """Return the multiplier of `kl_weight` at step 0, 1, ..., in [0, 1]; it ends at 1."""

    def capacity(self, step: int) -> float | None:
        """Return C in nats if the loss is |KL - C|, else None."""
        return None

    @property
    def final_capacity(self) -> float | None:
        """The capacity after the last step of the schedule; None without one."""
        return None


class Constant(KLSchedule):
    """The full weight from the first step on."""

    def weight(self, step: int) -> float:
        return 1.0


class _Ramp(KLSchedule):
    """A ramp from `start` at step 0 to 1 at step `steps`, along a curve from (0, 0) to (1, 1)."""

    def __init__(self, steps: int, start: float = 0.0) -> None:
        self.steps = whole("steps", steps, 0)
        self.start = number("start", start, at_least=0, at_most=1)

    def weight(self, step: int) -> float:
        if step >= self.steps:
            return 1.0
        return self.start + (1 - self.start) * self.curve(step / self.steps)

    @abstractmethod
    def curve(self, u: float) -> float:
        """Evaluate the curve at u in [0, 1)."""


class Linear(_Ramp):
    """A straight line from `start` to 1 in `steps` optimizer steps.

    Bowman et al. (2016); Sonderby et al. (2016).
    """

    def curve(self, u: float) -> float:
        return u


class Cosine(_Ramp):
    """Half a cosine from `start` to 1 in `steps` optimizer steps: flat at both ends."""

    def curve(self, u: float) -> float:
        return (1 - math.cos(math.pi * u)) / 2


class Sigmoid(_Ramp):
    """A logistic curve, cut at +-steepness/2 and rescaled to reach `start` and 1 exactly.

    Args:
        steepness: 10 gives the usual S shape; the limit 0 is the straight line.
    """

    def __init__(self, steps: int, start: float = 0.0, steepness: float = 10.0) -> None:
        super().__init__(steps, start)
        self.steepness = number("steepness", steepness, above=0, at_most=100)

    def curve(self, u: float) -> float:
        # sigmoid(x) = (1 + tanh(x / 2)) / 2.
        half = self.steepness / 4
        return (1 + math.tanh(2 * half * (u - 0.5)) / math.tanh(half)) / 2


class Cyclical(KLSchedule):
    """Equal cycles, each a line from 0 to 1 and then constant at 1 (Fu et al. 2019, eq. 6).

    Args:
        steps: optimizer steps of all cycles together; the multiplier is 1 afterwards.
        cycles: number of cycles.
        ratio: the share of a cycle in which the multiplier rises, in (0, 1].
    """

    def __init__(self, steps: int, cycles: int = 4, ratio: float = 0.5) -> None:
        self.steps = whole("steps", steps, 0)
        self.cycles = whole("cycles", cycles, 1)
        self.ratio = number("ratio", ratio, above=0, at_most=1)

    def weight(self, step: int) -> float:
        if step >= self.steps:
            return 1.0
        return min(1.0, step * self.cycles % self.steps / (self.steps * self.ratio))


class Capacity(KLSchedule):
    """A target C of the KL, from 0 to `nats` in `steps` steps (Burgess et al. 2018, eq. 8).

    The loss is then reconstruction + kl_weight |mean KL - C|.
    """

    def __init__(self, nats: float, steps: int) -> None:
        self.nats = number("nats", nats, at_least=0)
        self.steps = whole("steps", steps, 0)

    def weight(self, step: int) -> float:
        return 1.0

    def capacity(self, step: int) -> float:
        return self.nats if step >= self.steps else self.nats * step / self.steps

    @property
    def final_capacity(self) -> float:
        return self.nats
