"""How the KL term comes in over training: pure functions of the global step, without state.

A schedule multiplies `kl_weight` by a number in [0, 1] that ends at 1, or sets a capacity that the
KL is held at. Validation is always judged by the final values. Adding one: a subclass here and a
YAML file in `conf/model/kl_schedule/`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor

from genlab.checks import number, whole


class KLSchedule(ABC):
    """The multiplier of `kl_weight` and the capacity, at each optimizer step."""

    final_weight = 1.0

    @abstractmethod
    def weight(self, step: int) -> float:
        """The multiplier of `kl_weight` at optimizer step 0, 1, ..., in [0, 1]; it ends at 1."""

    def capacity(self, step: int) -> float | None:
        """C in nats where the loss holds the KL at C, else None."""
        return None

    @property
    def final_capacity(self) -> float | None:
        """The capacity after training; None without one."""
        return None


class Constant(KLSchedule):
    """The full weight from the first step on."""

    def weight(self, step: int) -> float:
        return 1.0


class _Ramp(KLSchedule):
    """From `start` at step 0 to 1 at step `steps`, along a curve from (0, 0) to (1, 1)."""

    def __init__(self, steps: int, start: float = 0.0) -> None:
        self.steps = whole("model.kl_schedule.steps", steps, 0)
        self.start = number("model.kl_schedule.start", start, at_least=0, at_most=1)

    def weight(self, step: int) -> float:
        if step >= self.steps:
            return 1.0
        return self.start + (1 - self.start) * self.curve(step / self.steps)

    @abstractmethod
    def curve(self, u: float) -> float:
        """The curve at u in [0, 1)."""


class Linear(_Ramp):
    """A straight line from `start` to 1 in `steps` optimizer steps (Bowman et al. 2016; Sonderby
    et al. 2016)."""

    def curve(self, u: float) -> float:
        return u


class Cosine(_Ramp):
    """Half a cosine from `start` to 1 in `steps` optimizer steps: flat at both ends."""

    def curve(self, u: float) -> float:
        return (1 - math.cos(math.pi * u)) / 2


class Sigmoid(_Ramp):
    """A logistic curve, cut at +-steepness/2 and stretched to reach `start` and 1 exactly.

    Args:
        steepness: 10 is the usual S; towards 0 it becomes the straight line.
    """

    def __init__(self, steps: int, start: float = 0.0, steepness: float = 10.0) -> None:
        super().__init__(steps, start)
        self.steepness = number("model.kl_schedule.steepness", steepness, above=0, at_most=100)

    def curve(self, u: float) -> float:
        # A logistic is a tanh of half its argument, moved.
        half = self.steepness / 4
        return (1 + math.tanh(2 * half * (u - 0.5)) / math.tanh(half)) / 2


class Cyclical(KLSchedule):
    """`cycles` equal cycles, each a line from 0 to 1 and then 1 (Fu et al. 2019, eq. 6).

    Args:
        steps: optimizer steps of all cycles together; 1 afterwards.
        cycles: how many.
        ratio: the share of a cycle spent rising, in (0, 1].
    """

    def __init__(self, steps: int, cycles: int = 4, ratio: float = 0.5) -> None:
        self.steps = whole("model.kl_schedule.steps", steps, 0)
        self.cycles = whole("model.kl_schedule.cycles", cycles, 1)
        self.ratio = number("model.kl_schedule.ratio", ratio, above=0, at_most=1)

    def weight(self, step: int) -> float:
        if step >= self.steps:
            return 1.0
        return min(1.0, step * self.cycles % self.steps / (self.steps * self.ratio))


class Capacity(KLSchedule):
    """Hold the KL at C, which grows from 0 to `nats` in `steps` steps (Burgess et al. 2018, eq. 8).

    The loss is then reconstruction + kl_weight |mean KL - C|.
    """

    def __init__(self, nats: float, steps: int) -> None:
        self.nats = number("model.kl_schedule.nats", nats, at_least=0)
        self.steps = whole("model.kl_schedule.steps", steps, 0)

    def weight(self, step: int) -> float:
        return 1.0

    def capacity(self, step: int) -> float:
        return self.nats if step >= self.steps else self.nats * step / self.steps

    @property
    def final_capacity(self) -> float:
        return self.nats


def objective(
    reconstruction: Tensor, kl: Tensor, kl_weight: float, schedule: KLSchedule, step: int | None
) -> Tensor:
    """The loss in nats per image: reconstruction + weight KL, or + weight |KL - C|.

    Args:
        reconstruction, kl: means over images, scalars.
        kl_weight: the canonical weight, `KLWeight.beta_effective`.
        step: the global optimizer step; None for the schedule's final values.
    """
    weight = kl_weight * (schedule.final_weight if step is None else schedule.weight(step))
    capacity = schedule.final_capacity if step is None else schedule.capacity(step)
    return reconstruction + weight * (kl if capacity is None else (kl - capacity).abs())
