"""Parameterizations: the network predicts noise, image, v or velocity, converted to x0_hat.

A parameterization changes only the meaning of the output: the weight on the error of x0_hat is
converted to a weight on the error of the output, so the loss is the same number. To add one, write
a subclass here and a YAML file in `conf/model/parameterization/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from genlab.diffusion.process import Process, alpha_sigma, scale


class Parameterization(ABC):
    """The meaning of the network's output; images are (B, C, H, W), log-SNRs (B,) float64."""

    def check(self, process: Process) -> None:
        """Refuse a process in which the output at t = 1 does not determine x_0.

        Raises:
            ValueError: with a message that names the remedy.
        """
        end = process.log_snr(torch.ones(1, dtype=torch.float64))
        if self.log_scale(end).isposinf():
            raise ValueError(
                f"{type(self).__name__} does not fit the schedule {process.schedule.name}, which "
                "ends at an SNR of 0, where the noise is all of x_t and says nothing of x_0; use "
                "model/parameterization=v, x0 or velocity, or a finite model.log_snr_min, for "
                "instance -20"
            )

    def describe(self) -> str:
        """Describe the correct output in a few words."""
        return f"the target of {type(self).__name__}"

    @abstractmethod
    def x0_hat(self, output: Tensor, x_t: Tensor, log_snr: Tensor) -> Tensor:
        """Convert the output to the clean image."""

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
        """Compute the correct output."""

    @abstractmethod
    def log_scale(self, log_snr: Tensor) -> Tensor:
        """Compute ln of ||x0 - x0_hat||^2 / ||target - output||^2, (B,).

        It converts a weight on one error to a weight on the other.
        """


class Epsilon(Parameterization):
    """Prediction of the noise: x0_hat = (x_t - sigma eps_hat) / alpha (Ho et al. 2020, eq. 15)."""

    def describe(self) -> str:
        return "the noise"

    def x0_hat(self, output: Tensor, x_t: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(log_snr)
        return scale(1 / alpha, x_t) - scale(sigma / alpha, output)

    def target(self, x0: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
        return eps

    def log_scale(self, log_snr: Tensor) -> Tensor:
        return -log_snr


class X0(Parameterization):
    """Prediction of the image x_0 itself."""

    def describe(self) -> str:
        return "x"

    def x0_hat(self, output: Tensor, x_t: Tensor, log_snr: Tensor) -> Tensor:
        return output

    def target(self, x0: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
        return x0

    def log_scale(self, log_snr: Tensor) -> Tensor:
        return torch.zeros_like(log_snr)


class V(Parameterization):
    """Prediction of v = alpha eps - sigma x_0: x0_hat = alpha x_t - sigma v_hat.

    Salimans & Ho (2022), sec. 4.
    """

    def describe(self) -> str:
        return "v = alpha noise - sigma x"

    def x0_hat(self, output: Tensor, x_t: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(log_snr)
        return scale(alpha, x_t) - scale(sigma, output)

    def target(self, x0: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(log_snr)
        return scale(alpha, eps) - scale(sigma, x0)

    def log_scale(self, log_snr: Tensor) -> Tensor:
        return functional.logsigmoid(-log_snr)


class Velocity(Parameterization):
    """Prediction of eps - x_0, the velocity of the straight path (1 - t) x_0 + t eps.

    Liu et al. (2023); Lipman et al. (2023). The straight path visits every log-SNR, so this is
    defined under any noise schedule: x_t / (alpha + sigma) is on that path, at the time
    sigma / (alpha + sigma), and x0_hat = (x_t - sigma velocity_hat) / (alpha + sigma).
    """

    def x0_hat(self, output: Tensor, x_t: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(log_snr)
        return scale(1 / (alpha + sigma), x_t) - scale(sigma / (alpha + sigma), output)

    def target(self, x0: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
        return eps - x0

    def log_scale(self, log_snr: Tensor) -> Tensor:
        return -2 * functional.softplus(log_snr / 2)


def eps_from_x0(x0: Tensor, x_t: Tensor, log_snr: Tensor) -> Tensor:
    """Compute the noise (x_t - alpha x_0) / sigma in x_t, given the image x_0; sigma > 0."""
    alpha, sigma = alpha_sigma(log_snr)
    return scale(1 / sigma, x_t) - scale(alpha / sigma, x0)
