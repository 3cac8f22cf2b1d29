"""The bound of a diffusion model and its variances, against distributions whose answer is known."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

from genlab.codecs.pixels import check_levels
from genlab.diffusion.beta_tables import LinearBetas
from genlab.diffusion.bound import (
    LOG_SNR_EDGES,
    bound_term,
    by_log_snr,
    continuous_decoder_nll,
    decoder_nll,
    diffusion_density,
    exact,
    prior_kl,
    step_kl,
    stratified,
    variance_mismatch,
)
from genlab.diffusion.curves import BoundCurves
from genlab.diffusion.gaussian import GaussianData
from genlab.diffusion.process import Process, alpha_sigma, diffuse, posterior
from genlab.diffusion.schedule_ends import Between
from genlab.diffusion.schedules import Cosine, Linear, LinearLogSNR, NoiseSchedule
from genlab.diffusion.variances import (
    FixedLarge,
    FixedSmall,
    Learned,
    Optimal,
    Prediction,
    ReverseVariance,
)
from genlab.protocols import ImageSpec
from genlab.seeding import BatchNoise

BITS = math.log(2)
GRID = torch.linspace(-1, 1, 256, dtype=torch.float64)


STRAIGHT = LinearLogSNR(10.0, -10.0)
BENT = Between(Cosine(), 10.0, -10.0)


def images(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)


def steps_of(process: Process) -> Tensor:
    assert process.steps is not None
    return torch.arange(1, process.steps + 1, dtype=torch.float64) / process.steps


NO_PREDICTION = Prediction(torch.zeros(1, 1, 1, 1))


class Split(NamedTuple):
    """A bound in bits per dimension: L_T, the sum over t = 2..T, and the log-variance at t = 1."""

    prior: float
    diffusion: float
    first_log_variance: Tensor


def expected_bound(
    process: Process, variance: ReverseVariance, squared_error: Tensor, second_moment: float
) -> Split:
    """The mean of each term over x_0 and x_t, given the mean squared error (T,) of a network.

    Every term is affine in the squared error, so an image of that error has the mean term.
    """
    t = steps_of(process)
    log_variance = variance.log_variance(process, t, NO_PREDICTION)
    error = images(squared_error.sqrt())[1:]
    s, later = process.log_snr(process.previous(t[1:])), process.log_snr(t[1:])
    kl = step_kl(error, torch.zeros_like(error), s, later, log_variance[1:])
    x0 = images(torch.tensor([second_moment], dtype=torch.float64).sqrt())
    prior = prior_kl(x0, process.log_snr(torch.ones(1)))
    return Split(float(prior) / BITS, float(kl.sum()) / BITS, log_variance[0])


def measured(process: Process, squared_error: Tensor) -> Optimal:
    variance = Optimal()
    variance.measure(process.log_snr(steps_of(process)), squared_error)
    return variance


def linear(steps: int) -> Process:
    """The paper's betas; they pass 1 below 20 steps, where their limit is taken."""
    return Process(LinearBetas(steps) if steps >= 50 else Linear(), steps)


def gaussian_gap(steps: int, kind: type[ReverseVariance], mean: float, std: float) -> float:
    """Bits by which the bound of a density, with a Gaussian decoder, exceeds the entropy."""
    process, data = linear(steps), GaussianData(mean, std)
    error = data.posterior_variance(process.log_snr(steps_of(process))).flatten()
    variance = measured(process, error) if kind is Optimal else kind()
    bound = expected_bound(process, variance, error, mean**2 + std**2)
    log_variance = bound.first_log_variance
    decoder = 0.5 * (math.log(2 * math.pi) + log_variance + error[0] / log_variance.exp())
    return bound.prior + bound.diffusion + (float(decoder) - data.entropy()) / BITS


@pytest.mark.parametrize("steps", [2, 10, 50, 1000])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.0, 0.5), (0.4, 0.1)])
def test_with_the_optimal_variance_the_bound_of_a_gaussian_is_its_entropy(
    steps: int, mean: float, std: float
) -> None:
    """Plus KL(q(x_T) || N(0, I)), all that is left when each reverse step is the true one."""
    process = linear(steps)
    at_end = GaussianData(mean, std).marginal(process.log_snr(torch.ones(1)))
    left = float(kl_divergence(Normal(*at_end), Normal(0.0, 1.0)).sum()) / BITS
    assert gaussian_gap(steps, Optimal, mean, std) == pytest.approx(left, abs=1e-9)


