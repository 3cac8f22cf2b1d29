"""Noise schedules: each is one decreasing function, the log-SNR of a time between 0 and 1.

Everything else follows from it: alpha^2 = sigmoid(log_snr), sigma^2 = sigmoid(-log_snr). Adding
one: a subclass here and a YAML file in `conf/model/noise_schedule/`. The tables of T betas are in
`beta_tables.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from genlab.checks import number, whole
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

    @property
    def first(self) -> float:
        """The time of the first beta of a table, before which it says nothing; 0 of a curve."""
        return 0.0

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
        # Validation runs in inference mode, whose tensors autograd does not take.
        with torch.inference_mode(False), torch.enable_grad():
            at = t.detach().clone().double().requires_grad_()
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


def _from_decay(decay: Tensor) -> Tensor:
    """The log-SNR at which alpha^2 = exp(-decay), decay being the integral of beta."""
    return -decay - torch.log(-torch.expm1(-decay))


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
        return _from_decay(self.beta_min * u + (self.beta_max - self.beta_min) * u.square() / 2)


class Quadratic(Linear):
    """sqrt(beta(t)) is linear in t: the limit of many steps of `ScaledLinearBetas`."""

    def curve(self, u: Tensor) -> Tensor:
        root = math.sqrt(self.beta_min)
        rise = math.sqrt(self.beta_max) - root
        return _from_decay(root**2 * u + root * rise * u.square() + rise**2 * u**3 / 3)


class Cosine(NoiseSchedule):
    """alpha^2 = f(t) / f(0), f(t) = cos^2(pi/2 (t + s) / (1 + s)) (Nichol & Dhariwal 2021, eq. 17).

    Its SNR is 0 at t = 1 unless log_snr_min is given; the paper clips the betas instead, and
    Salimans & Ho (2022) cut at log-SNRs of +-20. At s = 0 it is -2 ln tan(pi t / 2).

    Args:
        s: the offset, which makes the first steps larger; 0 or more.
    """

    def __init__(
        self,
        s: float = 0.008,
        log_snr_max: float | None = None,
        log_snr_min: float | None = None,
    ) -> None:
        super().__init__(log_snr_max, log_snr_min)
        self.s = number("model.noise_schedule.s", s, at_least=0)

    def curve(self, u: Tensor) -> Tensor:
        # f(0) - f(t) is a product of two sines, so that no difference of near numbers is taken.
        angle = math.pi / 2 / (1 + self.s)
        return (
            2 * torch.log(torch.sin(angle * (1 - u)))
            - torch.log(torch.sin(angle * u))
            - torch.log(torch.sin(angle * (u + 2 * self.s)))
        )


class Sigmoid(NoiseSchedule):
    """alpha^2 falls from 1 to 0 as a piece of a logistic (Jabri et al. 2022; Chen 2023, sec. 2).

    alpha^2 = (S(end) - S(x)) / (S(end) - S(start)), x from start to end, S(x) = sigmoid(x / tau).
    """

    def __init__(
        self,
        start: float = -3.0,
        end: float = 3.0,
        tau: float = 1.0,
        log_snr_max: float | None = None,
        log_snr_min: float | None = None,
    ) -> None:
        super().__init__(log_snr_max, log_snr_min)
        self.start = number("model.noise_schedule.start", start)
        self.end = number("model.noise_schedule.end", end, above=start)
        self.tau = number("model.noise_schedule.tau", tau, above=0)

    def curve(self, u: Tensor) -> Tensor:
        # A difference of logistics is a sinh over two cosh; those of x cancel in the ratio.
        width = (self.end - self.start) / self.tau
        tilt = _log_cosh(self.start / self.tau / 2) - _log_cosh(self.end / self.tau / 2)
        return _log_sinh(width * (1 - u) / 2) - _log_sinh(width * u / 2) + tilt


def _log_sinh(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-2 * x)) - math.log(2)


def _log_cosh(x: float) -> float:
    return abs(x) + math.log1p(math.exp(-2 * abs(x))) - math.log(2)


class _Between(NoiseSchedule):
    """A curve that is made to go from one end to the other, so that no part of it is looked for."""

    def __init__(self, log_snr_max: float, log_snr_min: float) -> None:
        super().__init__(log_snr_max, log_snr_min)
        self.highest, self.lowest = log_snr_max, log_snr_min

    @property
    def _ends(self) -> tuple[float, float]:
        return 0.0, 1.0


class LinearLogSNR(_Between):
    """A straight line from log_snr_max to log_snr_min, as VDM begins (Kingma et al. 2021)."""

    def __init__(self, log_snr_max: float = 13.0, log_snr_min: float = -9.0) -> None:
        super().__init__(log_snr_max, log_snr_min)

    def curve(self, u: Tensor) -> Tensor:
        return self.highest * (1 - u) + self.lowest * u


class EDM(_Between):
    """ln(sigma / alpha) is normal under uniform t, as EDM trains (Karras et al. 2022, table 1).

    Args:
        P_mean, P_std: of ln(sigma / alpha), before it is cut; P_std above 0.
        sigma_min, sigma_max: where it is cut, in units of the image's [-1, 1]; above 0.
        log_snr_max, log_snr_min: where it is cut instead of -2 ln sigma_min and -2 ln sigma_max.
    """

    def __init__(
        self,
        P_mean: float = -1.2,
        P_std: float = 1.2,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        log_snr_max: float | None = None,
        log_snr_min: float | None = None,
    ) -> None:
        mean = number("model.noise_schedule.P_mean", P_mean)
        std = number("model.noise_schedule.P_std", P_std, above=0)
        number("model.noise_schedule.sigma_min", sigma_min, above=0)
        number("model.noise_schedule.sigma_max", sigma_max, above=sigma_min)
        super().__init__(
            -2 * math.log(sigma_min) if log_snr_max is None else log_snr_max,
            -2 * math.log(sigma_max) if log_snr_min is None else log_snr_min,
        )
        self.P_mean, self.P_std = mean, std

    def curve(self, u: Tensor) -> Tensor:
        ends = torch.tensor([self.highest, self.lowest], dtype=u.dtype, device=u.device)
        z = (-ends / 2 - self.P_mean) / self.P_std
        # torch's ndtr has no digits in its far tails, but erfc has.
        below, above = (
            (tail[0] * (1 - u) + tail[1] * u) / 2
            for tail in (torch.erfc(-z / math.sqrt(2)), torch.erfc(z / math.sqrt(2)))
        )
        # Each half from its own tail: 1 - p has no digits left where p is near 1.
        left = below < above
        quantile = torch.special.ndtri(torch.where(left, below, above))
        return -2 * (self.P_mean + self.P_std * torch.where(left, quantile, -quantile))


class Learned(_Between):
    """A monotone network between fixed ends, as in VDM (Kingma et al. 2021, appendix H).

    A straight line plus a sum of `hidden` rising sigmoids, with weights kept positive by softplus,
    scaled so that it begins and ends exactly at the ends. It starts near the straight line.

    Args:
        hidden: number of sigmoids; 1 or more (VDM has 1024).
    """

    def __init__(
        self, hidden: int = 128, log_snr_max: float = 13.0, log_snr_min: float = -9.0
    ) -> None:
        super().__init__(log_snr_max, log_snr_min)
        whole("model.noise_schedule.hidden", hidden, 1)
        self.line = nn.Parameter(torch.zeros(()))
        self.height = nn.Parameter(torch.zeros(hidden))
        self.steepness = nn.Parameter(torch.full((hidden,), 10.0))
        self.centre = nn.Parameter((torch.arange(hidden) + 0.5) / hidden)

    def curve(self, u: Tensor) -> Tensor:
        begin, end = self._rise(u.new_tensor([0.0, 1.0]))
        done = (self._rise(u) - begin) / (end - begin)
        return self.highest * (1 - done) + self.lowest * done

    def _rise(self, u: Tensor) -> Tensor:
        line, height, steepness = (
            functional.softplus(weight.double())
            for weight in (self.line, self.height, self.steepness)
        )
        sigmoids = torch.sigmoid(steepness * (u.unsqueeze(-1) - self.centre.double()))
        return line * u + sigmoids @ (height / len(height))


class ZeroTerminalSNR(NoiseSchedule):
    """A schedule bent so that its last SNR is 0 (Lin et al. 2023, alg. 1): alpha, shifted and
    scaled, is 0 at t = 1 and unchanged at the first time.

    Args:
        schedule: any other.
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule = schedule

    @property
    def first(self) -> float:
        return self.schedule.first

    def curve(self, u: Tensor) -> Tensor:
        first = self.schedule.first
        ends = self.schedule.log_snr(u.new_tensor([first, 1.0]))
        unchanged = u <= first
        log_snr = self.schedule.log_snr(torch.where(unchanged, (1 + first) / 2, u))
        alpha, alpha_first, alpha_last = (
            torch.sigmoid(x).sqrt() for x in (log_snr, ends[0], ends[1])
        )
        # 1 - alpha without the loss of digits: alpha^2 = 1 - sigma^2.
        short, short_first = (
            torch.sigmoid(-x) / (1 + a) for x, a in ((log_snr, alpha), (ends[0], alpha_first))
        )
        bent = (alpha - alpha_last) * alpha_first / (alpha_first - alpha_last)
        short_bent = (alpha_first * short - alpha_last * short_first) / (alpha_first - alpha_last)
        value = 2 * torch.log(bent) - torch.log(short_bent) - torch.log1p(bent)
        return torch.where(unchanged, self.schedule.log_snr(u), value)
