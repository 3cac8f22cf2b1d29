"""The forward process q(x_t | x_0) and its posterior, as functions of the log-SNR.

Images are in [-1, 1] here. Times and log-SNRs are (B,) float64; what multiplies an image is
computed in float64 and cast at the end. In terms of c = 1 - exp(lambda_t - lambda_s) for s < t,
every coefficient is a product of alphas, sigmas and c (Kingma et al. 2021, VDM, appendix A).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from genlab.checks import whole
from genlab.diffusion.schedules import NoiseSchedule
from genlab.errors import ConfigError
from genlab.tensors import like_images

_PROBES = 257


def alpha_sigma(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma, with alpha^2 + sigma^2 = 1, in float64; log-SNRs may be infinite."""
    log_snr = log_snr.double()
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


def scale(factor: Tensor, images: Tensor) -> Tensor:
    """Images (B, C, H, W), each times its own factor (B,)."""
    return like_images(factor.to(images.dtype), images) * images


def diffuse(x0: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
    """x_t = alpha_t x_0 + sigma_t eps (Ho et al. 2020, eq. 4), (B, C, H, W)."""
    alpha, sigma = alpha_sigma(log_snr)
    return scale(alpha, x0) + scale(sigma, eps)


def step_fraction(log_snr_s: Tensor, log_snr_t: Tensor) -> Tensor:
    """c = 1 - exp(lambda_t - lambda_s) = sigma^2_(t|s) / sigma^2_t, in [0, 1]; 1 from clean."""
    return -torch.expm1(log_snr_t.double() - log_snr_s.double())


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0): the mean (B, C, H, W) and the variance (B,) of each dimension."""

    mean: Tensor
    variance: Tensor


def posterior(x0: Tensor, x_t: Tensor, log_snr_s: Tensor, log_snr_t: Tensor) -> Posterior:
    """q(x_s | x_t, x_0) for s < t (Ho et al. 2020, eq. 7): mean x_0 and variance 0 at s = 0."""
    from_x0, from_x_t, variance = posterior_coefficients(log_snr_s, log_snr_t)
    return Posterior(scale(from_x0, x0) + scale(from_x_t, x_t), variance)


def posterior_coefficients(log_snr_s: Tensor, log_snr_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What multiplies x_0 and x_t in the mean of q(x_s | x_t, x_0), and its variance, each (B,)."""
    alpha_s, sigma_s = alpha_sigma(log_snr_s)
    alpha_t, sigma_t = alpha_sigma(log_snr_t)
    c = step_fraction(log_snr_s, log_snr_t)
    return (
        alpha_s * c,
        alpha_t * sigma_s.square() / (alpha_s * sigma_t.square()),
        (sigma_s.square() * c),
    )


class Process:
    """A noise schedule with its times: T steps t = 1/T, ..., 1 before which data are clean, or all.

    Args:
        schedule: the log-SNR of each time.
        steps: T; None for continuous time, which begins at the schedule's finite log_snr_max.

    Raises:
        ConfigError: for T below 1, a schedule that is not decreasing, or continuous time from an
            infinite log-SNR.
    """

    def __init__(self, schedule: NoiseSchedule, steps: int | None) -> None:
        self.schedule = schedule
        self.steps = None if steps is None else whole("model.steps", steps, 1)
        name = type(schedule).__name__
        if steps is None:
            probes = torch.linspace(0, 1, _PROBES, dtype=torch.float64)
        else:
            probes = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        with torch.no_grad():
            values = schedule.log_snr(probes)
        if steps is None and not torch.isfinite(values).all():
            raise ConfigError(
                f"model.steps=null: in continuous time {name} must begin and end at a finite "
                f"log-SNR, and it runs from {float(values[0]):.4g} to {float(values[-1]):.4g}; "
                "give model.noise_schedule.log_snr_max and log_snr_min, for instance 13 and -9, or "
                "model.steps, for instance 1000"
            )
        if values.isnan().any() or not (values[1:] < values[:-1]).all():
            raise ConfigError(
                f"model.noise_schedule={name}: its log-SNR does not fall at every step towards "
                "the noise; a schedule must be decreasing"
            )

    @property
    def is_discrete(self) -> bool:
        """Whether there are T steps."""
        return self.steps is not None

    @property
    def first(self) -> float:
        """The smallest time at which there is noise: 1/T, or 0 in continuous time."""
        return 0.0 if self.steps is None else 1.0 / self.steps

    def times(self, u: Tensor) -> Tensor:
        """Numbers in [0, 1) to times, float64: the equally likely steps, or the number itself."""
        if self.steps is None:
            return u.double()
        return (torch.floor(u.double() * self.steps).clamp(max=self.steps - 1) + 1) / self.steps

    def previous(self, t: Tensor) -> Tensor:
        """The time one step before each t; 0 before the first."""
        assert self.steps is not None
        return (torch.round(t.double() * self.steps) - 1) / self.steps

    def log_snr(self, t: Tensor) -> Tensor:
        """lambda(t), float64; of discrete steps infinity at t = 0, where the data are clean."""
        if self.steps is None:
            return self.schedule.log_snr(t)
        clean = t <= 0.5 / self.steps
        values = self.schedule.log_snr(torch.where(clean, torch.ones_like(t), t))
        return torch.where(clean, torch.full_like(values, torch.inf), values)
