"""Noise schedules: each is one decreasing function, the log-SNR of a time between 0 and 1.

Everything else follows from it: alpha^2 = sigmoid(log_snr), sigma^2 = sigmoid(-log_snr). Adding one:
a subclass here and a YAML file in `conf/model/noise_schedule/`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from genlab.checks import number
from genlab.errors import ConfigError

_BISECTIONS = 64


class NoiseSchedule(nn.Module, ABC):
    """lambda(t) = ln(alpha_t^2 / sigma_t^2) in float64, from data at t = 0 to noise at t = 1.

    A subclass gives `curve`. With ends given, t runs over the part of the curve between them, so
    that schedules with the same ends differ in nothing but how they get from one to the other.

    Args:
        log_snr_max: where to begin; null begins where the curve does, which may be at infinity.
        log_snr_min: where to end; null ends where the curve does.
    """

    def __init__(self, log_snr_max: float | None = None, log_snr_min: float | None = None) -> None:
        super().__init__()
        for key, value in (("log_snr_max", log_snr_max), ("log_snr_min", log_snr_min)):
            if value is not None:
                number(f"model.noise_schedule.{key}", value)
        if log_snr_max is not None and log_snr_min is not None and log_snr_max <= log_snr_min:
            raise ConfigError(
                f"model.noise_schedule: log_snr_max={log_snr_max}, log_snr_min={log_snr_min}: the "
                "log-SNR falls from data to noise, so the first must be the larger"
            )
        self.log_snr_max, self.log_snr_min = log_snr_max, log_snr_min

    @abstractmethod
    def curve(self, u: Tensor) -> Tensor:
        """The log-SNR at u in [0, 1], float64, any shape; decreasing; +-inf at the ends is fine."""

    @cached_property
    def _ends(self) -> tuple[float, float]:
        """The part of [0, 1] that lies between the ends that were asked for."""
        ends = [0.0, 1.0]
        for i, (key, value) in enumerate(
            (("log_snr_max", self.log_snr_max), ("log_snr_min", self.log_snr_min))
        ):
            if value is None:
                continue
            high, low = self.curve(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
            if not low <= value <= high:
                raise ConfigError(
                    f"model.noise_schedule.{key}={value:g}: this schedule runs from {high:.4g} to "
                    f"{low:.4g}; give a value between, or null"
                )
            ends[i] = float(_bisect(self.curve, torch.tensor(value, dtype=torch.float64)))
        return ends[0], ends[1]

    def log_snr(self, t: Tensor) -> Tensor:
        """lambda(t) at times in [0, 1], any shape, in float64."""
        begin, end = self._ends
        return self.curve(begin + (end - begin) * t.double())

    def slope(self, t: Tensor) -> Tensor:
        """d lambda / dt, negative, in float64; with a graph where the schedule is learned."""
        learned = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        with torch.enable_grad():
            at = t.detach().double().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_snr(at).sum(), at, create_graph=learned)
        return slope

    def time_at(self, log_snr: Tensor) -> Tensor:
        """The times in [0, 1] at which the log-SNR has these values, its inverse, in float64."""
        with torch.no_grad():
            return _bisect(self.log_snr, log_snr.double())


def _bisect(decreasing: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    low, high = torch.zeros_like(value), torch.ones_like(value)
    with torch.no_grad():
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            above = decreasing(middle) > value
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (low + high) / 2


class Linear(NoiseSchedule):
    """beta(t) = beta_min + t (beta_max - beta_min), the limit of many steps of DDPM's betas.

    Song et al. (2021, score SDE), eq. 33: ln alpha^2 = -t beta_min - t^2 (beta_max - beta_min) / 2.
    """

    def __init__(
        self,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        log_snr_max: float | None = None,
        log_snr_min: float | None = None,
    ) -> None:
        super().__init__(log_snr_max, log_snr_min)
        self.beta_min = number("model.noise_schedule.beta_min", beta_min, above=0)
        self.beta_max = number("model.noise_schedule.beta_max", beta_max, at_least=beta_min)

    def curve(self, u: Tensor) -> Tensor:
        rate = self.beta_min * u + (self.beta_max - self.beta_min) * u.square() / 2
        return -torch.log(torch.expm1(rate))
