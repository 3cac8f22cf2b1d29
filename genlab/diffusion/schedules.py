"""Noise schedules: each is one decreasing function, the log-SNR of a time between 0 and 1.

Everything else follows from it: alpha^2 = sigmoid(log_snr), sigma^2 = sigmoid(-log_snr). To add
one, write a subclass here and a YAML file in `conf/model/noise_schedule/`. The tables of T betas
are in `beta_tables.py`, schedules with other ends than their own in `schedule_ends.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from genlab.errors import number, whole

_BISECTIONS = 64


class NoiseSchedule(nn.Module, ABC):
    """A log-SNR lambda(t) = ln(alpha_t^2 / sigma_t^2), float64; t = 0 is data, t = 1 is noise.

    A subclass defines `curve`. `schedule_ends.Between` restricts a schedule to other ends.
    """

    @abstractmethod
    def curve(self, u: Tensor) -> Tensor:
        """Compute the log-SNR at u in [0, 1], float64, any shape.

        It must be decreasing, and may be +-inf at the ends.
        """

    @property
    def name(self) -> str:
        """The name of the curve, for captions and messages."""
        return type(self).__name__

    @property
    def first(self) -> float:
        """The time of the first beta of a table; 0 for a curve."""
        return 0.0

    @property
    def is_learned(self) -> bool:
        """True if the schedule has parameters, which are trained with the network."""
        return any(True for _ in self.parameters())

    def log_snr(self, t: Tensor) -> Tensor:
        """Compute lambda(t) at times in [0, 1], any shape, in float64."""
        return self.curve(t.double())

    def slope(self, t: Tensor) -> Tensor:
        """Compute d lambda / dt (negative), float64; differentiable if the schedule is learned."""
        learned = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        # Validation runs in inference mode, and autograd does not accept its tensors.
        with torch.inference_mode(False), torch.enable_grad():
            at = t.detach().clone().double().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_snr(at).sum(), at, create_graph=learned)
        return slope

    def time_at(self, log_snr: Tensor) -> Tensor:
        """Compute the times in [0, 1] with these log-SNRs (the inverse of lambda), in float64."""
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


def check_order(log_snr_max: float, log_snr_min: float) -> None:
    """Refuse ends of a schedule in the wrong order, with a ValueError."""
    if not log_snr_max > log_snr_min:
        raise ValueError(
            f"log_snr_max={log_snr_max}, log_snr_min={log_snr_min}: the log-SNR falls from data to "
            "noise, so the first must be the larger"
        )


def _from_decay(decay: Tensor) -> Tensor:
    """Compute the log-SNR at which alpha^2 = exp(-decay); decay is the integral of beta."""
    return -decay - torch.log(-torch.expm1(-decay))


class Linear(NoiseSchedule):
    """A linear beta(t) = beta_min + t (beta_max - beta_min): DDPM's betas for T to infinity.

    Song et al. (2021, score SDE), eq. 33: ln alpha^2 = -t beta_min - t^2 (beta_max - beta_min) / 2.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        super().__init__()
        self.beta_min = number("beta_min", beta_min, above=0)
        self.beta_max = number("beta_max", beta_max, at_least=beta_min)

    def curve(self, u: Tensor) -> Tensor:
        return _from_decay(self.beta_min * u + (self.beta_max - self.beta_min) * u.square() / 2)


class Quadratic(Linear):
    """A linear sqrt(beta(t)): `ScaledLinearBetas` for T to infinity."""

    def curve(self, u: Tensor) -> Tensor:
        root = math.sqrt(self.beta_min)
        rise = math.sqrt(self.beta_max) - root
        return _from_decay(root**2 * u + root * rise * u.square() + rise**2 * u**3 / 3)