@pytest.mark.parametrize(("steps", "gap"), [(100, 1.58e-2), (1000, 1.58e-3), (10_000, 1.58e-4)])
def test_with_beta_as_the_variance_the_gap_to_the_entropy_falls_as_1_over_steps(
    steps: int, gap: float
) -> None:
    assert gaussian_gap(steps, FixedLarge, 0.0, 0.5) == pytest.approx(gap, rel=5e-3)


@pytest.mark.parametrize(("steps", "gap"), [(100, 1.84), (1000, 0.82), (10_000, 0.67)])
def test_with_the_posterior_variance_the_bound_does_not_approach_the_entropy(
    steps: int, gap: float
) -> None:
    assert gaussian_gap(steps, FixedSmall, 0.0, 0.5) == pytest.approx(gap, abs=5e-3)


def rounded_masses() -> Tensor:
    """The masses of N(0, 0.3^2) rounded to the levels, of which the outermost take the tails."""
    below = Normal(0.0, 0.3).cdf(GRID[:-1] + 1 / 255)
    return torch.cat([below.new_zeros(1), below, below.new_ones(1)]).diff()


#: N(0, 0.3^2) on 256 levels: rounded, and its density at the levels, normalised.
MASSES = {"rounded": rounded_masses(), "density": (-0.5 * (GRID / 0.3).square()).softmax(0)}


def level_posterior(masses: Tensor, log_snr: float) -> tuple[Tensor, Tensor, Tensor]:
    """Quadrature nodes x_t (N,), their density times the spacing (N,), p(level | x_t) (N, 256)."""
    alpha, sigma = (float(c) for c in alpha_sigma(torch.tensor(log_snr)))
    reach = alpha + 8 * sigma
    count = 2 * math.ceil(reach / min(sigma, 0.2)) + 1
    x_t = torch.linspace(-reach, reach, count, dtype=torch.float64)
    exponent = -0.5 * ((x_t[:, None] - alpha * GRID) / sigma).square()
    log_joint = exponent + masses.log()
    log_density = log_joint.logsumexp(1)
    spacing = float(x_t[1] - x_t[0]) / (sigma * math.sqrt(2 * math.pi))
    return x_t, log_density.exp() * spacing, (log_joint - log_density[:, None]).exp()


@cache
def eight_bit_errors(kind: str) -> Tensor:
    """E (x_0 - E[x_0 | x_t])^2 at t = 1..1000, (1000,), for the quantised Gaussian."""
    process = linear(1000)
    errors = []
    for log_snr in process.log_snr(steps_of(process)).tolist():
        _, weights, level = level_posterior(MASSES[kind], log_snr)
        variance = level @ GRID.square() - (level @ GRID).square()
        errors.append(float(weights @ variance))
    return torch.tensor(errors, dtype=torch.float64)


def eight_bit_decoder(masses: Tensor, log_variance: Tensor) -> float:
    """E L_0 in bits for the perfect x0_hat at t = 1/1000 and the log-variance (), by quadrature."""
    _, weights, level = level_posterior(masses, float(linear(1000).log_snr(torch.tensor([0.001]))))
    pairs = (len(weights), 256)
    nll = decoder_nll(
        images(GRID.expand(pairs).flatten()),
        images((level @ GRID)[:, None].expand(pairs).flatten()),
        log_variance.expand(math.prod(pairs)),
    )
    return float(weights @ (level * nll.reshape(pairs)).sum(1)) / BITS


@pytest.mark.parametrize(
    ("levels", "kind", "excess", "with_the_decoder_of_ddpm"),
    [
        ("rounded", FixedSmall, 0.7582, 0.758),
        ("rounded", FixedLarge, 0.0069, 0.121),
        ("rounded", Optimal, 0.0015, 0.116),
        ("density", FixedSmall, 0.758, 0.758),
        ("density", FixedLarge, 0.006, 0.121),
        ("density", Optimal, 0.001, 0.115),
    ],
)
def test_the_bound_of_a_quantised_gaussian_exceeds_its_entropy_by_known_amounts(
    levels: str, kind: type[ReverseVariance], excess: float, with_the_decoder_of_ddpm: float
) -> None:
    """The published code decodes with the posterior variance of the second step, whatever the
    variance of the other steps: a decoder that is too sure of itself, by .114 bits."""
    masses = MASSES[levels]
    entropy = -float((masses * masses.log2()).sum())
    assert entropy == pytest.approx({"rounded": 7.3002, "density": 7.2962}[levels], abs=1e-4)
    process, errors = linear(1000), eight_bit_errors(levels)
    variance = measured(process, errors) if kind is Optimal else kind()
    bound = expected_bound(process, variance, errors, float(masses @ GRID.square()))
    steps = bound.prior + bound.diffusion - entropy
    found = steps + eight_bit_decoder(masses, bound.first_log_variance)
    assert found == pytest.approx(excess, abs=1e-4 if levels == "rounded" else 1e-3)
    ddpm = FixedSmall().log_variance(process, steps_of(process)[:1], NO_PREDICTION)[0]
    total = steps + eight_bit_decoder(masses, ddpm)
    assert total == pytest.approx(with_the_decoder_of_ddpm, abs=1e-3)


