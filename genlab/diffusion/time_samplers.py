"""Which times a training step looks at: u in [0, 1), with the weights that keep it unbiased.

A process turns u into its times. Draws come from torch's default generator, which is at a known
place at each step; what a sampler remembers is in its buffers, so that a checkpoint holds it.
Adding one: a subclass here and a YAML file in `conf/model/time_sampler/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from genlab.checks import number, whole
from genlab.errors import ConfigError, TrainingError
from genlab.seeding import batch_fractions


class TimeSampler(nn.Module, ABC):
    """Draws u such that the mean of weight * f(u) estimates the mean of f over [0, 1]."""

    @abstractmethod
    def sample(self, n: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """u in [0, 1) and the weights, whose mean is 1: both (n,), float64."""

    def update(self, u: Tensor, losses: Tensor) -> None:
        """Learn from the losses (n,) that came of u (n,), without their importance weights."""

    def check(self, images: int) -> None:
        """Refuse a training on this many images, repeats counted, that is too short to be of use.

        Raises:
            ConfigError: naming the numbers and the remedy.
        """


class Uniform(TimeSampler):
    """Independent and uniform."""

    def sample(self, n: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        u = torch.rand(n, dtype=torch.float64, device=device)
        return u, torch.ones_like(u)


class LowDiscrepancy(TimeSampler):
    """One draw, and n equal steps around the circle from it (Kingma et al. 2021, appendix I.1).

    One u lies in each n-th of [0, 1), and each by itself is uniform, so any loss is estimated
    without bias. Neighbours in the batch have neighbouring u: the batch must be in random order.
    """

    def sample(self, n: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        start = torch.rand(1, dtype=torch.float64, device=device)
        u = (start + batch_fractions(n, device)) % 1
        return u, torch.ones_like(u)


class Importance(TimeSampler):
    """More often where losses are large: p ~ sqrt(E[L^2]) (Nichol & Dhariwal 2021, eq. 18).

    The last losses of each of `bins` equal parts of [0, 1) are remembered; until all are there,
    u is uniform.

    Args:
        bins: 1 or more; the paper has one for each of T steps.
        history: how many losses of each are remembered; 1 or more.
        uniform_probability: the share of u that stays uniform, so that no weight is above its
            inverse; in (0, 1].
    """

    losses: Tensor
    seen: Tensor

    def __init__(
        self, bins: int = 100, history: int = 10, uniform_probability: float = 0.001
    ) -> None:
        super().__init__()
        self.bins = whole("model.time_sampler.bins", bins, 1)
        self.history = whole("model.time_sampler.history", history, 1)
        self.uniform_probability = number(
            "model.time_sampler.uniform_probability", uniform_probability, above=0, at_most=1
        )
        self.register_buffer("losses", torch.zeros(bins, history, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(bins, dtype=torch.long))

    @property
    def is_full(self) -> bool:
        """Whether every bin has its history, so that u is no longer uniform."""
        return bool(self.seen.min() >= self.history)

    def check(self, images: int) -> None:
        needed = self.bins * self.history
        if images < needed:
            raise ConfigError(
                f"model.time_sampler: bins={self.bins} with a history={self.history} need at least "
                f"{needed} images, and the training sees {images}; train longer, give fewer, or "
                "use model/time_sampler=low_discrepancy, which needs no history"
            )

    def probabilities(self) -> Tensor:
        """The probability of each bin, (bins,), float64.

        Raises:
            TrainingError: before every bin has its history.
        """
        if not self.is_full:
            short = int((self.seen < self.history).sum())
            raise TrainingError(
                f"model.time_sampler: {short} of bins={self.bins} have not had history="
                f"{self.history} losses yet; train longer, or use "
                "model/time_sampler=low_discrepancy"
            )
        # The least number is added for losses that are all 0.
        size = self.losses.double().square().mean(1).sqrt() + torch.finfo(torch.float64).tiny
        shared = self.uniform_probability / self.bins
        return (1 - self.uniform_probability) * size / size.sum() + shared

    def sample(self, n: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        u = torch.rand(n, dtype=torch.float64, device=device)
        if not self.is_full:
            return u, torch.ones_like(u)
        p = self.probabilities().to(device)
        # On a GPU the order of a sum varies, and with it a resumed run.
        ends = p.cpu().cumsum(0).to(device)
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
        # Of one bin's losses in a batch the last ones stay, so that each has a place of its own.
        kept = rank >= count[bins] - self.history
        place = (self.seen[bins] + rank) % self.history
        self.losses[bins[kept], place[kept]] = losses[kept]
        self.seen += count
