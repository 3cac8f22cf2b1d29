"""Samplers of the times of a training step: u in [0, 1), with weights that keep it unbiased.

A process maps u to its times. The state of a sampler is in its buffers, so checkpoints include it.
To add one, write a subclass here and a YAML file in `conf/model/time_sampler/`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from genlab.errors import TrainingError, number, whole
from genlab.seeding import Noise


class TimeSampler(nn.Module, ABC):
    """A distribution of u for which the mean of weight * f(u) is the mean of f over [0, 1]."""

    @abstractmethod
    def sample(self, noise: Noise) -> tuple[Tensor, Tensor]:
        """Draw u in [0, 1) and the weights, whose mean is 1: both (B,), float64."""

    def update(self, u: Tensor, losses: Tensor) -> None:
        """Update the state from the losses (n,) at u (n,), without their importance weights."""

    def check(self, images: int) -> None:
        """Refuse a training that is too short for this sampler.

        Args:
            images: the number of training images, counting repeats.

        Raises:
            ValueError: with a message that names the numbers and the remedy.
        """


class Uniform(TimeSampler):
    """Independent, uniform u."""

    def sample(self, noise: Noise) -> tuple[Tensor, Tensor]:
        u = noise.uniform()
        return u, torch.ones_like(u)


class LowDiscrepancy(TimeSampler):
    """One uniform draw plus n equal steps, modulo 1 (Kingma et al. 2021, appendix I.1).

    Each n-th part of [0, 1) contains one u, and each u alone is uniform, so the estimate of any
    loss is unbiased. Neighbours in the batch have similar u: the batch must be in random order.
    """

    def sample(self, noise: Noise) -> tuple[Tensor, Tensor]:
        u = noise.spread()
        return u, torch.ones_like(u)


class LogitNormalDensity:
    """The density of u whose logit is normal, in terms of the logit.

    Args:
        mean, std: of ln(u / (1 - u)); std above 0.
    """

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = number("mean", mean), number("std", std, above=0)

    def log_density(self, logit: Tensor) -> Tensor:
        """Compute the logarithm of the density of u = sigmoid(logit), float64."""
        logit = logit.clamp(-1e9, 1e9)  # at infinity the density is 0
        z = (logit - self.mean) / self.std
        slope = functional.softplus(logit) + functional.softplus(-logit)
        return slope - z.square() / 2 - math.log(self.std * math.sqrt(2 * math.pi))


class LogitNormal(TimeSampler):
    """Times whose logit is normal, most of them in the middle (Esser et al. 2024, eq. 19).

    The loss stays that of the weighting, since each time has the weight 1 / density. Those of the
    paper have none: `model/weighting=logit_normal` has the density as its weight. A share of the
    times is uniform, so that no weight exceeds the inverse of that share.

    Args:
        mean, std: of ln(u / (1 - u)); std above 0. A mean above 0 draws more noise.
        uniform_probability: the share of u that stays uniform, in (0, 1].
    """

    def __init__(
        self, mean: float = 0.0, std: float = 1.0, uniform_probability: float = 0.1
    ) -> None:
        super().__init__()
        self.density = LogitNormalDensity(mean, std)
        self.uniform_probability = number(
            "uniform_probability", uniform_probability, above=0, at_most=1
        )

    def sample(self, noise: Noise) -> tuple[Tensor, Tensor]:
        even, share = noise.spread(), self.uniform_probability
        is_uniform = even < share
        rest = ((even - share) / (1 - share)) if share < 1 else even
        logit = self.density.mean + self.density.std * torch.special.ndtri(
            torch.where(is_uniform, 0.5, rest)
        )
        u = torch.where(is_uniform, even / share, torch.sigmoid(logit)).clamp(0, 1 - 2**-53)
        density = self.density.log_density(torch.logit(u)).exp()
        return u, 1 / (share + (1 - share) * density)


class Importance(TimeSampler):
    """Importance sampling: p ~ sqrt(E[L^2]) (Nichol & Dhariwal 2021, eq. 18).

    The last losses in each of `bins` equal parts of [0, 1) are stored. Until each bin has its
    history, u is uniform.

    Args:
        bins: number of bins, 1 or more; the paper has one for each of T steps.
        history: number of losses stored per bin; 1 or more.
        uniform_probability: the share of u that stays uniform, in (0, 1]; no weight exceeds its
            inverse.
    """

    losses: Tensor
    seen: Tensor

    def __init__(
        self, bins: int = 100, history: int = 10, uniform_probability: float = 0.001
    ) -> None:
        super().__init__()
        self.bins = whole("bins", bins, 1)
        self.history = whole("history", history, 1)
        self.uniform_probability = number(
            "uniform_probability", uniform_probability, above=0, at_most=1
        )
        self.register_buffer("losses", torch.zeros(bins, history, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(bins, dtype=torch.long))

    @property
    def is_full(self) -> bool:
        """True if every bin has its history, so that u is no longer uniform."""
        return bool(self.seen.min() >= self.history)

    def check(self, images: int) -> None:
        needed = self.bins * self.history
        if images < needed:
            raise ValueError(
                f"bins={self.bins} with a history={self.history} need at least "
                f"{needed} images, and the training sees {images}; train longer, give fewer, or "
                "use model/time_sampler=low_discrepancy, which needs no history"
            )

    def probabilities(self) -> Tensor:
        """Compute the probability of each bin, (bins,), float64.

        Raises:
            TrainingError: if a bin does not have its history yet.
        """
        if not self.is_full:
            short = int((self.seen < self.history).sum())
            raise TrainingError(
                f"time_sampler: {short} of bins={self.bins} have not had history="
                f"{self.history} losses yet; train longer, or use "
                "model/time_sampler=low_discrepancy"
            )
        # The smallest positive number is added in case all losses are 0.
        size = self.losses.double().square().mean(1).sqrt() + torch.finfo(torch.float64).tiny
        shared = self.uniform_probability / self.bins
        return (1 - self.uniform_probability) * size / size.sum() + shared

    def sample(self, noise: Noise) -> tuple[Tensor, Tensor]:
        u = noise.uniform()
        if not self.is_full:
            return u, torch.ones_like(u)
        p = self.probabilities().to(u.device)
        # On the CPU: on a GPU the order of a sum varies, so a resumed run could differ.
        ends = p.cpu().cumsum(0).to(u.device)
        chosen = torch.searchsorted(ends, u, right=True).clamp(max=self.bins - 1)
        within = ((u - ends[chosen]) / p[chosen] + 1).clamp(0, 1 - 2**-53)
        return (chosen + within) / self.bins, 1 / (self.bins * p[chosen])

    @torch.no_grad()
    def update(self, u: Tensor, losses: Tensor) -> None:
        bins = (u * self.bins).long().clamp(max=self.bins - 1)
        order = bins.argsort(stable=True)
        bins, losses = bins[order], losses.detach()[order].to(self.losses.dtype)
        count = torch.bincount(bins, minlength=self.bins)
        rank = torch.arange(len(bins), device=bins.device) - (count.cumsum(0) - count)[bins]
        # If a bin has more losses in the batch than places, only the last ones are stored.
        kept = rank >= count[bins] - self.history
        place = (self.seen[bins] + rank) % self.history
        self.losses[bins[kept], place[kept]] = losses[kept]
        self.seen += count
