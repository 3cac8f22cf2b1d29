"""The terms of the variational bound of a diffusion model, in nats per image.

In T steps (Ho et al. 2020, eq. 5) the bound is the sum of the prior term L_T, the T - 1 KLs between
Gaussians L_(t-1), and the decoder term L_0; in continuous time (Kingma et al. 2021, VDM, eq. 11) an
integral replaces the KLs. Images are on the grid of 256 levels in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from genlab.diffusion.process import Process, alpha_sigma, diffuse, posterior_coefficients
from genlab.diffusion.variances import Prediction, ReverseVariance, log_posterior_variance
from genlab.distributions import DiscretizedGaussian
from genlab.errors import whole
from genlab.protocols import ImageSpec
from genlab.seeding import Noise
from genlab.tensors import like_images, sum_except_batch

LEVELS = 256

#: Edges of the bins of log-SNR in which schedules are compared; the outermost bins are open.
LOG_SNR_EDGES = tuple(range(-20, 21, 2))

#: Rounding error of a log-SNR that lies on an edge.
_ROUNDING = 1e-9

Predict = Callable[[Tensor, Tensor], Prediction]
"""Maps noisy images x_t (B, C, H, W) and their times (B,) to a prediction of x_0."""


class BoundTerms(NamedTuple):
    """The bound of B images, with the term and the error of each of N predictions; float64.

    Attributes:
        prior: (B,), L_T.
        reconstruction: (B,), L_0.
        diffusion: (B,), the sum of L_(t-1), t = 2..T, or the integral.
        t: (B, N), the times at which the network was evaluated. In discrete time the first is 1/T.
        terms: (B, N), the terms of those times, weighted so that their sum over N is diffusion; in
            discrete time the first is L_0, so the sum is reconstruction + diffusion.
        squared_error: (B, N), ||x_0 - x0_hat||^2 summed over dimensions.
    """

    prior: Tensor
    reconstruction: Tensor
    diffusion: Tensor
    t: Tensor
    terms: Tensor
    squared_error: Tensor

    @property
    def kl(self) -> Tensor:
        """KL between the forward and the reverse process, (B,): L_T + the diffusion term."""
        return self.prior + self.diffusion


def check_levels(spec: ImageSpec) -> None:
    """Raise ValueError unless the images have 8 bits, for which L_0 is defined."""
    if spec.levels == LEVELS:
        return
    if spec.levels == 2:
        raise ValueError(
            "the bound of a DDPM is that of pixels of 256 levels, and these "
            "have 2; set data.binarisation=none"
        )
    kind = "are real numbers" if spec.levels is None else f"have {spec.levels} levels"
    raise ValueError(
        f"the pixels {kind}, and the bound of a DDPM is that of pixels of 256 levels; "
        "choose data of 8 bits, for instance data=mnist"
    )


def prior_kl(x0: Tensor, log_snr: Tensor) -> Tensor:
    """Compute L_T = KL(q(x_T | x_0) || N(0, I)), (B,), at the log-SNR (B,) of the last time."""
    log_snr = log_snr.double()
    squared = sum_except_batch(x0.double().square())
    dims = x0[0].numel()
    return 0.5 * (torch.sigmoid(log_snr) * (squared - dims) + dims * softplus(log_snr))


def variance_mismatch(log_snr_s: Tensor, log_snr_t: Tensor, log_variance: Tensor) -> Tensor:
    """Compute the KL of a step with a perfect mean, per dimension, shaped like `log_variance`.

    It is (r - 1 - ln r) / 2, where r is the posterior variance divided by that of the model.
    """
    log_posterior = log_posterior_variance(log_snr_s, log_snr_t)
    log_ratio = like_images(log_posterior, log_variance) - log_variance
    return 0.5 * (torch.expm1(log_ratio) - log_ratio)


def step_kl(
    x0: Tensor, x0_hat: Tensor, log_snr_s: Tensor, log_snr_t: Tensor, log_variance: Tensor
) -> Tensor:
    """Compute KL(q(x_s | x_t, x_0) || p(x_s | x_t)), (B,), where the mean of p is that of x0_hat.

    Args:
        log_variance: log-variance of p, (B,) or (B, C, H, W).
    """
    log_variance = _spread(log_variance, x0)
    from_x0, _, _ = posterior_coefficients(log_snr_s, log_snr_t)
    weight = 0.5 * torch.exp(like_images(2 * from_x0.log(), x0) - log_variance)
    error = weight * (x0 - x0_hat).square()
    return sum_except_batch(error + variance_mismatch(log_snr_s, log_snr_t, log_variance))


def diffusion_density(x0: Tensor, x0_hat: Tensor, log_snr: Tensor) -> Tensor:
    """Compute 1/2 SNR ||x_0 - x0_hat||^2, (B,); its integral over log-SNR is the diffusion term.

    Kingma et al. (2021, VDM), eq. 18: the integral depends on the schedule only by its two ends.
    """
    return 0.5 * log_snr.double().exp() * _squared_error(x0, x0_hat)


def decoder_nll(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Compute L_0 in discrete time, (B,): a Gaussian rounded to 256 levels.

    Ho et al. (2020), eq. 13.

    Args:
        mean: x0_hat at the first step.
        log_variance: (B,) or (B, C, H, W).
    """
    log_scale = _spread(0.5 * log_variance, x0).to(x0.dtype)
    log_prob = DiscretizedGaussian(mean, log_scale, -1.0, 1.0, LEVELS).log_prob(x0)
    return -sum_except_batch(log_prob.double())


