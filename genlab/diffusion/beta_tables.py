"""The tables of T betas of the papers, as noise schedules: exact at t = i/T, i = 1 ... T.

alpha^2 at i/T is the product of 1 - beta up to i. Products are float64 sums of log1p(-beta): in
float32 the cosine table with T = 4000 has its first 1 - alpha^2 wrong by 0.3 %.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.checks import number, whole
from genlab.diffusion.schedules import NoiseSchedule
from genlab.errors import ConfigError

#: The T for which Ho et al. (2020) gave their betas.
_STEPS = 1000


class BetaTable(NoiseSchedule):
    """The schedule of betas (T,), float64, each above 0 and below 1.

    Between the times of the table the log-SNR is linear in t; before t = 1/T the variance of the
    noise grows from 0 in proportion to t.
    """

    def __init__(
        self, betas: Tensor, log_snr_max: float | None = None, log_snr_min: float | None = None
    ) -> None:
        super().__init__(log_snr_max, log_snr_min)
        self.betas = betas
        log_alpha_bar = torch.log1p(-betas).cumsum(0)
        # No buffer: those would follow the module to bfloat16.
        self.table = log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))

    @property
    def first(self) -> float:
        begin, end = self._ends
        return max(0.0, (1 / len(self.table) - begin) / (end - begin))

    def curve(self, u: Tensor) -> Tensor:
        table = self.table.to(u.device)
        steps = len(table)
        place = u * steps
        below = torch.floor(place.detach()).clamp(1, max(1, steps - 1)).long()
        share = place - below
        between = table[below - 1] * (1 - share) + table[below.clamp(max=steps - 1)] * share
        return torch.where(place < 1, table[0] - torch.log(place.clamp(max=1)), between)


class LinearBetas(BetaTable):
    """beta from beta_start to beta_end in T equal steps (Ho et al. 2020, sec. 4).

    Args:
        steps: T.
        beta_start, beta_end: the first and the last of 1000.
        rescale: times 1000/T, so that any T ends where 1000 steps do. Without it alpha^2 is still
            0.364 after T = 100.
    """

    def __init__(
        self,
        steps: int = _STEPS,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        rescale: bool = True,
        log_snr_max: float | None = None,
        log_snr_min: float | None = None,
    ) -> None:
        whole("model.noise_schedule.steps", steps, 1)
        factor = _STEPS / steps if rescale else 1.0
        first = _beta("beta_start", beta_start, factor)
        last = _beta("beta_end", beta_end, factor)
        super().__init__(self._between(first, last, steps), log_snr_max, log_snr_min)

    def _between(self, first: float, last: float, steps: int) -> Tensor:
        return torch.linspace(first, last, steps, dtype=torch.float64)


def _beta(key: str, value: float, factor: float = 1.0) -> float:
    """The value times the factor; ConfigError unless that is above 0 and below 1."""
    beta = factor * number(f"model.noise_schedule.{key}", value)
    if 0 < beta < 1:
        return beta
    becomes, remedy = "", "give such a value"
    if factor != 1:
        becomes = f"rescaled by {_STEPS}/steps={factor:g} it is {beta:g}, and "
        remedy += " or more steps, or use a schedule without a table, such as linear"
    raise ConfigError(
        f"model.noise_schedule.{key}={value:g}: {becomes}a beta is above 0 and below 1; {remedy}"
    )


class ScaledLinearBetas(LinearBetas):
    """sqrt(beta) in T equal steps, as latent diffusion has it (Rombach et al. 2022).

    The defaults are Stable Diffusion's, which end at an SNR of 0.0047: too early for a bound.
    """

    def __init__(
        self,
        steps: int = _STEPS,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        rescale: bool = True,
        log_snr_max: float | None = None,
        log_snr_min: float | None = None,
    ) -> None:
        super().__init__(steps, beta_start, beta_end, rescale, log_snr_max, log_snr_min)

    def _between(self, first: float, last: float, steps: int) -> Tensor:
        roots = torch.linspace(math.sqrt(first), math.sqrt(last), steps, dtype=torch.float64)
        return roots.square()


class CosineBetas(BetaTable):
    """beta = 1 - f(t) / f(t - 1/T), f as in `Cosine`, at most max_beta (Nichol & Dhariwal 2021).

    Args:
        steps: T.
        s: the offset; 0 or more.
        max_beta: in (0, 1).
    """

    def __init__(
        self,
        steps: int = _STEPS,
        s: float = 0.008,
        max_beta: float = 0.999,
        log_snr_max: float | None = None,
        log_snr_min: float | None = None,
    ) -> None:
        whole("model.noise_schedule.steps", steps, 1)
        number("model.noise_schedule.s", s, at_least=0)
        _beta("max_beta", max_beta)
        # f before - f is a product of two sines: no difference of near numbers.
        angle = math.pi / 2 / (1 + s)
        t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        before = t - 1 / steps
        fall = math.sin(angle / steps) * torch.sin(angle * (t + before + 2 * s))
        betas = (fall / torch.cos(angle * (before + s)).square()).clamp(max=max_beta)
        super().__init__(betas, log_snr_max, log_snr_min)