class Cosine(NoiseSchedule):
    """The cosine schedule (Nichol & Dhariwal 2021, eq. 17).

    alpha^2 = f(t) / f(0), f(t) = cos^2(pi/2 (t + s) / (1 + s)). The SNR at t = 1 is 0, so the
    network cannot predict eps there; the paper clips the betas, and Salimans & Ho (2022) cut at
    log-SNRs of +-20. At s = 0 the log-SNR is -2 ln tan(pi t / 2).

    Args:
        s: the offset, which makes the first steps larger; 0 or more.
    """

    def __init__(self, s: float = 0.008) -> None:
        super().__init__()
        self.s = number("s", s, at_least=0)

    def curve(self, u: Tensor) -> Tensor:
        # f(0) - f(t) as a product of two sines, which avoids cancellation.
        angle = math.pi / 2 / (1 + self.s)
        return (
            2 * torch.log(torch.sin(angle * (1 - u)))
            - torch.log(torch.sin(angle * u))
            - torch.log(torch.sin(angle * (u + 2 * self.s)))
        )


class RectifiedFlow(NoiseSchedule):
    """The straight path x_t = (1 - t) x_0 + t eps, as log-SNR 2 ln((1 - t) / t) - 2 ln shift.

    Liu et al. (2023), rectified flow; Lipman et al. (2023), flow matching. x_t is divided by its
    standard deviation for data of variance 1, like that of every schedule. The log-SNR is infinite
    at both ends.

    Args:
        shift: moves all times towards the noise, t' = shift t / (1 + (shift - 1) t), for images of
            higher resolution (Esser et al. 2024, eq. 23); above 0, and 1 is none.
    """

    def __init__(self, shift: float = 1.0) -> None:
        super().__init__()
        self.shift = number("shift", shift, above=0)

    def curve(self, u: Tensor) -> Tensor:
        return 2 * (torch.log1p(-u) - torch.log(u)) - 2 * math.log(self.shift)


class Trigonometric(NoiseSchedule):
    """The path on a circle, alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Albergo et al. 2023).

    It is `Cosine` without its offset; the velocity of its path is pi/2 times v. The log-SNR,
    -2 ln tan(pi t / 2) - 2 ln shift, is infinite at both ends.

    Args:
        shift: the factor by which sigma / alpha grows at every time, for images of higher
            resolution (Hoogeboom et al. 2023, eq. 7); above 0, and 1 is none.
    """

    def __init__(self, shift: float = 1.0) -> None:
        super().__init__()
        self.shift = number("shift", shift, above=0)

    def curve(self, u: Tensor) -> Tensor:
        angle = math.pi / 2
        # The cosine of a small angle's complement is a sine, which is accurate near t = 1.
        ratio = torch.log(torch.sin(angle * (1 - u))) - torch.log(torch.sin(angle * u))
        return 2 * ratio - 2 * math.log(self.shift)


class Sigmoid(NoiseSchedule):
    """The sigmoid schedule (Jabri et al. 2022; Chen 2023, sec. 2): a piece of a logistic.

    alpha^2 = (S(end) - S(x)) / (S(end) - S(start)), x from start to end, S(x) = sigmoid(x / tau).
    """

    def __init__(self, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> None:
        super().__init__()
        self.start = number("start", start)
        self.end = number("end", end, above=start)
        self.tau = number("tau", tau, above=0)

    def curve(self, u: Tensor) -> Tensor:
        # S(a) - S(b) is sinh((a - b) / 2 tau) over two cosh; the cosh of x cancel in the SNR.
        width = (self.end - self.start) / self.tau
        tilt = _log_cosh(self.start / self.tau / 2) - _log_cosh(self.end / self.tau / 2)
        return _log_sinh(width * (1 - u) / 2) - _log_sinh(width * u / 2) + tilt


def _log_sinh(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-2 * x)) - math.log(2)


def _log_cosh(x: float) -> float:
    return abs(x) + math.log1p(math.exp(-2 * abs(x))) - math.log(2)


