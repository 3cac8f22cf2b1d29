"""Noise schedules with other ends than their own: a part of a schedule, or a last SNR of 0."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from genlab.diffusion.schedules import NoiseSchedule, check_order
from genlab.errors import number


def between(
    schedule: NoiseSchedule, log_snr_max: float | None, log_snr_min: float | None
) -> NoiseSchedule:
    """Return the schedule itself if no end is given, else its part `Between` these ends."""
    if log_snr_max is None and log_snr_min is None:
        return schedule
    return Between(schedule, log_snr_max, log_snr_min)


class Between(NoiseSchedule):
    """The part of a schedule between two log-SNRs, rescaled to t in [0, 1].

    Schedules with the same ends differ only in the curve between them.

    Args:
        schedule: any other schedule.
        log_snr_max: the log-SNR at t = 0; None for that of the schedule, which may be infinite.
        log_snr_min: the log-SNR at t = 1; None for that of the schedule.

    Raises:
        ValueError: if an end is outside the range of the schedule, or the ends are in the wrong
            order.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        log_snr_max: float | None = None,
        log_snr_min: float | None = None,
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.log_snr_max, self.log_snr_min = log_snr_max, log_snr_min
        given = {"log_snr_max": log_snr_max, "log_snr_min": log_snr_min}
        for name, value in given.items():
            if value is not None:
                number(name, value)
        if log_snr_max is not None and log_snr_min is not None:
            check_order(log_snr_max, log_snr_min)
        with torch.no_grad():
            high, low = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        for name, value in given.items():
            if value is not None and not low <= value <= high:
                raise ValueError(
                    f"{name}={value:g}: {schedule.name} runs from {high:.4g} to {low:.4g}; give a "
                    "value between, or null"
                )
        self._starts = log_snr_max is None or log_snr_max == high
        self._stops = log_snr_min is None or log_snr_min == low

    @property
    def name(self) -> str:
        return self.schedule.name

    @property
    def first(self) -> float:
        begin, end = self._fixed_ends
        return max(0.0, float((self.schedule.first - begin) / (end - begin)))

    def curve(self, u: Tensor) -> Tensor:
        begin, end = self._ends(u.device) if self.is_learned else self._fixed_ends
        return self.schedule.log_snr(begin + (end - begin) * u)

    @cached_property
    def _fixed_ends(self) -> tuple[float | Tensor, float | Tensor]:
        return self._ends(torch.device("cpu"))

    def _ends(self, device: torch.device) -> tuple[float | Tensor, float | Tensor]:
        """Compute the two times of the ends, differentiable if the schedule is learned."""
        begin = 0.0 if self._starts else self._place(self.log_snr_max, device)
        return begin, 1.0 if self._stops else self._place(self.log_snr_min, device)

    def _place(self, log_snr: float | None, device: torch.device) -> float | Tensor:
        """Compute the time at which the wrapped schedule has this log-SNR."""
        value = torch.full((), log_snr, dtype=torch.float64, device=device)  # type: ignore[arg-type]
        t = self.schedule.time_at(value)
        if self.is_learned:
            # One Newton step from the solution, so that autograd gives the gradient of the inverse.
            return t - (self.schedule.log_snr(t) - value) / self.schedule.slope(t).detach()
        return float(t)


class ZeroTerminalSNR(NoiseSchedule):
    """A schedule changed so that its last SNR is 0 (Lin et al. 2023, alg. 1).

    alpha is shifted and scaled to be 0 at t = 1 and unchanged at the first time.

    Args:
        schedule: any other schedule.
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule = schedule

    @property
    def first(self) -> float:
        return self.schedule.first

    def curve(self, u: Tensor) -> Tensor:
        first = self.schedule.first
        ends = self.schedule.log_snr(u.new_tensor([first, 1.0]))
        unchanged = u <= first
        log_snr = self.schedule.log_snr(torch.where(unchanged, (1 + first) / 2, u))
        alpha, alpha_first, alpha_last = (
            torch.sigmoid(x).sqrt() for x in (log_snr, ends[0], ends[1])
        )
        # 1 - alpha = sigma^2 / (1 + alpha), without cancellation.
        short, short_first = (
            torch.sigmoid(-x) / (1 + a) for x, a in ((log_snr, alpha), (ends[0], alpha_first))
        )
        # exactly 0 at t = 1, where rounding could leave a difference of one ulp
        above = torch.where(u < 1, (alpha - alpha_last).clamp(min=0), 0)
        bent = above * alpha_first / (alpha_first - alpha_last)
        short_bent = (alpha_first * short - alpha_last * short_first) / (alpha_first - alpha_last)
        value = 2 * torch.log(bent) - torch.log(short_bent) - torch.log1p(bent)
        return torch.where(unchanged, self.schedule.log_snr(u), value)
