"""How much the error at each noise level counts: w in E_t[w ||x0 - x0_hat||^2] under uniform t.

Weights are kept as logarithms, since they span 20 decades. Adding one: a subclass here and a YAML
file in `conf/model/weighting/`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from genlab.checks import number
from genlab.diffusion.process import Process, posterior_coefficients, step_fraction


class Weighting(ABC):
    """A weight for each time of a process."""

    @abstractmethod
    def log_weight(self, process: Process, t: Tensor) -> Tensor:
        """ln w at times (B,) of the process, float64, for the squared error of x0_hat."""


class Simple(Weighting):
    """w = SNR, an equal weight for the error of eps (Ho et al. 2020, eq. 14)."""

    def log_weight(self, process: Process, t: Tensor) -> Tensor:
        return process.log_snr(t)


class VLB(Weighting):
    """The weight in the variational bound, so that E_t is its sum over t, in nats.

    T/2 (SNR_s - SNR_t) of steps from t to s, which is that of the posterior's variance; in
    continuous time -SNR'(t)/2 (Kingma et al. 2021, VDM). From the first step, where the
    posterior has no variance, it is T / (2 var) with the variance of the second, at which Ho et
    al.'s code clips it (of the first's noise if T = 1).
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
    """w = min(SNR, gamma) (Hang et al. 2023)."""

    def __init__(self, gamma: float = 5.0) -> None:
        self.gamma = number("model.weighting.gamma", gamma, above=0)

    def log_weight(self, process: Process, t: Tensor) -> Tensor:
        return process.log_snr(t).clamp(max=math.log(self.gamma))


class TruncatedSNR(Weighting):
    """w = max(SNR, 1) (Salimans & Ho 2022, sec. 4)."""

    def log_weight(self, process: Process, t: Tensor) -> Tensor:
        return process.log_snr(t).clamp(min=0)


class P2(Weighting):
    """w = SNR / (k + SNR)^gamma: less where there is little noise (Choi et al. 2022)."""

    def __init__(self, k: float = 1.0, gamma: float = 1.0) -> None:
        self.k = number("model.weighting.k", k, above=0)
        self.gamma = number("model.weighting.gamma", gamma, at_least=0)

    def log_weight(self, process: Process, t: Tensor) -> Tensor:
        log_snr = process.log_snr(t)
        log_k = torch.full_like(log_snr, math.log(self.k))
        return log_snr - self.gamma * torch.logaddexp(log_snr, log_k)


class SigmoidWeighting(Weighting):
    """The bound's weight times sigmoid(bias - log_snr) (Kingma & Gao 2023; Hoogeboom et al. 2024).

    As a part of the bound it does not depend on how the schedule gets from end to end.

    Args:
        bias: the log-SNR at which the bound counts half; higher for more of the fine detail.
    """

    def __init__(self, bias: float = -1.0) -> None:
        self.bias = number("model.weighting.bias", bias)
        self.bound = VLB()

    def log_weight(self, process: Process, t: Tensor) -> Tensor:
        share = functional.logsigmoid(self.bias - process.log_snr(t))
        return self.bound.log_weight(process, t) + share
