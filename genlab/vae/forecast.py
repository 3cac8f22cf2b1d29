"""Forecast of the effect of a KL weight, computed from the data before training.

Reverse water-filling over the eigenvalues of the data covariance solves a linear beta-VAE exactly
(Lucas et al. 2019 at beta = 1), with water level theta = beta sigma^2. For any decoder, however
deep, reconstruction + beta kl at a global optimum is at most the loss of a constant decoder, so the
rate is at most (D_collapse - D_min) / beta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, NamedTuple

import numpy.typing as npt
from torch import Tensor

from genlab.errors import number, whole
from genlab.protocols import ImageSpec
from genlab.vae.likelihoods import (
    Bernoulli,
    CalibratedGaussian,
    DiscretizedLogisticLikelihood,
    DiscretizedLogisticMixtureLikelihood,
    GaussianLikelihood,
    LearnedGaussian,
    Likelihood,
)
from genlab.vae.spectrum import PixelStatistics, binary_entropy


class WaterFilling(NamedTuple):
    """The optimum of the linear VAE at one water level.

    Attributes:
        rate: sum over active directions of ln(l / theta) / 2, nats; l is the eigenvalue.
        distortion: the expected summed squared error, with z sampled.
        sse_mean: the same with z at the posterior mean.
        active_units: directions with l > theta, at most latent_dim.
        rates: the rate of each latent, largest first: 0 if inactive, infinite at theta = 0.
    """

    rate: float
    distortion: float
    sse_mean: float
    active_units: int
    rates: tuple[float, ...]

    @property
    def finite_rates(self) -> tuple[float, ...] | None:
        return self.rates if math.isfinite(self.rate) else None


def water_filling(eigenvalues: Tensor, theta: float, latent_dim: int) -> WaterFilling:
    """Compute the optimum of the linear VAE from covariance eigenvalues, largest first.

    theta = beta sigma^2; at theta = 0 the rate is infinite and the distortion is that of PCA.
    """
    number("theta", theta, at_least=0)
    whole("latent_dim", latent_dim, 1)
    eigenvalues = eigenvalues.double().clamp(min=0)
    top = eigenvalues[:latent_dim]
    active = top[top > theta]
    k = len(active)
    rest = float(eigenvalues[k:].sum())
    # inf where theta is 0
    rates = [*(0.5 * (active / theta).log()).tolist(), *[0.0] * (latent_dim - k)]
    return WaterFilling(
        sum(rates), k * theta + rest, float((theta**2 / active).sum()) + rest, k, tuple(rates)
    )


@dataclass(frozen=True)
class Forecast:
    """The forecast for one KL weight; a field is None if it is unknown for this likelihood.

    Attributes:
        beta: the canonical KL weight.
        active_units: latents in use.
        rate: the KL term, nats per image.
        reconstruction: the reconstruction term, nats per image.
        squared_error: E SSE per image, z sampled.
        collapse: whether every latent is unused.
        collapse_threshold: the weight above which the collapsed point is locally stable.
        rate_ceiling: bound on the KL term at a global optimum, for any decoder; nats per image.
        exact: whether all but the ceiling is exact for the linear VAE on this data; false if, to
            save time, the covariance was measured on a part of the data (`Spectrum.images`).
        basis: the method, in words.
        rate_by_unit: the rate of each latent, largest first, if it is known and finite.
    """

    beta: float
    active_units: int | None = None
    rate: float | None = None
    reconstruction: float | None = None
    squared_error: float | None = None
    collapse: bool | None = None
    collapse_threshold: float | None = None
    rate_ceiling: float | None = None
    exact: bool = False
    basis: str = "no linear forecast for this likelihood"
    rate_by_unit: tuple[float, ...] | None = None

    def metrics(self) -> dict[str, float]:
        """Return the known numbers by name; in nats per image."""
        values = {
            "active_units": self.active_units,
            "rate": self.rate,
            "reconstruction": self.reconstruction,
            "squared_error": self.squared_error,
            "collapse_threshold": self.collapse_threshold,
            "rate_ceiling": self.rate_ceiling,
        }
        return {name: float(value) for name, value in values.items() if value is not None}

    @property
    def sentence(self) -> str:
        """The forecast in one line."""
        parts = []
        if self.active_units is not None:
            state = "collapse, 0" if self.collapse else str(self.active_units)
            rate = "unbounded" if self.rate == math.inf else f"{self.rate:.2f} nats"
            units = "unit" if state == "1" else "units"
            parts.append(f"{state} active {units}, rate {rate}")
        if self.collapse_threshold is not None:
            parts.append(f"collapse is locally stable from weight {self.collapse_threshold:.4g} on")
        if self.rate_ceiling is not None and math.isfinite(self.rate_ceiling):
            parts.append(f"no decoder's rate above {self.rate_ceiling:.2f} nats")
        return f"{'; '.join(parts)} ({self.basis})" if parts else self.basis


def forecast(
    likelihood: Likelihood, pixels: npt.NDArray[Any], spec: ImageSpec, latent_dim: int, beta: float
) -> Forecast:
    """Forecast the effect of the canonical weight `beta` for this likelihood and these images."""
    return forecasts(likelihood, pixels, spec, latent_dim, [beta])[0]


def forecasts(
    likelihood: Likelihood,
    pixels: npt.NDArray[Any],
    spec: ImageSpec,
    latent_dim: int,
    betas: Sequence[float],
) -> list[Forecast]:
    """Forecast the effect of each weight; the statistics of the data are measured once.

    Raises:
        ValueError: if the likelihood does not fit the data, a weight is negative or not finite, or
            the latent size is below 1.
    """
    likelihood.check(spec)
    whole("latent_dim", latent_dim, 1)
    data = PixelStatistics(pixels, spec.levels)
    betas = [number("kl_weight", beta, at_least=0) for beta in betas]
    return [predict(likelihood, data, latent_dim, beta) for beta in betas]


@singledispatch
def predict(
    likelihood: Likelihood, data: PixelStatistics, latent_dim: int, beta: float
) -> Forecast:
    """Forecast the effect of one weight; empty if no method is registered for the likelihood."""
    return Forecast(beta)


@predict.register
def _fixed_scale(
    likelihood: GaussianLikelihood, data: PixelStatistics, latent_dim: int, beta: float
) -> Forecast:
    variance, eigenvalues = likelihood.scale**2, data.spectrum.eigenvalues
    optimum = water_filling(eigenvalues, beta * variance, latent_dim)
    constant = 0.5 * data.dims * math.log(2 * math.pi * variance)
    return Forecast(
        beta,
        active_units=optimum.active_units,
        rate=optimum.rate,
        reconstruction=optimum.distortion / (2 * variance) + constant,
        squared_error=optimum.distortion,
        collapse=optimum.active_units == 0,
        collapse_threshold=float(eigenvalues[0]) / variance,
        rate_ceiling=_ceiling(float(eigenvalues.sum()) / (2 * variance), beta),
        exact=data.spectrum.images == len(data.pixels),
        basis="linear VAE: reverse water-filling",
        rate_by_unit=optimum.finite_rates,
    )


@predict.register(LearnedGaussian)
@predict.register(CalibratedGaussian)
def _free_scale(
    likelihood: Likelihood, data: PixelStatistics, latent_dim: int, beta: float
) -> Forecast:
    eigenvalues, dims = data.spectrum.eigenvalues, data.dims
    variance = optimal_variance(eigenvalues, beta, latent_dim)
    optimum = water_filling(eigenvalues, beta * variance, latent_dim)
    total = float(eigenvalues.sum())
    log_variance = math.log(2 * math.pi * variance) if variance > 0 else -math.inf
    return Forecast(
        beta,
        active_units=optimum.active_units,
        rate=optimum.rate,
        reconstruction=0.5 * dims * (log_variance + 1),
        squared_error=optimum.distortion,
        collapse=optimum.active_units == 0,
        collapse_threshold=float(eigenvalues[0]) * dims / total if total > 0 else 0.0,
        exact=data.spectrum.images == len(data.pixels),
        basis="linear VAE with its optimal scale" + (": probabilistic PCA" if beta == 1 else ""),
        rate_by_unit=optimum.finite_rates,
    )


def optimal_variance(eigenvalues: Tensor, beta: float, latent_dim: int) -> float:
    """Compute the optimal sigma^2 of the linear VAE.

    It minimises D/2 ln sigma^2 + SSE / (2 sigma^2) + beta R. With m active directions the optimum
    is (sum of the other eigenvalues) / (D - beta m), which at beta = 1 is that of probabilistic
    PCA. Each m that agrees with its own water level is a candidate; the best one is returned, or 0
    if the objective has no lower bound (enough latents for a perfect fit).
    """
    eigenvalues = eigenvalues.double().clamp(min=0)
    dims = len(eigenvalues)
    residual = [*eigenvalues.flip(0).cumsum(0).flip(0).tolist(), 0.0]
    best, best_loss = residual[0] / dims, math.inf
    for m in range(min(latent_dim, dims) + 1):
        if beta * m >= dims:
            break
        # Rounding makes eigenvalues of the covariance small but not 0 where they should be 0.
        if residual[m] <= 1e-6 * residual[0]:
            return 0.0
        variance = residual[m] / (dims - beta * m)
        optimum = water_filling(eigenvalues, beta * variance, latent_dim)
        if beta > 0 and optimum.active_units != m:
            continue
        rate = 0.0 if beta == 0 else beta * optimum.rate
        loss = 0.5 * dims * math.log(variance) + optimum.distortion / (2 * variance) + rate
        if loss < best_loss:
            best, best_loss = variance, loss
    return best


@predict.register
def _bernoulli(
    likelihood: Bernoulli, data: PixelStatistics, latent_dim: int, beta: float
) -> Forecast:
    eigenvalues = data.bernoulli_spectrum.eigenvalues
    optimum = water_filling(eigenvalues, beta, latent_dim)
    collapsed = float(binary_entropy(data.mean).sum())
    floor = data.bernoulli_entropy
    ceiling = _ceiling(collapsed - floor, beta)
    gain = 0.5 * (float(eigenvalues.sum()) - optimum.distortion)
    return Forecast(
        beta,
        active_units=optimum.active_units,
        rate=min(optimum.rate, ceiling),
        reconstruction=max(collapsed - gain, floor),
        collapse=optimum.active_units == 0,
        collapse_threshold=float(eigenvalues[0]),
        rate_ceiling=ceiling,
        basis="second order around the collapsed point: exact threshold, the rest approximate",
    )


@predict.register(DiscretizedLogisticLikelihood)
@predict.register(DiscretizedLogisticMixtureLikelihood)
def _discretized(
    likelihood: Likelihood, data: PixelStatistics, latent_dim: int, beta: float
) -> Forecast:
    # A probability is at most 1, so D_min >= 0. The best constant decoder is at least as good as
    # this one.
    return Forecast(
        beta,
        rate_ceiling=_ceiling(data.logistic_nats, beta),
        basis="no linear forecast; the ceiling is from a logistic with each pixel's moments",
    )


def _ceiling(gain: float, beta: float) -> float:
    return math.inf if beta == 0 else gain / beta
