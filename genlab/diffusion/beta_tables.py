"""Noise schedules from the tables of T betas of the papers; exact at t = i/T, i = 1 ... T.

alpha^2 at i/T is the product of 1 - beta up to i, computed as a float64 sum of log1p(-beta): in
float32 the first 1 - alpha^2 of the cosine table with T = 4000 has an error of 0.3 %.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.diffusion.schedules import NoiseSchedule
from genlab.errors import number, whole

#: The T for which Ho et al. (2020) gave their betas.
_STEPS = 1000


class BetaTable(NoiseSchedule):
    """The schedule of given betas (T,), float64, each above 0 and below 1.

    Between the times of the table the log-SNR is linear in t; before t = 1/T the variance of the
    noise grows from 0 in proportion to t.
    """

    def __init__(self, betas: Tensor) -> None:
        super().__init__()
        self.betas = betas
        log_alpha_bar = torch.log1p(-betas).cumsum(0)
        # Not a buffer: module.to(bfloat16) would convert a buffer.
        self.table = log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))

    @property
    def first(self) -> float:
        return 1 / len(self.table)

    def curve(self, u: Tensor) -> Tensor:
        # kept there, since a GPU would wait for a copy at every step
        table = self.table = self.table.to(u.device)
        steps = len(table)
        place = u * steps
        below = torch.floor(place.detach()).clamp(1, max(1, steps - 1)).long()
        share = place - below
        between = table[below - 1] * (1 - share) + table[below.clamp(max=steps - 1)] * share
        return torch.where(place < 1, table[0] - torch.log(place.clamp(max=1)), between)


class LinearBetas(BetaTable):
    """Betas from beta_start to beta_end in T equal steps (Ho et al. 2020, sec. 4).

    Args:
        steps: T.
        beta_start, beta_end: the first and the last beta for T = 1000.
        rescale: multiply the betas by 1000/T, so that the end of the schedule hardly depends on
            T. Without it, alpha^2 at the end is 0.364 for T = 100.
    """

    def __init__(
        self,
        steps: int = _STEPS,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        rescale: bool = True,
    ) -> None:
        whole("steps", steps, 1)
        factor = _STEPS / steps if rescale else 1.0
        first = _beta("beta_start", beta_start, factor)
        last = _beta("beta_end", beta_end, factor)
        super().__init__(self._between(first, last, steps))

    def _between(self, first: float, last: float, steps: int) -> Tensor:
        return torch.linspace(first, last, steps, dtype=torch.float64)


def _beta(key: str, value: float, factor: float = 1.0) -> float:
    """Return the value times the factor; raise ValueError unless it is in (0, 1)."""
    beta = factor * number(key, value)
    if 0 < beta < 1:
        return beta
    becomes, remedy = "", "give such a value"
    if factor != 1:
        becomes = f"rescaled by {_STEPS}/steps={factor:g} it is {beta:g}, and "
        remedy += " or more steps, or use a schedule without a table, such as linear"
    raise ValueError(f"{key}={value:g}: {becomes}a beta is above 0 and below 1; {remedy}")


class ScaledLinearBetas(LinearBetas):
    """Betas whose square roots have T equal steps (latent diffusion, Rombach et al. 2022).

    The defaults are those of Stable Diffusion, whose last SNR of 0.0047 is too high for a bound.
    """

    def __init__(
        self,
        steps: int = _STEPS,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        rescale: bool = True,
    ) -> None:
        super().__init__(steps, beta_start, beta_end, rescale)

    def _between(self, first: float, last: float, steps: int) -> Tensor:
        roots = torch.linspace(math.sqrt(first), math.sqrt(last), steps, dtype=torch.float64)
        return roots.square()


class CosineBetas(BetaTable):
    """Betas 1 - f(t) / f(t - 1/T), f as in `Cosine`, at most max_beta (Nichol & Dhariwal 2021).

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
    ) -> None:
        whole("steps", steps, 1)
        number("s", s, at_least=0)
        _beta("max_beta", max_beta)
        # f(t - 1/T) - f(t) as a product of two sines, which avoids cancellation.
        angle = math.pi / 2 / (1 + s)
        t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        before = t - 1 / steps
        fall = math.sin(angle / steps) * torch.sin(angle * (t + before + 2 * s))
        betas = (fall / torch.cos(angle * (before + s)).square()).clamp(max=max_beta)
        super().__init__(betas)