def test_the_prior_term_is_the_kl_of_two_gaussians_and_small_for_1000_linear_steps() -> None:
    process = linear(1000)
    log_snr = process.log_snr(torch.ones(3))
    x0 = torch.stack([torch.full((1, 4, 4), v, dtype=torch.float64) for v in (-1.0, 0.0, 1.0)])
    alpha, sigma = alpha_sigma(log_snr[:1])
    q = Independent(Normal(alpha * x0, sigma.expand_as(x0)), 3)
    p = Independent(Normal(torch.zeros_like(x0), torch.ones_like(x0)), 3)
    kl = prior_kl(x0, log_snr)
    torch.testing.assert_close(kl, kl_divergence(q, p), atol=1e-12, rtol=0)
    assert float(kl.max()) / (16 * BITS) == pytest.approx(2.9e-5, abs=2e-7)
    assert float(prior_kl(x0, torch.full((3,), -torch.inf)).abs().max()) == 0


def test_beta_as_the_variance_costs_half_a_bit_whatever_the_network() -> None:
    process = linear(1000)
    t = steps_of(process)[1:]
    log_variance = FixedLarge().log_variance(process, t, NO_PREDICTION)
    s, later = process.log_snr(process.previous(t)), process.log_snr(t)
    bits = float(variance_mismatch(s, later, log_variance).sum()) / BITS
    assert bits == pytest.approx(0.486, abs=1e-3)
    zero = torch.zeros(999, 1, 2, 2, dtype=torch.float64)
    kl = step_kl(zero, zero, s, later, log_variance)
    assert float(kl.sum()) / (4 * BITS) == pytest.approx(bits, rel=1e-12)


@pytest.mark.parametrize("per_pixel", [False, True])
def test_a_step_is_the_kl_of_two_gaussians(per_pixel: bool) -> None:
    torch.manual_seed(0)
    log_snr_t = torch.tensor([5.0, 1.0, -3.0, -8.0], dtype=torch.float64)
    log_snr_s = log_snr_t + torch.tensor([0.01, 0.5, 2.0, 4.0])
    x0, x0_hat, x_t = torch.randn(3, 4, 2, 3, 3, dtype=torch.float64)
    shape = x0.shape if per_pixel else (4,)
    log_variance = torch.randn(shape, dtype=torch.float64) - 2
    q, p = (posterior(x, x_t, log_snr_s, log_snr_t) for x in (x0, x0_hat))
    scale = (log_variance if per_pixel else images(log_variance).expand_as(x0)).mul(0.5).exp()
    expected = kl_divergence(
        Independent(Normal(q.mean, images(q.variance.sqrt()).expand_as(x0)), 3),
        Independent(Normal(p.mean, scale), 3),
    )
    actual = step_kl(x0, x0_hat, log_snr_s, log_snr_t, log_variance)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=0)


def test_with_the_posterior_variance_a_step_is_half_the_fall_of_the_snr_times_the_error() -> None:
    process = linear(100)
    t = steps_of(process)[1:]
    torch.manual_seed(0)
    x0, x0_hat = torch.randn(2, 99, 1, 2, 2, dtype=torch.float64)
    s, later = process.log_snr(process.previous(t)), process.log_snr(t)
    log_variance = FixedSmall().log_variance(process, t, NO_PREDICTION)
    expected = 0.5 * (s.exp() - later.exp()) * (x0 - x0_hat).square().flatten(1).sum(1)
    torch.testing.assert_close(step_kl(x0, x0_hat, s, later, log_variance), expected)