def continuous_decoder_nll(x0: Tensor, x_t: Tensor, log_snr: Tensor) -> Tensor:
    """Compute L_0 in continuous time, (B,): p(x_0 | x_t) is proportional to q(x_t | x_0).

    The 256 levels are normalised over (Kingma et al. 2021, VDM, eq. 8); `log_snr` (B,) is that of
    the first time. The network is not used.
    """
    bin_width, precision = 2 / (LEVELS - 1), like_images(log_snr.double().exp(), x0)
    alpha, _ = alpha_sigma(log_snr)
    centre = (x_t.double() / like_images(alpha, x0) + 1) / bin_width
    nearest = centre.round().clamp(0, LEVELS - 1)

    def energy(level: Tensor) -> Tensor:
        above = (centre - level).square() - (centre - nearest).square()
        return 0.5 * bin_width**2 * precision * above

    # Levels farther away than this have less than e^-40 of the weight of the nearest one.
    reach = 1 + math.ceil(math.sqrt(80 / float(precision.detach().min())) / bin_width)
    total = torch.zeros_like(centre)
    for offset in range(-min(reach, LEVELS), min(reach, LEVELS) + 1):
        level = nearest + offset
        is_level = (level >= 0) & (level < LEVELS)
        total = total + torch.exp(-energy(level.clamp(0, LEVELS - 1))) * is_level
    level = ((x0.double() + 1) / bin_width).round()
    return sum_except_batch(energy(level) + total.log())


def bound_term(
    x0: Tensor, prediction: Prediction, process: Process, t: Tensor, variance: ReverseVariance
) -> Tensor:
    """Compute the term of the discrete bound at each image's own time, (B,): L_0 at t = 1/T.

    Args:
        prediction: made from x_t ~ q(x_t | x_0).
        t: (B,) float64, in 1/T, ..., 1.
    """
    log_variance = variance.log_variance(process, t, prediction)
    first = t < 1.5 * process.first
    term = t.new_empty(len(x0))
    if first.any():
        term[first] = decoder_nll(x0[first], prediction.x0_hat[first], log_variance[first])
    if not first.all():
        later = ~first
        log_snr_s, log_snr_t = (
            process.log_snr(process.previous(t[later])),
            process.log_snr(t[later]),
        )
        term[later] = step_kl(
            x0[later], prediction.x0_hat[later], log_snr_s, log_snr_t, log_variance[later]
        )
    return term


def exact(
    x0: Tensor, predict: Predict, process: Process, variance: ReverseVariance, noise: Noise
) -> BoundTerms:
    """Compute all T terms of the bound of images (B, C, H, W), by T predictions, N = T.

    Every term uses one draw of x_t, so the noise is the only randomness.

    Raises:
        ValueError: if time is continuous, where the bound is not a sum.
    """
    if process.steps is None:
        raise ValueError(
            "steps=null: the bound in continuous time is an integral and not a sum; "
            "estimate it with many draws, or set model.steps"
        )
    times = torch.arange(1, process.steps + 1, dtype=torch.float64, device=x0.device)
    columns = [
        _discrete_column(x0, predict, process, variance, t.expand(len(x0)), noise)
        for t in times / process.steps
    ]
    return _assemble(x0, process, columns, noise)


