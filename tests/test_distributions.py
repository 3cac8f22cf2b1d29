"""Pixel distributions: they sum to one, are stable, and samples follow the density."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genlab.distributions import (
    ContinuousBernoulli,
    DiscretizedGaussian,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
)


def levels(low: float, high: float, count: int = 256, dtype: torch.dtype = torch.float32) -> Tensor:
    return low + (high - low) * torch.arange(count, dtype=dtype) / (count - 1)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0)])
@given(loc=st.floats(-3, 3), log_scale=st.floats(-7, 2))
def test_the_levels_of_a_discretized_logistic_sum_to_one(
    low: float, high: float, loc: float, log_scale: float
) -> None:
    d = DiscretizedLogistic(torch.tensor(loc), torch.tensor(log_scale), low, high)
    log_prob = d.log_prob(levels(low, high))
    assert torch.isfinite(log_prob).all()
    # float32 rounds the grid itself, which a scale of a tenth of a bin feels
    assert float(log_prob.exp().sum()) == pytest.approx(1, abs=3e-5)


@given(loc=st.floats(-3, 3), log_scale=st.floats(-7, 2))
def test_the_levels_sum_to_one_to_high_precision_in_float64(loc: float, log_scale: float) -> None:
    parameters = torch.tensor([loc, log_scale], dtype=torch.float64)
    d = DiscretizedLogistic(parameters[0], parameters[1], -1.0, 1.0)
    masses = d.log_prob(levels(-1, 1, dtype=torch.float64)).exp()
    assert float(masses.sum()) == pytest.approx(1, abs=1e-12)


def test_half_a_bin_is_one_255th_on_the_symmetric_grid() -> None:
    d = DiscretizedLogistic(torch.tensor(0.0), torch.tensor(0.0), -1.0, 1.0)
    assert d.bin_width / 2 == pytest.approx(1 / 255)


def test_a_mass_is_the_difference_of_two_logistic_functions() -> None:
    x, loc, scale = 100 / 255, 0.37, 0.05
    d = DiscretizedLogistic(torch.tensor(loc).double(), torch.tensor(scale).double().log())
    cdf = [1 / (1 + math.exp(-(x + half - loc) / scale)) for half in (0.5 / 255, -0.5 / 255)]
    assert float(d.log_prob(torch.tensor(x).double())) == pytest.approx(math.log(cdf[0] - cdf[1]))


def test_log_prob_and_its_gradient_are_finite_at_scale_e_to_the_minus_7() -> None:
    loc = torch.zeros(256, requires_grad=True)
    log_scale = torch.full((256,), -7.0, requires_grad=True)
    log_prob = DiscretizedLogistic(loc, log_scale, -1.0, 1.0).log_prob(levels(-1, 1))
    log_prob.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(loc.grad).all() and torch.isfinite(log_scale.grad).all()
    # a tail falls by one scale per scale: the far end is 1096 scales away, not at -inf
    assert float(log_prob.detach().min()) < -1000


@pytest.mark.parametrize("log_scale", [-7.0, -4.0, -1.0, 1.0])
@pytest.mark.parametrize("loc", [-0.2, 0.0, 0.3, 1.4])
def test_the_mean_is_within_half_a_level_of_the_exact_one(loc: float, log_scale: float) -> None:
    d = DiscretizedLogistic(torch.tensor(loc), torch.tensor(log_scale))
    exact = (d.log_prob(levels(0, 1)).exp() * levels(0, 1)).sum()
    assert float(d.mean) == pytest.approx(float(exact), abs=0.51 / 255)


def test_samples_have_the_frequencies_of_the_masses() -> None:
    torch.manual_seed(0)
    d = DiscretizedLogistic(torch.tensor(0.9), torch.tensor(-1.0), levels=5)
    index = (d.sample((40_000,)) * 4).round().long()
    frequencies = torch.bincount(index, minlength=5) / 40_000
    torch.testing.assert_close(
        frequencies, d.log_prob(levels(0, 1, 5)).exp(), atol=4 * 0.5 / 200, rtol=0
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@given(loc=st.floats(-3, 3), log_scale=st.floats(-7, 7))
def test_the_levels_of_a_discretized_gaussian_sum_to_one(
    dtype: torch.dtype, tolerance: float, loc: float, log_scale: float
) -> None:
    d = DiscretizedGaussian(
        torch.tensor(loc, dtype=dtype), torch.tensor(log_scale, dtype=dtype), -1.0, 1.0
    )
    # the grid in float64 all the same: rounded to float32 it has bins of unequal width
    log_prob = d.log_prob(levels(-1, 1, dtype=torch.float64))
    assert torch.isfinite(log_prob).all()
    assert float(log_prob.exp().sum()) == pytest.approx(1, abs=tolerance)


def test_a_gaussian_mass_is_the_difference_of_two_normal_functions() -> None:
    loc, scale = torch.tensor([0.37, 0.05], dtype=torch.float64)
    normal = torch.distributions.Normal(loc, scale)
    for x in (70 / 255, 94 / 255, 100 / 255, 1.0, 0.0):
        ends = [-math.inf if x == 0 else x - 0.5 / 255, math.inf if x == 1 else x + 0.5 / 255]
        masses = [float(normal.cdf(torch.tensor(e, dtype=torch.float64))) for e in ends]
        d = DiscretizedGaussian(loc, scale.log())
        actual = float(d.log_prob(torch.tensor(x, dtype=torch.float64)).exp())
        assert actual == pytest.approx(masses[1] - masses[0], rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [-7.0, 7.0])
def test_a_discretized_gaussian_and_its_gradient_are_finite_far_away(
    dtype: torch.dtype, scale: float
) -> None:
    loc = torch.linspace(-3, 3, 256, dtype=dtype).requires_grad_()
    log_scale = torch.full((256,), scale, dtype=dtype, requires_grad=True)
    log_prob = DiscretizedGaussian(loc, log_scale, -1.0, 1.0).log_prob(levels(1, -1, dtype=dtype))
    assert log_prob.dtype == dtype and torch.isfinite(log_prob).all()
    log_prob.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loc.grad).all() and torch.isfinite(log_scale.grad).all()
    if scale == -7:
        # 3.6 / e^-7 scales away: half the square of that, at the far end
        assert float(log_prob.detach().min()) < -1e6


@pytest.mark.parametrize("log_scale", [-7.0, -4.0, -1.0, 1.0])
@pytest.mark.parametrize("loc", [-0.2, 0.0, 0.3, 1.4])
def test_the_mean_of_a_discretized_gaussian_is_within_half_a_level(
    loc: float, log_scale: float
) -> None:
    d = DiscretizedGaussian(torch.tensor(loc), torch.tensor(log_scale))
    exact = (d.log_prob(levels(0, 1)).exp() * levels(0, 1)).sum()
    assert float(d.mean) == pytest.approx(float(exact), abs=0.51 / 255)


def test_samples_of_a_discretized_gaussian_have_the_frequencies_of_the_masses() -> None:
    torch.manual_seed(0)
    d = DiscretizedGaussian(torch.tensor(0.9), torch.tensor(-1.0), levels=5)
    index = (d.sample((40_000,)) * 4).round().long()
    frequencies = torch.bincount(index, minlength=5) / 40_000
    torch.testing.assert_close(
        frequencies, d.log_prob(levels(0, 1, 5)).exp(), atol=4 * 0.5 / 200, rtol=0
    )


def mixture(channels: int, components: int, count: int, pixels: int = 1) -> tuple[Tensor, int]:
    torch.manual_seed(1)
    width = DiscretizedLogisticMixture.parameters_per_pixel(components, channels)
    return torch.randn(count, width, pixels, pixels), width


def test_a_mixture_needs_ten_numbers_per_component_for_colour_and_three_for_grey() -> None:
    assert DiscretizedLogisticMixture.parameters_per_pixel(10, 3) == 100
    assert DiscretizedLogisticMixture.parameters_per_pixel(10, 1) == 30


@pytest.mark.parametrize(("channels", "count"), [(1, 256), (2, 16), (3, 6)])
def test_the_colours_of_a_mixture_sum_to_one(channels: int, count: int) -> None:
    parameters, _ = mixture(channels, 4, 1)
    grid = torch.cartesian_prod(*[levels(0, 1, count)] * channels).reshape(-1, channels, 1, 1)
    d = DiscretizedLogisticMixture(parameters.expand(len(grid), -1, 1, 1), 4, channels, count)
    assert float(d.log_prob(grid).exp().sum()) == pytest.approx(1, abs=1e-5)


def test_a_mixture_of_one_grey_component_is_a_discretized_logistic() -> None:
    torch.manual_seed(0)
    parameters, x = torch.randn(3, 3, 2, 2), torch.randint(256, (3, 1, 2, 2)) / 255
    single = DiscretizedLogistic(parameters[:, 1:2], parameters[:, 2:3], -1.0, 1.0)
    expected = single.log_prob(2 * x - 1).flatten(1).sum(1)
    torch.testing.assert_close(DiscretizedLogisticMixture(parameters, 1, 1).log_prob(x), expected)


def test_a_coupled_mixture_equals_its_formula_written_out() -> None:
    parameters, _ = mixture(3, 2, 1)
    x = torch.tensor([0.2, 0.6, 0.8]).mul(255).round() / 255
    raw = parameters.double().flatten().tolist()
    y = [2 * float(v) - 1 for v in x]
    weights = np.exp(raw[:2]) / np.exp(raw[:2]).sum()
    total = 0.0
    for k in range(2):
        loc, log_scale = raw[2 + 3 * k : 5 + 3 * k], raw[8 + 3 * k : 11 + 3 * k]
        a, b, c = np.tanh(raw[14 + 3 * k : 17 + 3 * k])
        means = [loc[0], loc[1] + a * y[0], loc[2] + b * y[0] + c * y[1]]
        mass = weights[k]
        for value, mean, s in zip(y, means, np.exp(log_scale), strict=True):
            ends = [1 / (1 + math.exp(-(value + h - mean) / s)) for h in (1 / 255, -1 / 255)]
            mass *= ends[0] - ends[1]
        total += mass
    d = DiscretizedLogisticMixture(parameters, 2, 3)
    assert float(d.log_prob(x.reshape(1, 3, 1, 1))) == pytest.approx(math.log(total), abs=1e-4)


def test_mixture_samples_have_the_frequencies_of_the_joint_masses() -> None:
    parameters, _ = mixture(2, 3, 1)
    n, count = 40_000, 3
    d = DiscretizedLogisticMixture(parameters.expand(n, -1, 1, 1), 3, 2, count)
    index = (d.sample().reshape(n, 2) * (count - 1)).round().long()
    frequencies = torch.bincount(index[:, 0] * count + index[:, 1], minlength=count**2) / n
    grid = torch.cartesian_prod(*[levels(0, 1, count)] * 2).reshape(-1, 2, 1, 1)
    few = DiscretizedLogisticMixture(parameters.expand(len(grid), -1, 1, 1), 3, 2, count)
    torch.testing.assert_close(frequencies, few.log_prob(grid).exp(), atol=0.01, rtol=0)


def test_the_mean_of_a_grey_mixture_is_the_mean_of_its_masses() -> None:
    parameters, _ = mixture(1, 3, 1)
    d = DiscretizedLogisticMixture(parameters.expand(256, -1, 1, 1), 3, 1)
    grid = levels(0, 1).reshape(-1, 1, 1, 1)
    exact = (d.log_prob(grid).exp() * grid.flatten()).sum()
    assert float(d.mean[0]) == pytest.approx(float(exact), abs=0.5 / 255)


@pytest.mark.parametrize("logit", [-40.0, -20.0, -3.0, -0.06, -0.04, 0.0, 1e-3, 0.049, 0.051, 30.0])
def test_the_continuous_bernoulli_is_a_density_with_its_stated_mean(logit: float) -> None:
    d = ContinuousBernoulli(torch.tensor(logit))
    nodes, weights = np.polynomial.legendre.leggauss(100)
    x = (nodes + 1) / 2
    masses = weights / 2 * d.log_prob(torch.tensor(x)).exp().numpy()
    assert masses.sum() == pytest.approx(1, abs=5e-6)
    assert float(d.mean) == pytest.approx((x * masses).sum(), abs=5e-6)


def test_the_continuous_bernoulli_agrees_with_torch_where_torch_does_not_clamp() -> None:
    logits, x = torch.linspace(-8, 8, 41).double(), torch.rand(41).double()
    theirs = torch.distributions.ContinuousBernoulli(logits=logits)
    ours = ContinuousBernoulli(logits)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), atol=1e-5, rtol=0)


def test_continuous_bernoulli_samples_have_the_stated_mean() -> None:
    torch.manual_seed(0)
    d = ContinuousBernoulli(torch.tensor([-40.0, -2.0, 0.0, 5.0]))
    draws = d.sample((20_000,))
    assert draws.min() >= 0 and draws.max() <= 1
    torch.testing.assert_close(draws.mean(0), d.mean, atol=0.009, rtol=0)