def test_a_step_that_shrinks_is_the_density_of_continuous_time() -> None:
    schedule, t, dt = Linear(), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), 1e-6
    torch.manual_seed(0)
    x0, x0_hat = torch.randn(2, 3, 1, 2, 2, dtype=torch.float64)
    s, later = schedule.log_snr(t - dt), schedule.log_snr(t)
    steps = step_kl(x0, x0_hat, s, later, FixedSmall().log_variance(Process(schedule, 10**6), t,
                    NO_PREDICTION))  # fmt: skip
    density = -schedule.slope(t) * diffusion_density(x0, x0_hat, later)
    torch.testing.assert_close(steps / dt, density, rtol=1e-4, atol=0)


class Network(nn.Module):
    """A small random network, conditioned on the log-SNR, with channels for a learned variance."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 8)).double()

    def predict(self, process: Process, x_t: Tensor, t: Tensor) -> Prediction:
        log_snr = process.log_snr(t).clamp(-20, 20)
        features = torch.cat([x_t.flatten(1), log_snr[:, None] / 10], 1)
        x0_hat, fraction = self.layers(features).reshape(-1, 2, *x_t.shape[1:]).unbind(1)
        alpha, sigma = alpha_sigma(log_snr)
        return Prediction(images(alpha) * x_t + images(sigma) * x0_hat, fraction.tanh())


def pixels(count: int) -> Tensor:
    torch.manual_seed(1)
    return GRID[torch.randint(256, (count, 1, 2, 2))]


def standard_error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))


@pytest.mark.parametrize("kind", [FixedSmall, FixedLarge, Learned])
@pytest.mark.parametrize("draws", [1, 3])
def test_the_stratified_estimate_is_unbiased(kind: type[ReverseVariance], draws: int) -> None:
    process, network, variance = Process(Linear(), 12), Network(), kind()
    x0 = pixels(8).repeat(1000, 1, 1, 1)

    def predict(x_t: Tensor, t: Tensor) -> Prediction:
        return network.predict(process, x_t, t)

    with torch.no_grad():
        full = exact(x0, predict, process, variance, BatchNoise(len(x0), 5))
        part = stratified(x0, predict, process, variance, draws, BatchNoise(len(x0), 6))
    assert full.t.shape == (8000, 12) and part.t.shape == (8000, 1 + draws)
    torch.testing.assert_close(full.prior, part.prior)
    for name in ("reconstruction", "diffusion"):
        a, b = getattr(full, name), getattr(part, name)
        error = math.hypot(standard_error(a), standard_error(b))
        assert float(a.mean() - b.mean()) == pytest.approx(0, abs=3 * error)
    # term by term: each t's share of the sum over the batch, whichever images it fell on
    for i, t in enumerate(steps_of(process)):
        share = torch.where(part.t == t, part.terms, 0).sum(1)
        error = math.hypot(standard_error(share), standard_error(full.terms[:, i]))
        assert float(share.mean() - full.terms[:, i].mean()) == pytest.approx(0, abs=4 * error)


def test_the_exact_bound_adds_up_and_agrees_with_one_term_at_a_time() -> None:
    process, network, variance = Process(Linear(), 7), Network(), Learned()
    x0 = pixels(5)

    def predict(x_t: Tensor, t: Tensor) -> Prediction:
        return network.predict(process, x_t, t)

    bound = exact(x0, predict, process, variance, BatchNoise(len(x0), 5))
    torch.testing.assert_close(bound.terms.sum(1), bound.reconstruction + bound.diffusion)
    torch.testing.assert_close(bound.kl, bound.prior + bound.diffusion)
    noise = BatchNoise(len(x0), 5)
    for i, t in enumerate(bound.t.T):
        prediction = predict(diffuse(x0, noise.normal(*x0.shape[1:]), process.log_snr(t)), t)
        expected = bound_term(x0, prediction, process, t, variance)
        torch.testing.assert_close(bound.terms[:, i], expected)
        error = (x0 - prediction.x0_hat).square().flatten(1).sum(1)
        torch.testing.assert_close(bound.squared_error[:, i], error)


def test_a_batch_of_mixed_times_has_the_terms_of_each_and_gradients_that_are_finite() -> None:
    process, network, variance = Process(Linear(), 7), Network(), Learned()
    x0, t = pixels(7), steps_of(process)
    prediction = network.predict(process, diffuse(x0, torch.randn_like(x0), process.log_snr(t)), t)
    together = bound_term(x0, prediction, process, t, variance)
    for i in range(7):
        one = Prediction(*(part[i : i + 1] for part in prediction if part is not None))
        alone = bound_term(x0[i : i + 1], one, process, t[i : i + 1], variance)
        torch.testing.assert_close(together[i : i + 1], alone)
    together.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_one_step_is_a_decoder_and_a_prior() -> None:
    process, data = Process(Linear(), 1), GaussianData(0.0, 0.5)
    x0 = pixels(4)
    bound = stratified(x0, data.predictor(process), process, FixedLarge(), 3, BatchNoise(4))
    assert bound.t.tolist() == [[1.0]] * 4 and bound.diffusion.tolist() == [0.0] * 4
    torch.testing.assert_close(bound.terms[:, 0], bound.reconstruction)


def test_two_schedules_with_equal_ends_have_one_bound_in_continuous_time() -> None:
    """By quadrature over t at common random numbers in log-SNR, then by the estimator."""
    network, x0 = Network(), pixels(64)
    eps = torch.randn_like(x0)
    nodes, weights = (torch.tensor(a) for a in np.polynomial.legendre.leggauss(200))
    totals = []
    for schedule in (STRAIGHT, BENT):
        process, total = Process(schedule, None), torch.zeros(64, dtype=torch.float64)
        with torch.no_grad():
            for u, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
                t = u.expand(64)
                log_snr = process.log_snr(t)
                x0_hat = network.predict(process, diffuse(x0, eps, log_snr), t).x0_hat
                total += weight * -schedule.slope(t) * diffusion_density(x0, x0_hat, log_snr)
        totals.append(total)
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-8, atol=0)


@pytest.mark.parametrize("schedule", [STRAIGHT, BENT])
def test_the_estimate_in_continuous_time_is_the_entropy_for_a_perfect_network(
    schedule: NoiseSchedule,
) -> None:
    """The I-MMSE relation: half the integral of the error over the SNR is the information."""
    torch.manual_seed(0)
    process, data = Process(schedule, None), GaussianData(torch.zeros(1, 2, 2), 0.5)
    noise = BatchNoise(4000, 0)
    x0, predict = data.sample(4000), data.predictor(process)
    bound = stratified(x0, predict, process, FixedLarge(), 4, noise)
    assert bound.t.shape == (4000, 4)
    torch.testing.assert_close(bound.terms.sum(1), bound.diffusion)
    snr = torch.tensor([10.0, -10.0], dtype=torch.float64).exp()
    information = torch.log1p(0.25 * snr) * 4 / 2
    expected = float(information[0] - information[1])
    error = standard_error(bound.diffusion)
    assert float(bound.diffusion.mean()) == pytest.approx(expected, abs=3 * error)


@pytest.mark.parametrize("log_snr", [-2.0, 5.0, 13.3])
@pytest.mark.parametrize("x_t", [-1.7, -0.999, 0.123, 1.0])
def test_the_levels_of_the_decoder_in_continuous_time_sum_to_one(
    log_snr: float, x_t: float
) -> None:
    at = torch.full((256,), log_snr, dtype=torch.float64)
    alpha, sigma = alpha_sigma(at)
    nll = continuous_decoder_nll(images(GRID), torch.full((256, 1, 1, 1), x_t).double(), at)
    assert float((-nll).exp().sum()) == pytest.approx(1, abs=1e-12)
    logits = Normal(alpha * GRID, sigma).log_prob(torch.tensor(x_t).double())
    torch.testing.assert_close(-nll, logits.log_softmax(0), rtol=1e-9, atol=1e-9)


def test_the_decoder_in_continuous_time_is_certain_at_a_high_log_snr() -> None:
    torch.manual_seed(0)
    x0 = GRID.float()[torch.randint(256, (4, 3, 8, 8))]
    log_snr = torch.full((4,), 15.0, dtype=torch.float64)
    x_t = diffuse(x0, torch.randn_like(x0), log_snr)
    assert float(continuous_decoder_nll(x0, x_t, log_snr).abs().max()) < 1e-5


def test_the_fixed_variances_are_those_of_the_betas() -> None:
    steps = 1000
    process, t = linear(steps), steps_of(linear(steps))
    betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    alpha_bar = (1 - betas).cumprod(0)
    small = betas[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
    large = FixedLarge().log_variance(process, t, NO_PREDICTION).exp()
    torch.testing.assert_close(large, betas, rtol=1e-9, atol=0)
    actual = FixedSmall().log_variance(process, t, NO_PREDICTION).exp()
    torch.testing.assert_close(actual, torch.cat([small[:1], small]), rtol=1e-9, atol=0)


def test_a_learned_variance_goes_from_one_fixed_one_to_the_other() -> None:
    process = linear(100)
    t = torch.tensor([0.01, 0.5, 1.0], dtype=torch.float64)
    s = torch.tensor([0.0, 0.2, 0.9], dtype=torch.float64)
    for earlier in (None, s):
        small, large = (k().log_variance(process, t, NO_PREDICTION, earlier)
                        for k in (FixedSmall, FixedLarge))  # fmt: skip
        for value, expected in ((-1.0, small), (1.0, large), (0.0, (small + large) / 2)):
            fraction = torch.full((3, 2, 4, 4), value)
            prediction = Prediction(torch.zeros_like(fraction), fraction)
            actual = Learned().log_variance(process, t, prediction, earlier)
            torch.testing.assert_close(actual, images(expected).expand(3, 2, 4, 4))


def test_no_scalar_variance_has_a_lower_kl_than_the_optimal_one() -> None:
    process = linear(50)
    t, error = steps_of(process)[1:], torch.linspace(1e-3, 1.5, 49, dtype=torch.float64)
    s, later = process.log_snr(process.previous(t)), process.log_snr(t)
    variance = Optimal()
    variance.measure(later, error)
    log_variance = variance.log_variance(process, t, NO_PREDICTION).requires_grad_()
    x0 = images(error.sqrt())
    step_kl(x0, torch.zeros_like(x0), s, later, log_variance).sum().backward()
    assert float(log_variance.grad.abs().max()) < 1e-12


def test_the_measured_error_is_interpolated_by_its_logarithm() -> None:
    variance = Optimal()
    knots = torch.tensor([4.0, -torch.inf, 0.0, torch.inf], dtype=torch.float64)
    variance.measure(knots, torch.tensor([1e-4, 1.0, 1e-2, 1e-8]))
    process = Process(STRAIGHT, None)
    for log_snr, expected in ((4.0, 1e-4), (2.0, 1e-3), (0.0, 1e-2)):
        t = process.schedule.time_at(torch.tensor([log_snr]).double())
        # just before t the posterior variance is nearly 0 and the coefficient of x_0 is small
        s = torch.zeros(1, dtype=torch.float64)
        large, small = process.log_snr(t), process.log_snr(s)
        c = float(-torch.expm1(large - small))
        alpha, sigma = alpha_sigma(small)
        by_hand = float(sigma) ** 2 * c + (float(alpha) * c) ** 2 * expected
        actual = variance.log_variance(process, t, NO_PREDICTION, s).exp()
        assert float(actual) == pytest.approx(by_hand, rel=1e-6)


def test_the_measured_error_rides_in_a_checkpoint() -> None:
    process = linear(50)
    t, kept, fresh = steps_of(process), Optimal(), Optimal()
    before = fresh.log_variance(process, t, NO_PREDICTION)
    torch.testing.assert_close(before, FixedLarge().log_variance(process, t, NO_PREDICTION))
    with torch.inference_mode():
        kept.measure(process.log_snr(t), torch.linspace(0, 1, 50))
    fresh.load_state_dict(kept.state_dict())
    assert fresh.is_measured
    torch.testing.assert_close(
        fresh.log_variance(process, t, NO_PREDICTION), kept.log_variance(process, t, NO_PREDICTION)
    )
    kept.load_state_dict(fresh.state_dict())


def test_bins_keep_the_sum_and_take_in_what_lies_beyond_them() -> None:
    log_snr = torch.tensor([[-30.0, -20.0, -18.0, 0.5], [19.9, 20.0, 35.0, 0.0]])
    sums = by_log_snr(log_snr, torch.ones(2, 4))
    assert len(sums) == len(LOG_SNR_EDGES) - 1
    assert sums.nonzero().flatten().tolist() == [0, 1, 10, 19]
    assert sums[sums > 0].tolist() == [2, 1, 2, 3]


def counts_by_time(t: Tensor, bins: int) -> list[float]:
    """Count the times (N,) that fall into each bin."""
    t, curves = t[None], BoundCurves(bins, dims=1)
    curves.update(t, torch.zeros_like(t), torch.ones_like(t), torch.ones_like(t))
    counts: list[float] = curves.by_time[0].tolist()
    return counts


@pytest.mark.parametrize("bins", [1, 3, 7, 10, 40, 49, 100])
def test_a_time_on_the_edge_of_two_bins_belongs_to_the_one_that_it_ends(bins: int) -> None:
    """Machines round the time differently."""
    i = torch.arange(1, bins + 1, dtype=torch.float64)
    exact_times = i / bins
    for t in (
        exact_times,
        i * (1 / bins),
        1 - (bins - i) / bins,
        torch.nextafter(exact_times, torch.tensor(0.0).double()),
        torch.nextafter(exact_times, torch.tensor(2.0).double()),
    ):
        for one, place in zip(t, range(bins), strict=True):
            assert counts_by_time(one[None], bins)[place] == 1
    assert counts_by_time((i - 0.5) / bins, bins) == [1] * bins
    # steps between the edges: as many in each bin
    assert counts_by_time(steps_of(linear(25 * bins)), bins) == [25] * bins


EDGES_BY_TIME = torch.tensor([float(edge) for edge in LOG_SNR_EDGES[-2:0:-1]], dtype=torch.float64)


def test_a_log_snr_on_the_edge_of_two_bins_belongs_to_the_one_that_its_time_ends() -> None:
    """The log-SNR falls with time, so that a bin ends at its lower edge."""
    bins = len(LOG_SNR_EDGES) - 1
    for place, edge in enumerate(EDGES_BY_TIME):
        counts = by_log_snr(edge.reshape(1, 1), torch.ones(1, 1)).tolist()
        assert counts[::-1] == [float(i == place) for i in range(bins)]


def test_a_log_snr_on_an_edge_keeps_its_bin_however_it_is_rounded() -> None:
    """With LinearLogSNR(6, -14) the steps at 0 and -2 are an ulp below, and in the bin below."""
    expected = by_log_snr(EDGES_BY_TIME[None], torch.ones(1, len(EDGES_BY_TIME)))
    for away in (-math.inf, math.inf):
        rounded = torch.nextafter(EDGES_BY_TIME, torch.tensor(away).double())
        found = by_log_snr(rounded[None], torch.ones(1, len(rounded)))
        assert found.tolist() == expected.tolist()


def test_bins_in_log_snr_do_not_depend_on_the_schedule() -> None:
    data, shares = GaussianData(torch.zeros(1, 2, 2), 0.5), []
    for schedule in (STRAIGHT, BENT):
        torch.manual_seed(0)
        process = Process(schedule, None)
        noise = BatchNoise(20_000, 0)
        x0, predict = data.sample(20_000), data.predictor(process)
        bound = stratified(x0, predict, process, FixedLarge(), 4, noise)
        shares.append(by_log_snr(process.log_snr(bound.t), bound.terms) / 20_000)
    torch.testing.assert_close(shares[0], shares[1], rtol=0.02, atol=0.05)


@pytest.mark.parametrize(
    ("levels", "key"), [(2, "data.binarisation=none"), (None, "data="), (16, "data=")]
)
def test_the_decoder_refuses_pixels_that_are_not_8_bit(levels: int | None, key: str) -> None:
    with pytest.raises(ValueError, match=f"256 levels.*{key}"):
        check_levels(ImageSpec(1, 28, 28, levels))
    check_levels(ImageSpec(1, 28, 28))


def test_what_has_no_meaning_is_refused() -> None:
    continuous, one_step = Process(STRAIGHT, None), Process(Linear(), 1)
    x0, predict = pixels(2), GaussianData(0.0, 1.0).predictor(continuous)
    with pytest.raises(ValueError, match=r"^steps=null"):
        exact(x0, predict, continuous, FixedSmall(), BatchNoise(2))
    with pytest.raises(ValueError, match=r"^draws=0"):
        stratified(x0, predict, continuous, FixedSmall(), 0, BatchNoise(2))
    with pytest.raises(ValueError, match=r"learned.*model\.steps=null"):
        Learned().check(continuous)
    for variance in (FixedSmall(), Learned()):
        with pytest.raises(ValueError, match=r"model\.steps=1"):
            variance.check(one_step)
    FixedLarge().check(one_step)
    with pytest.raises(ValueError, match="std=0"):
        GaussianData(0.0, torch.zeros(1, 2, 2))
