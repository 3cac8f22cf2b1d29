"""Gaussian data, whose exact denoiser is known: a reference for bounds and samplers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genlab.diffusion.process import Process, alpha_sigma
from genlab.diffusion.variances import Prediction
from genlab.errors import number
from genlab.tensors import like_images


class GaussianData:
    """x_0 ~ N(mean, std^2), independent in each dimension.

    Args:
        mean, std: numbers, or tensors that broadcast to the shape of an image, (C, H, W). With
            numbers only, that shape is (1, 1, 1), which broadcasts to images of any shape.

    Raises:
        ValueError: if a standard deviation is not above 0, or a value is not finite.
    """

    def __init__(self, mean: float | Tensor, std: float | Tensor) -> None:
        self.mean, self.std, _ = torch.broadcast_tensors(
            torch.as_tensor(mean, dtype=torch.float64),
            torch.as_tensor(std, dtype=torch.float64),
            torch.empty(1, 1, 1),
        )
        number("std", float(self.std.min()), above=0)
        if not (torch.isfinite(self.mean) & torch.isfinite(self.std)).all():
            raise ValueError("mean, std: give finite numbers")

    def marginal(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the mean and standard deviation of x_t at log-SNRs (B,), (B, C, H, W) float64."""
        alpha, sigma = self._coefficients(log_snr)
        return alpha * self.mean, ((alpha * self.std).square() + sigma.square()).sqrt()

    def posterior_mean(self, x_t: Tensor, log_snr: Tensor) -> Tensor:
        """Compute E[x_0 | x_t], (B, C, H, W) in the dtype of x_t, at log-SNRs (B,)."""
        alpha, _ = self._coefficients(log_snr)
        mean, std = self.marginal(log_snr)
        x0_hat = self.mean + alpha * (self.std / std).square() * (x_t - mean)
        return x0_hat.to(x_t.dtype)

    def posterior_variance(self, log_snr: Tensor) -> Tensor:
        """Compute Var(x_0 | x_t), which does not depend on x_t, (B, C, H, W) float64."""
        _, sigma = self._coefficients(log_snr)
        _, std = self.marginal(log_snr)
        return (self.std * sigma / std).square()

    def denoiser(self, process: Process) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the exact `denoise(x_t, t) -> x0_hat` for this process."""
        return lambda x_t, t: self.posterior_mean(x_t, process.log_snr(t))

    def predictor(self, process: Process) -> Callable[[Tensor, Tensor], Prediction]:
        """Return the exact `predict(x_t, t)` for this process, without a learned variance."""
        denoise = self.denoiser(process)
        return lambda x_t, t: Prediction(denoise(x_t, t))

    def entropy(self) -> float:
        """Compute the entropy in nats per image: ln(2 pi e std^2) / 2, summed over dimensions."""
        return float(torch.distributions.Normal(self.mean, self.std).entropy().sum())

    def sample(self, count: int) -> Tensor:
        """Draw images (count, C, H, W) float64, from torch's default generator."""
        noise = torch.randn((count, *self.mean.shape), dtype=torch.float64)
        return self.mean + self.std * noise

    def _coefficients(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = alpha_sigma(log_snr)
        images = self.mean.unsqueeze(0)
        return like_images(alpha, images), like_images(sigma, images)
