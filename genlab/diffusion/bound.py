"""The terms of the variational bound of a diffusion model, in nats per image.

In T steps (Ho et al. 2020, eq. 5) the bound is the sum of the prior term L_T, the T - 1 KLs between
Gaussians L_(t-1), and the decoder term L_0; in continuous time (Kingma et al. 2021, VDM, eq. 11) an
integral replaces the KLs. Where x_0 has levels, they are on a grid in [-1, 1] and L_0 is the
probability of a level; else x_0 are real numbers, and L_0 is the density of a Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from genlab.codecs.pixels import LEVELS
from genlab.diffusion.process import Process, alpha_sigma, diffuse, posterior_coefficients
from genlab.diffusion.variances import Prediction, ReverseVariance, log_posterior_variance
from genlab.distributions import DiscretizedGaussian
from genlab.errors import whole
from genlab.protocols import Terms
from genlab.seeding import Noise
from genlab.tensors import like_images, sum_except_batch

#: Values per image of each prediction: the term, and the squared error after and before clipping.
VALUES = 3

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
        unclipped_error: (B, N), the same before x0_hat is clipped.
    """

    prior: Tensor
    reconstruction: Tensor
    diffusion: Tensor
    t: Tensor
    terms: Tensor
    squared_error: Tensor
    unclipped_error: Tensor

    @property
    def kl(self) -> Tensor:
        """KL between the forward and the reverse process, (B,): L_T + the diffusion term."""
        return self.prior + self.diffusion


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


def decoder_nll(
    x0: Tensor, mean: Tensor, log_variance: Tensor, levels: int | None = LEVELS
) -> Tensor:
    """Compute L_0 in discrete time, (B,): a Gaussian rounded to levels, or its density.

    Ho et al. (2020), eq. 13.

    Args:
        mean: x0_hat at the first step.
        log_variance: (B,) or (B, C, H, W).
        levels: number of values of x_0, evenly spaced in [-1, 1]; None for real numbers.
    """
    if levels is None:
        return _gaussian_nll((x0 - mean).double(), _spread(log_variance.double(), x0))
    log_scale = _spread(0.5 * log_variance, x0).to(x0.dtype)
    log_prob = DiscretizedGaussian(mean, log_scale, -1.0, 1.0, levels).log_prob(x0)
    return -sum_except_batch(log_prob.double())


def continuous_decoder_nll(
    x0: Tensor, x_t: Tensor, log_snr: Tensor, levels: int | None = LEVELS
) -> Tensor:
    """Compute L_0 in continuous time, (B,): p(x_0 | x_t) is proportional to q(x_t | x_0).

    It is normalised over the levels (Kingma et al. 2021, VDM, eq. 8), or over all real numbers;
    `log_snr` (B,) is that of the first time. The network is not used.

    Args:
        levels: as in `decoder_nll`.
    """
    alpha, _ = alpha_sigma(log_snr)
    mean = x_t.double() / like_images(alpha, x0)
    if levels is None:
        return _gaussian_nll(x0.double() - mean, -like_images(log_snr.double(), x0))
    last, bin_width = levels - 1, 2 / (levels - 1)
    precision = like_images(log_snr.double().exp(), x0)
    centre = (mean + 1) / bin_width
    nearest = centre.round().clamp(0, last)

    def energy(level: Tensor) -> Tensor:
        above = (centre - level).square() - (centre - nearest).square()
        return 0.5 * bin_width**2 * precision * above

    # Levels farther away than this have less than e^-40 of the weight of the nearest one.
    reach = 1 + math.ceil(math.sqrt(80 / float(precision.detach().min())) / bin_width)
    total = torch.zeros_like(centre)
    for offset in range(-min(reach, levels), min(reach, levels) + 1):
        level = nearest + offset
        is_level = (level >= 0) & (level <= last)
        total = total + torch.exp(-energy(level.clamp(0, last))) * is_level
    level = ((x0.double() + 1) / bin_width).round()
    return sum_except_batch(energy(level) + total.log())


def bound_term(
    x0: Tensor,
    prediction: Prediction,
    process: Process,
    t: Tensor,
    variance: ReverseVariance,
    levels: int | None = LEVELS,
) -> Tensor:
    """Compute the term of the discrete bound at each image's own time, (B,): L_0 at t = 1/T.

    Args:
        prediction: made from x_t ~ q(x_t | x_0).
        t: (B,) float64, in 1/T, ..., 1.
        levels: as in `decoder_nll`.
    """
    log_variance = variance.log_variance(process, t, prediction)
    first = t < 1.5 * process.first
    term = t.new_empty(len(x0))
    if first.any():
        mean = prediction.x0_hat[first]
        term[first] = decoder_nll(x0[first], mean, log_variance[first], levels)
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
    x0: Tensor,
    predict: Predict,
    process: Process,
    variance: ReverseVariance,
    noise: Noise,
    clip: bool = False,
    terms: Terms | None = None,
    levels: int | None = LEVELS,
) -> BoundTerms:
    """Compute all T terms of the bound of images (B, C, H, W), by T predictions, N = T.

    Every term uses one draw of x_t, so the noise is the only randomness.

    Args:
        clip: whether x0_hat is clipped to [-1, 1].
        terms: those that are known are not computed again; the others are added to it.
        levels: as in `decoder_nll`.

    Raises:
        ValueError: if time is continuous, where the bound is not a sum.
    """
    if process.steps is None:
        raise ValueError(
            "steps=null: the bound in continuous time is an integral and not a sum; "
            "estimate it with many draws, or set model.steps"
        )
    times = torch.arange(1, process.steps + 1, dtype=torch.float64, device=x0.device)
    measure = _Measure(x0, predict, process, variance, noise, clip, levels)
    draws = (measure.draw(t.expand(len(x0))) for t in times / process.steps)
    return measure.all(draws, process.steps, terms)