def stratified(
    x0: Tensor,
    predict: Predict,
    process: Process,
    variance: ReverseVariance,
    draws: int,
    noise: Noise,
) -> BoundTerms:
    """Estimate the bound of images (B, C, H, W) without bias; L_0 and L_T are computed in full.

    Each image gets one time in each of `draws` equal parts of the steps, or of the log-SNR in
    continuous time; in each part the times of the images are evenly spread (`Noise.spread`).
    Discrete time: N = 1 + draws, of which the first is for L_0. Continuous time: N = draws.

    Args:
        variance: ignored in continuous time, where the bound does not depend on it.

    Raises:
        ValueError: if draws is below 1.
    """
    whole("draws", draws, 1)
    if process.steps == 1:
        return exact(x0, predict, process, variance, noise)
    columns = []
    if process.steps is not None:
        first = torch.full((len(x0),), process.first, dtype=torch.float64, device=x0.device)
        columns.append(_discrete_column(x0, predict, process, variance, first, noise))
    for part in range(draws):
        u = (part + noise.spread()) / draws
        if process.steps is None:
            t, term, error = _continuous_column(x0, predict, process, u, noise)
            columns.append((t, term / draws, error))
        else:
            later = process.steps - 1
            t = (torch.floor(u * later).clamp(max=later - 1) + 2) / process.steps
            t, term, error = _discrete_column(x0, predict, process, variance, t, noise)
            columns.append((t, term * (later / draws), error))
    return _assemble(x0, process, columns, noise)


def by_log_snr(log_snr: Tensor, terms: Tensor, edges: tuple[float, ...] = LOG_SNR_EDGES) -> Tensor:
    """Sum `terms` (B, N) in bins of log-SNR (B, N), as `log_snr_bins`; return (len(edges) - 1,).

    Sums of several batches can be added; divided by the number of images, they are each bin's share
    of the bound.
    """
    bins = log_snr_bins(log_snr, edges)
    return terms.new_zeros(len(edges) - 1).index_add_(0, bins, terms.flatten())


def log_snr_bins(log_snr: Tensor, edges: tuple[float, ...] = LOG_SNR_EDGES) -> Tensor:
    """Find the bin of each log-SNR (B, N); return (B * N,).

    A value on an edge, to within rounding, belongs to the bin above it, which holds earlier times.
    Values beyond the first and the last edge belong to the outermost bins.
    """
    inner = torch.tensor(edges[1:-1], dtype=torch.float64, device=log_snr.device)
    return torch.bucketize(log_snr.double().flatten() + _ROUNDING, inner, right=True)


_Column = tuple[Tensor, Tensor, Tensor]


def _discrete_column(
    x0: Tensor,
    predict: Predict,
    process: Process,
    variance: ReverseVariance,
    t: Tensor,
    noise: Noise,
) -> _Column:
    x_t = diffuse(x0, noise.normal(*x0.shape[1:]).to(x0.dtype), process.log_snr(t))
    prediction = predict(x_t, t)
    term = bound_term(x0, prediction, process, t, variance)
    return t, term, _squared_error(x0, prediction.x0_hat)


def _continuous_column(
    x0: Tensor, predict: Predict, process: Process, u: Tensor, noise: Noise
) -> _Column:
    # evenly in the log-SNR, not in t: same integral, and a steep schedule adds no variance
    first, last = process.log_snr(u.new_tensor([0.0, 1.0]))
    t = process.schedule.time_at(last + (first - last) * u)
    log_snr = process.log_snr(t)
    x0_hat = predict(diffuse(x0, noise.normal(*x0.shape[1:]).to(x0.dtype), log_snr), t).x0_hat
    term = (first - last) * diffusion_density(x0, x0_hat, log_snr)
    return t, term, _squared_error(x0, x0_hat)


def _assemble(x0: Tensor, process: Process, columns: list[_Column], noise: Noise) -> BoundTerms:
    t, terms, squared_error = (torch.stack(rows, 1) for rows in zip(*columns, strict=True))
    ends = process.log_snr(t.new_tensor([process.first, 1.0]))[:, None].expand(2, len(x0))
    if process.is_discrete:
        reconstruction, diffusion = terms[:, 0], terms[:, 1:].sum(1)
    else:
        x_first = diffuse(x0, noise.normal(*x0.shape[1:]).to(x0.dtype), ends[0])
        reconstruction, diffusion = continuous_decoder_nll(x0, x_first, ends[0]), terms.sum(1)
    return BoundTerms(prior_kl(x0, ends[1]), reconstruction, diffusion, t, terms, squared_error)


def _squared_error(x0: Tensor, x0_hat: Tensor) -> Tensor:
    return sum_except_batch((x0 - x0_hat).square().double())


def _spread(log_variance: Tensor, images: Tensor) -> Tensor:
    return log_variance if log_variance.ndim > 1 else like_images(log_variance, images)
