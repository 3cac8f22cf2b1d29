"""The exact error of a sampler: its output on a known distribution with a perfect network.

For Gaussian data every sampler is affine in x_T and in the noises that it adds. So one probe of
each gives the exact distribution of its output, without random numbers.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor

from genlab.diffusion.gaussian import GaussianData
from genlab.diffusion.grids import Path, log_snr_path
from genlab.diffusion.process import Process
from genlab.diffusion.samplers import Sampler
from genlab.diffusion.schedules import LinearLogSNR
from genlab.diffusion.variances import Optimal, ReverseVariance

_ORDER_STEPS = (160, 320)
_ROUNDING = 1e-10
_ORDER_ENDS = (10.0, -10.0)


class Response(NamedTuple):
    """The output slope * x_T + offset + noise, and the number of network evaluations."""

    slope: float
    offset: float
    noise_variance: float
    evaluations: int

    def std(self, of_x_T: float = 1.0) -> float:
        """Compute the standard deviation of the samples."""
        return math.hypot(self.slope * of_x_T, math.sqrt(self.noise_variance))


def response(
    sampler: Sampler,
    process: Process,
    data: GaussianData,
    variance: ReverseVariance | None = None,
    along: Path | None = None,
) -> Response:
    """Compute the sampler's exact response for one-dimensional Gaussian data, without clipping.

    Args:
        variance: variance of the reverse steps; an `Optimal` one is measured on these data first.
        along: the path to use instead of that of the sampler's grid.
    """
    way = sampler.path(process) if along is None else along
    perfect, evaluations, draws = data.denoiser(process), 0, 0
    probes = torch.zeros(2 + way.steps, 1, 1, 1, dtype=torch.float64)
    probes[1] = 1.0

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return perfect(x_t, t)

    def next_noise() -> Tensor:
        nonlocal draws
        draws += 1
        noise = torch.zeros_like(probes)
        noise[1 + draws] = 1.0
        return noise

    if isinstance(variance, Optimal):
        variance = copy.deepcopy(variance)
        known = way.log_snrs[:-1]
        variance.measure(known, data.posterior_variance(known).flatten())
    unclipped = dataclasses.replace(sampler, clip=False)
    x = unclipped(denoise, probes, process, next_noise, variance=variance, along=way).flatten()
    changes = x[1:] - x[0]
    noise_variance = float(changes[1:].square().sum())
    return Response(float(changes[0]), float(x[0]), noise_variance, evaluations)


def order(
    sampler: Sampler, data: GaussianData, variance: ReverseVariance | None = None
) -> float | None:
    """Measure the order of a sampler: the error of the standard deviation is ~ steps^-order.

    It is measured from two numbers of steps, uniform in the log-SNR between two finite ends, where
    the exact answer is the marginal of the process. Returns None if there is only rounding error.
    """
    high, low = _ORDER_ENDS
    process = Process(LinearLogSNR(high, low), None)
    errors = []
    for steps in _ORDER_STEPS:
        way = log_snr_path(
            process.schedule, torch.linspace(low, high, steps + 1, dtype=torch.float64)
        )
        _, std = data.marginal(way.log_snrs[[0, -1]])
        begin, end = std.flatten().tolist()
        errors.append(abs(response(sampler, process, data, variance, way).std(begin) / end - 1))
    if min(errors) < _ROUNDING:
        return None
    fewer, more = _ORDER_STEPS
    return math.log(errors[0] / errors[1]) / math.log(more / fewer)