class _WithEnds(NoiseSchedule):
    """A schedule with two given finite ends.

    Raises:
        ValueError: if the ends are not finite numbers, or are in the wrong order.
    """

    def __init__(self, log_snr_max: float, log_snr_min: float) -> None:
        super().__init__()
        self.log_snr_max = number("log_snr_max", log_snr_max)
        self.log_snr_min = number("log_snr_min", log_snr_min)
        check_order(log_snr_max, log_snr_min)


class LinearLogSNR(_WithEnds):
    """A straight line from log_snr_max to log_snr_min: VDM's initial one (Kingma et al. 2021)."""

    def __init__(self, log_snr_max: float = 13.0, log_snr_min: float = -9.0) -> None:
        super().__init__(log_snr_max, log_snr_min)

    def curve(self, u: Tensor) -> Tensor:
        return self.log_snr_max * (1 - u) + self.log_snr_min * u


class EDM(_WithEnds):
    """EDM's training distribution of noise: ln(sigma / alpha) is normal for uniform t.

    Karras et al. (2022), table 1.

    Args:
        P_mean, P_std: mean and standard deviation of ln(sigma / alpha) before truncation; P_std
            above 0.
        sigma_min, sigma_max: limits of the truncation, for images in [-1, 1]; above 0.
        log_snr_max, log_snr_min: limits of the truncation, if given, in the place of
            -2 ln sigma_min and -2 ln sigma_max.
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
        mean = number("P_mean", P_mean)
        std = number("P_std", P_std, above=0)
        number("sigma_min", sigma_min, above=0)
        number("sigma_max", sigma_max, above=sigma_min)
        super().__init__(
            -2 * math.log(sigma_min) if log_snr_max is None else log_snr_max,
            -2 * math.log(sigma_max) if log_snr_min is None else log_snr_min,
        )
        self.P_mean, self.P_std = mean, std

    def curve(self, u: Tensor) -> Tensor:
        first, last = (
            (-log_snr / 2 - self.P_mean) / self.P_std / math.sqrt(2)
            for log_snr in (self.log_snr_max, self.log_snr_min)
        )
        # torch's ndtr is inaccurate in the far tails; erfc is accurate there.
        below, above = (
            (math.erfc(sign * first) * (1 - u) + math.erfc(sign * last) * u) / 2 for sign in (-1, 1)
        )
        # Each half is computed from its own tail: 1 - p loses all digits for p near 1.
        left = below < above
        quantile = torch.special.ndtri(torch.where(left, below, above))
        return -2 * (self.P_mean + self.P_std * torch.where(left, quantile, -quantile))


class Learned(_WithEnds):
    """A monotone network between fixed ends, as in VDM (Kingma et al. 2021, appendix H).

    A straight line plus a sum of `hidden` increasing sigmoids, with weights made positive by
    softplus, rescaled to reach both ends exactly. It is initialised close to the straight line.

    Args:
        hidden: number of sigmoids; 1 or more (VDM has 1024).
    """

    def __init__(
        self, hidden: int = 128, log_snr_max: float = 13.0, log_snr_min: float = -9.0
    ) -> None:
        super().__init__(log_snr_max, log_snr_min)
        whole("hidden", hidden, 1)
        self.line = nn.Parameter(torch.zeros(()))
        self.height = nn.Parameter(torch.zeros(hidden))
        self.steepness = nn.Parameter(torch.full((hidden,), 10.0))
        self.centre = nn.Parameter((torch.arange(hidden) + 0.5) / hidden)

    def curve(self, u: Tensor) -> Tensor:
        begin, end = self._rise(torch.arange(2, dtype=u.dtype, device=u.device))
        done = (self._rise(u) - begin) / (end - begin)
        return self.log_snr_max * (1 - done) + self.log_snr_min * done

    def _rise(self, u: Tensor) -> Tensor:
        line, height, steepness = (
            functional.softplus(weight.double())
            for weight in (self.line, self.height, self.steepness)
        )
        sigmoids = torch.sigmoid(steepness * (u.unsqueeze(-1) - self.centre.double()))
        return line * u + sigmoids @ (height / len(height))
