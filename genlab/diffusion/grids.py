"""Step grids: the times, from noise to data, at which a sampler evaluates the network."""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from genlab.diffusion.process import Process
from genlab.diffusion.schedules import NoiseSchedule

Grid = Literal["uniform", "quadratic", "log_snr", "karras", "flow"]

#: Below this log-SNR alpha is under 0.0025, so x0_hat hardly depends on x_t: grids place no steps
#: there, whatever the last log-SNR of the schedule.
PURE_NOISE = -12.0
_RHO = 7.0


class Path(NamedTuple):
    """The path of a sampler: N + 1 times, float64, and the log-SNR at each.

    The network is evaluated at the first N. Sampling ends at clean data, t = 0 with an infinite
    log-SNR, where the last step returns x0_hat; a path may also end at a finite log-SNR.
    """

    times: Tensor
    log_snrs: Tensor

    @property
    def steps(self) -> int:
        """The number of steps, N."""
        return len(self.times) - 1


def path(process: Process, steps: int, grid: Grid) -> Path:
    """Make a path of N times from t = 1 down to the first noise, then clean data.

    `uniform` and `quadratic` (Song et al. 2021, DDIM, app. D.2) are (i/N) and (i/N)^2; `log_snr`
    (Lu et al. 2022) is even in the log-SNR; `karras` is even in (sigma/alpha)^(1/7) (Karras et al.
    2022, eq. 5); `flow` is even in sigma/(alpha + sigma), the time of rectified flow (Liu et al.
    2023). In discrete time these are rounded to the nearest steps, each used at most once.
    """
    if process.steps is None:
        times = _times(process, steps, grid)
    elif grid in ("uniform", "quadratic"):
        times = _distinct(_times(process, steps, grid) * process.steps, process.steps)
    else:
        times = _distinct(_nearest(process, _log_snrs(process, steps, grid)), process.steps)
    clean = torch.tensor([math.inf], dtype=torch.float64)
    return Path(
        torch.cat([times, torch.zeros_like(clean)]), torch.cat([_log_snr(process, times), clean])
    )


def log_snr_path(schedule: NoiseSchedule, log_snrs: Tensor) -> Path:
    """Make the path through these log-SNRs (N + 1,), from noise to data, in continuous time."""
    times = schedule.time_at(log_snrs)
    with torch.no_grad():
        return Path(times, schedule.log_snr(times))


def _times(process: Process, steps: int, grid: Grid) -> Tensor:
    """Compute N decreasing times in [0, 1] from t = 1 on, not rounded to steps."""
    even = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
    if grid == "uniform":
        return even
    if grid == "quadratic":
        return even.square()
    times = process.schedule.time_at(_on_device_of(process, _log_snrs(process, steps, grid)))
    times[0] = 1.0
    return times.cpu()


def _log_snrs(process: Process, steps: int, grid: Grid) -> Tensor:
    """Compute N increasing log-SNRs from the noise end to the data end, both included."""
    ends = torch.tensor([1.0, process.first], dtype=torch.float64)
    last, first = _log_snr(process, ends).clamp(min=PURE_NOISE).tolist()
    if grid == "log_snr":
        return torch.linspace(last, first, steps, dtype=torch.float64)
    if grid == "flow":
        begin, end = (1 / (1 + math.exp(log_snr / 2)) for log_snr in (last, first))
        return -2 * torch.logit(torch.linspace(begin, end, steps, dtype=torch.float64))
    begin, end = (math.exp(-log_snr / 2 / _RHO) for log_snr in (last, first))
    return -2 * _RHO * torch.linspace(begin, end, steps, dtype=torch.float64).log()


def _nearest(process: Process, log_snrs: Tensor) -> Tensor:
    """Return the number of the step whose log-SNR is nearest to each of `log_snrs`."""
    assert process.steps is not None
    table = _log_snr(process, torch.arange(process.steps, 0, -1).double() / process.steps)
    above = torch.searchsorted(table, log_snrs).clamp(1, max(1, len(table) - 1))
    if len(table) == 1:
        return torch.ones_like(log_snrs)
    is_below = log_snrs - table[above - 1] < table[above] - log_snrs
    return process.steps - torch.where(is_below, above - 1, above).double()


def _distinct(numbers: Tensor, steps: int) -> Tensor:
    """Round decreasing step numbers to distinct ones in 1 ... T, the first is T; return times."""
    whole = numbers.round().long()
    rank = torch.arange(len(whole))
    whole = torch.maximum(torch.minimum(whole, steps - rank), len(whole) - rank)
    whole[0] = steps
    return (torch.cummin(whole + rank, 0).values - rank).double() / steps


def _log_snr(process: Process, times: Tensor) -> Tensor:
    with torch.no_grad():
        return process.log_snr(_on_device_of(process, times)).cpu()


def _on_device_of(process: Process, values: Tensor) -> Tensor:
    """Move values to the device of the schedule's tensors, if it has any."""
    own = itertools.chain(process.schedule.parameters(), process.schedule.buffers())
    return next((values.to(tensor.device) for tensor in own), values)
