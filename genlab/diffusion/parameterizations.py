"""What the network's output means: the noise, the image, or v. Each is turned into x0_hat.

A parameterization changes what the network gives and nothing else: a weight on the error of x0_hat
becomes a weight on the error of the output, so that the loss is the same number. Adding one: a
subclass here and a YAML file in `conf/model/parameterization/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from genlab.diffusion.process import Process, alpha_sigma, scale
from genlab.errors import ConfigError


class Parameterization(ABC):
    """The network's output as a prediction; images (B, C, H, W), log-SNRs (B,) float64."""

    def check(self, process: Process) -> None:
        """Refuse a process under which the output at t = 1 does not give x_0.

        Raises:
            ConfigError: naming the parameterization and the remedy.
        """
        end = process.log_snr(torch.ones(1, dtype=torch.float64))
        if self.log_scale(end).isposinf():
            name, schedule = type(self).__name__, type(process.schedule).__name__
            raise ConfigError(
                f"model.parameterization={name}: {schedule} ends at an SNR of 0, where the noise "
                "is all of x_t and says nothing of x_0; use model/parameterization=v or x0, or a "
                "noise_schedule with a finite log_snr_min, for instance -20"
            )

    @abstractmethod
    def x0_hat(self, output: Tensor, x_t: Tensor, log_snr: Tensor) -> Tensor:
        """The clean image that the output stands for."""

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
        """The output that would be right."""

    @abstractmethod
    def log_scale(self, log_snr: Tensor) -> Tensor:
        """ln of ||x0 - x0_hat||^2 / ||target - output||^2, (B,): what turns weights of one error
        into weights of the other."""


class Epsilon(Parameterization):
    """The noise: x0_hat = (x_t - sigma eps_hat) / alpha (Ho et al. 2020, eq. 15)."""

    def x0_hat(self, output: Tensor, x_t: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(log_snr)
        return scale(1 / alpha, x_t) - scale(sigma / alpha, output)

    def target(self, x0: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
        return eps

    def log_scale(self, log_snr: Tensor) -> Tensor:
        return -log_snr


class X0(Parameterization):
    """The image itself."""

    def x0_hat(self, output: Tensor, x_t: Tensor, log_snr: Tensor) -> Tensor:
        return output

    def target(self, x0: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
        return x0

    def log_scale(self, log_snr: Tensor) -> Tensor:
        return torch.zeros_like(log_snr)


class V(Parameterization):
    """v = alpha eps - sigma x_0: x0_hat = alpha x_t - sigma v_hat (Salimans & Ho 2022, sec. 4)."""

    def x0_hat(self, output: Tensor, x_t: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(log_snr)
        return scale(alpha, x_t) - scale(sigma, output)

    def target(self, x0: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(log_snr)
        return scale(alpha, eps) - scale(sigma, x0)

    def log_scale(self, log_snr: Tensor) -> Tensor:
        return functional.logsigmoid(-log_snr)


def eps_from_x0(x0: Tensor, x_t: Tensor, log_snr: Tensor) -> Tensor:
    """The noise (x_t - alpha x_0) / sigma that x_t holds if x_0 is the image; sigma is above 0."""
    alpha, sigma = alpha_sigma(log_snr)
    return scale(1 / sigma, x_t) - scale(alpha / sigma, x0)
