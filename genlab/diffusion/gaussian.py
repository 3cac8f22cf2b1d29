"""Gaussian data, for which the perfect network is known: an oracle for bounds and samplers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genlab.checks import number
from genlab.diffusion.process import Process, alpha_sigma
from genlab.diffusion.variances import Prediction
from genlab.errors import ConfigError
from genlab.tensors import like_images


class GaussianData:
    """x_0 ~ N(mean, std^2), independent in each dimension.

    Args:
        mean, std: numbers, or tensors that broadcast to the shape of an image, (C, H, W). With
            numbers alone that shape is (1, 1, 1), and images of any shape have such dimensions.

    Raises:
        ConfigError: for a standard deviation that is not above 0, or a mean that is not finite.
    """

    def __init__(self, mean: float | Tensor, std: float | Tensor) -> None:
        self.mean, self.std, _ = torch.broadcast_tensors(
            torch.as_tensor(mean, dtype=torch.float64),
            torch.as_tensor(std, dtype=torch.float64),
            torch.empty(1, 1, 1),
        )
        number("std", float(self.std.min()), above=0)
        if not (torch.isfinite(self.mean) & torch.isfinite(self.std)).all():
            raise ConfigError("mean, std: give finite numbers")

    def marginal(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and standard deviation of x_t at log-SNRs (B,), (B, C, H, W) float64."""
        alpha, sigma = self._coefficients(log_snr)
        return alpha * self.mean, ((alpha * self.std).square() + sigma.square()).sqrt()

    def posterior_mean(self, x_t: Tensor, log_snr: Tensor) -> Tensor:
        """E[x_0 | x_t], (B, C, H, W) in the dtype of x_t, at log-SNRs (B,)."""
        alpha, _ = self._coefficients(log_snr)
        mean, std = self.marginal(log_snr)
        x0_hat = self.mean + alpha * (self.std / std).square() * (x_t - mean)
        return x0_hat.to(x_t.dtype)

    def posterior_variance(self, log_snr: Tensor) -> Tensor:
        """Var(x_0 | x_t), the same at every x_t, (B, C, H, W) float64."""
        _, sigma = self._coefficients(log_snr)
        _, std = self.marginal(log_snr)
        return (self.std * sigma / std).square()

    def denoiser(self, process: Process) -> Callable[[Tensor, Tensor], Tensor]:
        """The perfect `denoise(x_t, t) -> x0_hat` of this process."""
        return lambda x_t, t: self.posterior_mean(x_t, process.log_snr(t))

    def predictor(self, process: Process) -> Callable[[Tensor, Tensor], Prediction]:
        """The perfect `predict(x_t, t)` of this process, without a learned variance."""
        denoise = self.denoiser(process)
        return lambda x_t, t: Prediction(denoise(x_t, t))

    def entropy(self) -> float:
        """In nats per image: the sum over dimensions of ln(2 pi e std^2) / 2."""
        return float(torch.distributions.Normal(self.mean, self.std).entropy().sum())

    def sample(self, count: int) -> Tensor:
        """Images (count, C, H, W) float64, from torch's default generator."""
        noise = torch.randn((count, *self.mean.shape), dtype=torch.float64)
        return self.mean + self.std * noise

    def _coefficients(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = alpha_sigma(log_snr)
        images = self.mean.unsqueeze(0)
        return like_images(alpha, images), like_images(sigma, images)
