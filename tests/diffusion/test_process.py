"""The forward process: its closed form, the slips that are made in deriving it, its posterior."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from genlab.diffusion.beta_tables import CosineBetas, LinearBetas
from genlab.diffusion.process import (
    Process,
    alpha_sigma,
    diffuse,
    posterior,
    posterior_coefficients,
    step_fraction,
)
from genlab.diffusion.schedule_ends import Between, ZeroTerminalSNR
from genlab.diffusion.schedules import Cosine, Linear, LinearLogSNR, NoiseSchedule, Sigmoid

T = 1000
TIMES = torch.arange(1, T + 1, dtype=torch.float64) / T
BETAS = LinearBetas(T).betas
TRUTH = 1 - torch.cumprod(1 - BETAS, 0)


@pytest.mark.parametrize("table", [LinearBetas(T), CosineBetas(T), CosineBetas(17)])
def test_steps_of_noise_add_up_to_the_closed_form(table: Any) -> None:
    steps = len(table.betas)
    process = Process(table, steps)
    mean, variance = 1.0, 0.0
    for i, beta in enumerate(table.betas.tolist(), 1):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        t = torch.tensor([i / steps], dtype=torch.float64)
        alpha, sigma = alpha_sigma(process.log_snr(t))
        assert abs(float(alpha) - mean) < 1e-12
        assert abs(float(sigma) ** 2 - variance) < 1e-12


def test_the_variance_is_not_the_sum_of_the_betas() -> None:
    added = BETAS.cumsum(0)
    assert float(added[-1]) == pytest.approx(10.05, abs=1e-6)
    passes = int((added > 1).nonzero()[0]) + 1
    assert passes == 313
    assert float(TRUTH[passes - 1]) == pytest.approx(0.634, abs=5e-4)
    assert (TRUTH < 1).all()
    # Two steps: the second shrinks the noise of the first.
    first, second = (1 - BETAS[:2]).tolist()
    assert float(TRUTH[1]) == pytest.approx(second * (1 - first) + (1 - second), abs=1e-15)


def test_the_last_line_has_alpha_bar_not_alpha() -> None:
    wrong, right = BETAS[-1], TRUTH[-1]
    assert float(wrong) == pytest.approx(0.02)  # the last image would be 2 % noise
    assert float(right) == pytest.approx(0.99996, abs=1e-5)


def test_standard_deviations_do_not_add() -> None:
    added = 0.0
    for beta in BETAS.tolist():
        added = math.sqrt(1 - beta) * added + math.sqrt(beta)
    assert added == pytest.approx(14.97, abs=5e-3)
    assert float(TRUTH[-1].sqrt()) < 1
    # Sampled: x_2 of x_0 = 0 in two steps.
    torch.manual_seed(0)
    a, b = 0.3, 0.6
    z = torch.randn(2, 200_000, dtype=torch.float64)
    x = math.sqrt(1 - b) * math.sqrt(a) * z[0] + math.sqrt(b) * z[1]
    truth = 1 - (1 - a) * (1 - b)
    assert float(x.var()) == pytest.approx(truth, abs=4 * truth * math.sqrt(2 / 200_000))
    assert math.sqrt((1 - b) * a) + math.sqrt(b) > math.sqrt(truth) + 0.2


SCHEDULES = [Linear(), Cosine(), Sigmoid(), LinearLogSNR(), ZeroTerminalSNR(LinearBetas(T))]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_posterior_is_the_product_of_two_gaussians(schedule: NoiseSchedule) -> None:
    process = Process(schedule, T)
    torch.manual_seed(0)
    t = TIMES[[1, 2, 10, 300, 998, 999]]
    s = torch.where(torch.arange(6) % 2 == 0, process.previous(t), t / 2)
    x0, x_t = torch.randn(2, 6, 1, 2, 2, dtype=torch.float64)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (alpha_sigma(process.log_snr(r)) for r in (s, t))
    # q(x_t | x_s) = N(a x_s, b), times q(x_s | x_0): precisions add.
    a = alpha_t / alpha_s
    b = sigma_t**2 - a**2 * sigma_s**2
    precision = 1 / sigma_s**2 + a**2 / b

    def images(x: Tensor) -> Tensor:
        return x.reshape(6, 1, 1, 1)

    mean = images(alpha_s / sigma_s**2) * x0 + images(a / b) * x_t
    found = posterior(x0, x_t, process.log_snr(s), process.log_snr(t))
    torch.testing.assert_close(found.mean, mean / images(precision), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.variance, 1 / precision, rtol=1e-9, atol=0)


def test_the_posterior_is_the_papers() -> None:
    process = Process(LinearBetas(T), T)
    t = TIMES[1:]
    from_x0, from_x_t, variance = posterior_coefficients(
        process.log_snr(process.previous(t)), process.log_snr(t)
    )
    alpha_bar, beta = torch.cumprod(1 - BETAS, 0), BETAS[1:]
    before, now = alpha_bar[:-1], alpha_bar[1:]
    torch.testing.assert_close(from_x0, before.sqrt() * beta / (1 - now), rtol=1e-9, atol=0)
    torch.testing.assert_close(
        from_x_t, (1 - beta).sqrt() * (1 - before) / (1 - now), rtol=1e-9, atol=0
    )
    torch.testing.assert_close(variance, beta * (1 - before) / (1 - now), rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_noising_and_stepping_back_is_noising_less(schedule: NoiseSchedule) -> None:
    process = Process(schedule, T)
    before, now = (process.log_snr(t) for t in (process.previous(TIMES), TIMES))
    from_x0, from_x_t, variance = posterior_coefficients(before, now)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = alpha_sigma(before), alpha_sigma(now)
    torch.testing.assert_close(from_x0 + from_x_t * alpha_t, alpha_s, rtol=1e-12, atol=1e-12)
    spread = (from_x_t * sigma_t).square() + variance
    torch.testing.assert_close(spread, sigma_s.square(), rtol=1e-9, atol=1e-15)


def test_the_first_step_leads_back_to_the_data() -> None:
    process = Process(Linear(), T)
    first = torch.tensor([1 / T], dtype=torch.float64)
    assert process.previous(first) == 0 and process.log_snr(process.previous(first)) == torch.inf
    x0, x_t = torch.randn(2, 1, 3, 4, 4)
    clean = posterior(x0, x_t, process.log_snr(first * 0), process.log_snr(first))
    assert torch.equal(clean.mean, x0) and clean.variance == 0
    assert torch.equal(diffuse(x0, x_t, process.log_snr(first * 0)), x0)
    assert step_fraction(torch.tensor([torch.inf]), process.log_snr(first)) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_images_keep_their_precision(dtype: torch.dtype) -> None:
    x0, eps = torch.randn(2, 4, 3, 2, 2).to(dtype)
    log_snr = torch.tensor([torch.inf, 10.0, -10.0, -torch.inf])
    x_t = diffuse(x0, eps, log_snr)
    assert x_t.dtype == dtype
    assert torch.equal(x_t[0], x0[0]) and torch.equal(x_t[3], eps[3])
    assert posterior(x0, x_t, log_snr[:1], log_snr[1:2]).mean.dtype == dtype


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_every_step_is_equally_likely(steps: int) -> None:
    process = Process(LinearLogSNR(), steps)
    u = (torch.arange(10 * steps, dtype=torch.float64) + 0.5) / (10 * steps)
    values, counts = process.times(u).unique(return_counts=True)
    torch.testing.assert_close(values, torch.arange(1, steps + 1).double() / steps)
    assert (counts == 10).all()
    assert float(values[0]) == process.first and process.times(torch.zeros(1)) == values[0]
    assert process.times(torch.tensor([1 - 2**-53]).double()) == 1
    before = process.previous(values)
    torch.testing.assert_close(before, values - 1 / steps)
    finite = torch.isfinite(process.log_snr(before))
    assert finite.tolist() == [False] + [True] * (steps - 1)


def test_continuous_time_has_every_time() -> None:
    process = Process(LinearLogSNR(), None)
    u = torch.rand(9, dtype=torch.float64)
    assert torch.equal(process.times(u), u) and process.first == 0
    assert process.log_snr(torch.zeros(1)) == 13


class Rising(NoiseSchedule):
    def curve(self, u: Tensor) -> Tensor:
        return 10 * u


class Waving(NoiseSchedule):
    def curve(self, u: Tensor) -> Tensor:
        return -u + torch.sin(20 * u)


class Undefined(NoiseSchedule):
    def curve(self, u: Tensor) -> Tensor:
        return torch.log(-u)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "10"])
def test_a_number_of_steps_that_is_none_is_refused(steps: Any) -> None:
    with pytest.raises(ValueError, match=r"^steps=.*: give a whole number of at least 1$"):
        Process(Linear(), steps)


@pytest.mark.parametrize("schedule", [Rising(), Waving(), Undefined()])
def test_a_schedule_that_does_not_fall_is_refused(schedule: NoiseSchedule) -> None:
    with pytest.raises(ValueError, match=rf"^noise_schedule={type(schedule).__name__}"):
        Process(schedule, T)


@pytest.mark.parametrize(
    "schedule", [Linear(), Between(Cosine(), log_snr_max=9), ZeroTerminalSNR(LinearLogSNR())]
)
def test_continuous_time_needs_finite_ends(schedule: NoiseSchedule) -> None:
    with pytest.raises(ValueError, match=r"^steps=null: .*log_snr_max and model.log_snr_min"):
        Process(schedule, None)
    Process(schedule, T)
