"""The forward process q(x_t | x_0) and its posterior, as functions of the log-SNR.

Images are in [-1, 1] here. Times and log-SNRs are (B,) float64; the factors of images are computed
in float64 and cast at the end. In terms of c = 1 - exp(lambda_t - lambda_s) for s < t,
every coefficient is a product of alphas, sigmas and c (Kingma et al. 2021, VDM, appendix A).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from genlab.diffusion.schedules import NoiseSchedule
from genlab.errors import whole
from genlab.tensors import like_images

_PROBES = 257


def alpha_sigma(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """Compute alpha and sigma, alpha^2 + sigma^2 = 1, in float64; log-SNRs may be infinite."""
    log_snr = log_snr.double()
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


def scale(factor: Tensor, images: Tensor) -> Tensor:
    """Multiply each of the images (B, C, H, W) by its own factor (B,)."""
    return like_images(factor.to(images.dtype), images) * images


def diffuse(x0: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
    """Compute x_t = alpha_t x_0 + sigma_t eps (Ho et al. 2020, eq. 4), (B, C, H, W)."""
    alpha, sigma = alpha_sigma(log_snr)
    return scale(alpha, x0) + scale(sigma, eps)


def step_fraction(log_snr_s: Tensor, log_snr_t: Tensor) -> Tensor:
    """Compute c = 1 - exp(lambda_t - lambda_s) = sigma^2_(t|s) / sigma^2_t, in [0, 1].

    It is 1 if s is clean data.
    """
    return -torch.expm1(log_snr_t.double() - log_snr_s.double())


class Posterior(NamedTuple):
    """The Gaussian q(x_s | x_t, x_0): its mean (B, C, H, W) and variance (B,) per dimension."""

    mean: Tensor
    variance: Tensor


def posterior(x0: Tensor, x_t: Tensor, log_snr_s: Tensor, log_snr_t: Tensor) -> Posterior:
    """Compute q(x_s | x_t, x_0) for s < t (Ho et al. 2020, eq. 7).

    At s = 0 its mean is x_0 and its variance 0.
    """
    from_x0, from_x_t, variance = posterior_coefficients(log_snr_s, log_snr_t)
    return Posterior(scale(from_x0, x0) + scale(from_x_t, x_t), variance)


def posterior_coefficients(log_snr_s: Tensor, log_snr_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the factors of x_0 and x_t in the mean of q(x_s | x_t, x_0), and its variance.

    Each is (B,) float64.
    """
    alpha_s, sigma_s = alpha_sigma(log_snr_s)
    alpha_t, sigma_t = alpha_sigma(log_snr_t)
    c = step_fraction(log_snr_s, log_snr_t)
    return (
        alpha_s * c,
        alpha_t * sigma_s.square() / (alpha_s * sigma_t.square()),
        (sigma_s.square() * c),
    )


class Process:
    """A noise schedule in discrete time, t = 1/T, ..., 1 and clean data at 0, or continuous time.

    Args:
        schedule: the log-SNR of each time.
        steps: T; None for continuous time, from one finite log-SNR to another.

    Raises:
        ValueError: if T is below 1, the schedule is not decreasing, or an end of continuous time
            has an infinite log-SNR.
    """

    def __init__(self, schedule: NoiseSchedule, steps: int | None) -> None:
        self.schedule = schedule
        self.steps = None if steps is None else whole("steps", steps, 1)
        name = schedule.name
        if steps is None:
            probes = torch.linspace(0, 1, _PROBES, dtype=torch.float64)
        else:
            probes = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        with torch.no_grad():
            values = schedule.log_snr(probes)
        if steps is None and not torch.isfinite(values).all():
            raise ValueError(
                f"steps=null: in continuous time {name} must begin and end at a finite "
                f"log-SNR, and it runs from {float(values[0]):.4g} to {float(values[-1]):.4g}; "
                "give model.log_snr_max and model.log_snr_min, for instance 13 and -9, or "
                "model.steps, for instance 1000"
            )
        if values.isnan().any() or not (values[1:] < values[:-1]).all():
            raise ValueError(
                f"noise_schedule={name}: its log-SNR does not fall at every step towards "
                "the noise; a schedule must be decreasing"
            )

    @property
    def is_discrete(self) -> bool:
        """True if time is discrete, with T steps."""
        return self.steps is not None

    @property
    def first(self) -> float:
        """The smallest time with noise: 1/T, or 0 in continuous time."""
        return 0.0 if self.steps is None else 1.0 / self.steps

    def times(self, u: Tensor) -> Tensor:
        """Map numbers in [0, 1) to times, float64: to T equal steps, or unchanged if continuous."""
        if self.steps is None:
            return u.double()
        return (torch.floor(u.double() * self.steps).clamp(max=self.steps - 1) + 1) / self.steps

    def previous(self, t: Tensor) -> Tensor:
        """Return the time one step before each t; 0 before the first step."""
        assert self.steps is not None
        return (torch.round(t.double() * self.steps) - 1) / self.steps

    def log_snr(self, t: Tensor) -> Tensor:
        """Compute lambda(t), float64; in discrete time it is inf at t = 0, where data are clean."""
        if self.steps is None:
            return self.schedule.log_snr(t)
        clean = t <= 0.5 / self.steps
        values = self.schedule.log_snr(torch.where(clean, torch.ones_like(t), t))
        return torch.where(clean, torch.full_like(values, torch.inf), values)