def stratified(
    x0: Tensor,
    predict: Predict,
    process: Process,
    variance: ReverseVariance,
    draws: int,
    noise: Noise,
    clip: bool = False,
    terms: Terms | None = None,
    levels: int | None = LEVELS,
) -> BoundTerms:
    """Estimate the bound of images (B, C, H, W) without bias; L_0 and L_T are computed in full.

    Each image gets one time in each of `draws` equal parts of the steps, or of the log-SNR in
    continuous time; in each part the times of the images are evenly spread (`Noise.spread`).
    Discrete time: N = 1 + draws, of which the first is for L_0. Continuous time: N = draws.

    Args:
        variance: ignored in continuous time, where the bound does not depend on it.
        clip, terms, levels: as in `exact`.

    Raises:
        ValueError: if draws is below 1.
    """
    whole("draws", draws, 1)
    if process.steps == 1:
        return exact(x0, predict, process, variance, noise, clip, terms, levels)
    measure = _Measure(x0, predict, process, variance, noise, clip, levels)
    return measure.all(measure.spread(draws), draws + process.is_discrete, terms)


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


class _Draw(NamedTuple):
    """Times t (B,), how their x_t are drawn, and the factor of their term in the bound."""

    t: Tensor
    x_t: Callable[[], Tensor]
    factor: float


class _Measure(NamedTuple):
    """Predicts x_0 from noisy images, and measures the term of the bound."""

    x0: Tensor
    predict: Predict
    process: Process
    variance: ReverseVariance
    noise: Noise
    clip: bool
    levels: int | None

    def draw(self, t: Tensor, factor: float = 1.0) -> _Draw:
        def x_t() -> Tensor:
            eps = self.noise.normal(*self.x0.shape[1:]).to(self.x0.dtype)
            return diffuse(self.x0, eps, self.process.log_snr(t))

        return _Draw(t, x_t, factor)

    def rows(self, draw: _Draw) -> Tensor:
        """Return the term, and the squared error after and before clipping, (`VALUES`, B)."""
        x0, t = self.x0, draw.t
        prediction = self.predict(draw.x_t(), t)
        unclipped = _squared_error(x0, prediction.x0_hat)
        if self.clip:
            prediction = prediction.clipped()
        if self.process.is_discrete:
            term = bound_term(x0, prediction, self.process, t, self.variance, self.levels)
        else:
            first, last = self.process.log_snr(t.new_tensor([0.0, 1.0]))
            density = diffusion_density(x0, prediction.x0_hat, self.process.log_snr(t))
            term = (first - last) * density
        error = _squared_error(x0, prediction.x0_hat)
        return torch.stack([term * draw.factor, error, unclipped])

    def all(self, draws: Iterable[_Draw], number: int, terms: Terms | None) -> BoundTerms:
        """Measure at all times; where a term is known its noise alone is drawn, to go on."""
        known = [] if terms is None else [rows.to(self.x0.device) for rows in terms.known()]
        is_complete = len(known) == number and self.process.is_discrete
        times, columns = [], []
        for i, draw in enumerate(draws):
            if i >= len(known):
                columns.append(self.rows(draw))
                if terms is not None:
                    terms.add(columns[-1])
            else:
                columns.append(known[i])
                if not is_complete:
                    draw.x_t()
            times.append(draw.t)
        return self._assemble(times, columns)

    def spread(self, parts: int) -> Iterator[_Draw]:
        """Yield the draws of `stratified`, that of L_0 first where time is discrete."""
        x0, process, steps = self.x0, self.process, self.process.steps
        if steps is not None:
            yield self.draw(
                torch.full((len(x0),), process.first, dtype=torch.float64).to(x0.device)
            )
        for part in range(parts):
            u = (part + self.noise.spread()) / parts
            if steps is not None:
                later = steps - 1
                t = (torch.floor(u * later).clamp(max=later - 1) + 2) / steps
                yield self.draw(t, later / parts)
            else:
                # evenly in the log-SNR, not in t: same integral, and a steep schedule adds no
                # variance
                first, last = process.log_snr(u.new_tensor([0.0, 1.0]))
                yield self.draw(process.schedule.time_at(last + (first - last) * u), 1 / parts)

    def _assemble(self, times: list[Tensor], columns: list[Tensor]) -> BoundTerms:
        x0, process = self.x0, self.process
        t, (terms, error, unclipped) = torch.stack(times, 1), torch.stack(columns, 2)
        ends = process.log_snr(t.new_tensor([process.first, 1.0]))[:, None].expand(2, len(x0))
        if process.is_discrete:
            reconstruction, diffusion = terms[:, 0], terms[:, 1:].sum(1)
        else:
            x_first = diffuse(x0, self.noise.normal(*x0.shape[1:]).to(x0.dtype), ends[0])
            reconstruction = continuous_decoder_nll(x0, x_first, ends[0], self.levels)
            diffusion = terms.sum(1)
        prior = prior_kl(x0, ends[1])
        return BoundTerms(prior, reconstruction, diffusion, t, terms, error, unclipped)


def _squared_error(x0: Tensor, x0_hat: Tensor) -> Tensor:
    return sum_except_batch((x0 - x0_hat).square().double())


def _gaussian_nll(error: Tensor, log_variance: Tensor) -> Tensor:
    """Compute -ln N(error; 0, variance), summed over dimensions, (B,)."""
    nats = 0.5 * (error.square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi))
    return sum_except_batch(nats.expand_as(error))


def _spread(log_variance: Tensor, images: Tensor) -> Tensor:
    return log_variance if log_variance.ndim > 1 else like_images(log_variance, images)
