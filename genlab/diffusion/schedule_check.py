"""Summary of a noise schedule: its log-SNRs, its alpha-bar, and a warning if it ends too early."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genlab.diffusion.bound import prior_kl
from genlab.diffusion.process import Process
from genlab.tensors import nats_to_bits_per_dim

#: Largest L_T, in bits/dim, of a schedule that ends late enough.
MAX_PRIOR_BITS = 1e-3
#: The log-SNR at which L_T equals `MAX_PRIOR_BITS`.
LATEST_LOG_SNR = math.log(math.expm1(2 * math.log(2) * MAX_PRIOR_BITS))
_POINTS = 257


@dataclass(frozen=True)
class ScheduleSummary:
    """The log-SNRs of a schedule at its times.

    Attributes:
        name: the name of the schedule, for messages.
        steps: T; None in continuous time.
        times: (N,), increasing to 1, float64: all steps, or a fine grid.
        log_snr: (N,), decreasing.
    """

    name: str
    steps: int | None
    times: Tensor
    log_snr: Tensor

    @classmethod
    def of(cls, name: str, process: Process) -> ScheduleSummary:
        """Make the summary of a process."""
        count = _POINTS if process.steps is None else process.steps
        times = torch.linspace(process.first, 1, count, dtype=torch.float64)
        with torch.no_grad():
            return cls(name, process.steps, times, process.log_snr(times))

    @property
    def alpha_bar(self) -> Tensor:
        """alpha^2, (N,), called alpha-bar in the papers on discrete time."""
        return torch.sigmoid(self.log_snr)

    def alpha_bar_at(self, t: float) -> float:
        """Return alpha^2 at the known time that is nearest to t."""
        return float(self.alpha_bar[(self.times - t).abs().argmin()])

    @property
    def prior_bits(self) -> float:
        """L_T in bits/dim for pixels with mean square 1, the maximum in [-1, 1]."""
        nats = prior_kl(torch.ones(1, 1, 1, 1), self.log_snr[-1:])
        return nats_to_bits_per_dim(float(nats), 1)

    @property
    def warning(self) -> str | None:
        """A warning in one sentence if the last log-SNR is too high, else None."""
        bits = self.prior_bits
        if bits <= MAX_PRIOR_BITS:
            return None
        of = "in continuous time" if self.steps is None else f"with {self.steps} steps"
        return (
            f"{self.name} {of} ends too early: alpha-bar is {self.alpha_bar_at(1):.3g} at t=1, so "
            f"L_T is up to {bits:.3g} bits/dim, {bits / MAX_PRIOR_BITS:,.0f} times the "
            f"{MAX_PRIOR_BITS:g} that it should be at most, and samples start from noise that the "
            f"network has not seen; let it end at a log-SNR below {LATEST_LOG_SNR:.1f} (betas of T "
            "steps belong rescaled by 1000/T) or at zero terminal SNR"
        )
