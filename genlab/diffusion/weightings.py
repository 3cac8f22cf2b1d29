"""Weights of the error at each noise level: w in E_t[w ||x0 - x0_hat||^2], t uniform.

Weights are stored as logarithms, since they span 20 decades. To add one, write a subclass here and
a YAML file in `conf/model/weighting/`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from genlab.diffusion.process import Process, posterior_coefficients, step_fraction
from genlab.diffusion.time_samplers import LogitNormalDensity
from genlab.errors import number


class Weighting(ABC):
    """A weight for each time of a process."""

    @abstractmethod
    def log_weight(self, process: Process, t: Tensor) -> Tensor:
        """Compute ln w at times (B,) of the process, float64, for the squared error of x0_hat."""


class Simple(Weighting):
    """The weight w = SNR: a constant weight on the error of eps (Ho et al. 2020, eq. 14)."""

    def log_weight(self, process: Process, t: Tensor) -> Tensor:
        return process.log_snr(t)


class VLB(Weighting):
    """The weight of the variational bound: E_t is then the sum of its terms over t, in nats.

    For a step from t to s it is T/2 (SNR_s - SNR_t), which holds if the reverse variance is the
    posterior variance; in continuous time it is -SNR'(t)/2 (Kingma et al. 2021, VDM). In the step
    to clean data the posterior variance is 0; there it is T / (2 var), where var is the posterior
    variance of the second step, as in the code of Ho et al. (sigma^2 of the first step if T = 1).
    """

    def log_weight(self, process: Process, t: Tensor) -> Tensor:
        log_snr = process.log_snr(t)
        if process.steps is None:
            return log_snr + torch.log(-process.schedule.slope(t) / 2)
        before = process.log_snr(process.previous(t))
        # SNR_s - SNR_t = SNR_s c, which also holds where SNR_t is 0.
        fall = before + torch.log(step_fraction(before, log_snr))
        clipped = -self._log_variance_of_second(process, t)
        return math.log(process.steps / 2) + torch.where(before == torch.inf, clipped, fall)

    @staticmethod
    def _log_variance_of_second(process: Process, t: Tensor) -> Tensor:
        assert process.steps is not None
        first = process.log_snr(t.new_tensor(1 / process.steps))
        if process.steps == 1:
            return functional.logsigmoid(-first)
        second = process.log_snr(t.new_tensor(2 / process.steps))
        return torch.log(posterior_coefficients(first, second)[2])


class MinSNR(Weighting):
    """The weight w = min(SNR, gamma) (Hang et al. 2023)."""

    def __init__(self, gamma: float = 5.0) -> None:
        self.gamma = number("gamma", gamma, above=0)

    def log_weight(self, process: Process, t: Tensor) -> Tensor:
        return process.log_snr(t).clamp(max=math.log(self.gamma))


class TruncatedSNR(Weighting):
    """The weight w = max(SNR, 1) (Salimans & Ho 2022, sec. 4)."""

    def log_weight(self, process: Process, t: Tensor) -> Tensor:
        return process.log_snr(t).clamp(min=0)


class P2(Weighting):
    """The weight w = SNR / (k + SNR)^gamma: smaller at little noise (Choi et al. 2022)."""

    def __init__(self, k: float = 1.0, gamma: float = 1.0) -> None:
        self.k = number("k", k, above=0)
        self.gamma = number("gamma", gamma, at_least=0)

    def log_weight(self, process: Process, t: Tensor) -> Tensor:
        log_snr = process.log_snr(t)
        log_k = torch.full_like(log_snr, math.log(self.k))
        return log_snr - self.gamma * torch.logaddexp(log_snr, log_k)


class SigmoidWeighting(Weighting):
    """The weight of the bound times sigmoid(bias - log_snr).

    Kingma & Gao (2023); Hoogeboom et al. (2024). As for the bound, the expected loss does not
    depend on the curve of the schedule between its ends.

    Args:
        bias: the log-SNR at which the factor is 1/2; a higher value gives fine detail more weight.
    """

    def __init__(self, bias: float = -1.0) -> None:
        self.bias = number("bias", bias)
        self.bound = VLB()

    def log_weight(self, process: Process, t: Tensor) -> Tensor:
        share = functional.logsigmoid(self.bias - process.log_snr(t))
        return self.bound.log_weight(process, t) + share


class FlowMatching(Weighting):
    """The weight w = (1 + alpha / sigma)^2: a constant weight on the error of the velocity.

    With the schedule `RectifiedFlow` it is the loss of flow matching (Lipman et al. 2023, eq. 23).
    """

    def log_weight(self, process: Process, t: Tensor) -> Tensor:
        return 2 * functional.softplus(process.log_snr(t) / 2)


class LogitNormalFlow(FlowMatching):
    """The weight of `FlowMatching` times a logit-normal density of sigma / (alpha + sigma).

    Esser et al. (2024), sec. 3.1, draw their times from this density. `time_sampler=logit_normal`
    draws from it too, with weights that this weighting cancels.

    Args:
        mean, std: of ln(sigma / alpha); std above 0.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self.density = LogitNormalDensity(mean, std)

    def log_weight(self, process: Process, t: Tensor) -> Tensor:
        ratio = -process.log_snr(t) / 2
        return super().log_weight(process, t) + self.density.log_density(ratio)


def mean_loss(weighting: Weighting, process: Process, t: Tensor, squared_error: Tensor) -> Tensor:
    """Compute the loss of each image, (B,), from ||x_0 - x0_hat||^2 at the times of its bound.

    Args:
        t: times (B, N). In discrete time the first is the first step, and the others are spread
            evenly over the later steps; in continuous time they are spread evenly in log-SNR.
        squared_error: (B, N), summed over the dimensions of an image.
    """
    times = t.flatten()
    weight = weighting.log_weight(process, times).exp()
    if process.steps is None:  # the loss is a mean over t
        first, last = process.log_snr(t.new_tensor([0.0, 1.0]))
        weight = weight * (last - first) / process.schedule.slope(times)
    losses = weight.unflatten(0, t.shape) * squared_error
    if process.steps is None:
        return losses.mean(1)
    rest = process.steps - 1
    later = losses[:, 1:].mean(1) if rest else 0
    return (losses[:, 0] + rest * later) / process.steps
