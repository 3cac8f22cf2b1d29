"""The laws of noise schedules, held by every YAML in conf/model/noise_schedule; their papers."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler, rescale_zero_terminal_snr
from omegaconf import OmegaConf
from scipy.stats import truncnorm
from torch import Tensor

from genlab.config.build import build
from genlab.config.check import Config, check
from genlab.config.compose import compose
from genlab.diffusion import schedules
from genlab.diffusion.beta_tables import BetaTable, CosineBetas, LinearBetas, ScaledLinearBetas
from genlab.diffusion.process import Process
from genlab.diffusion.schedule_ends import Between, ZeroTerminalSNR
from genlab.diffusion.schedules import NoiseSchedule

FOLDER = Path(__file__).parents[2] / "conf/model/noise_schedule"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
T = 1000
# Between the times of a table, where its slope jumps.
INSIDE = (torch.arange(20, 980, 17, dtype=torch.float64) + 0.5) / T
TIMES = torch.arange(1, T + 1, dtype=torch.float64) / T


def component(name: str, *overrides: str) -> NoiseSchedule:
    return build(node(name, *overrides), "model.noise_schedule")


@cache
def node(name: str, *overrides: str) -> Config:
    chosen = [f"+model.steps={T}", *(f"model.noise_schedule.{o}" for o in overrides)]
    composed = compose(chosen, f"model/noise_schedule/{name}")
    config = OmegaConf.to_container(composed, resolve=True)
    return check(config["model"]["noise_schedule"], "model.noise_schedule")


def alpha_bar(schedule: NoiseSchedule, t: Tensor = TIMES) -> Tensor:
    return torch.sigmoid(schedule.log_snr(t).detach())


@pytest.mark.parametrize("name", NAMES)
def test_the_log_snr_falls_from_data_to_noise(name: str) -> None:
    schedule = component(name)
    values = schedule.log_snr(torch.linspace(0, 1, 5001, dtype=torch.float64))
    assert values.dtype == torch.float64
    assert (values[1:] < values[:-1]).all()
    assert values[0] > 9 and values[-1] < -5
    grid = torch.rand(2, 3, dtype=torch.float32)
    assert schedule.log_snr(grid).shape == (2, 3)
    torch.testing.assert_close(schedule.log_snr(grid)[1], schedule.log_snr(grid[1]))
    for steps in (1, 2, 7, T):
        assert Process(schedule, steps).steps == steps


@pytest.mark.parametrize("name", NAMES)
def test_the_slope_is_the_derivative(name: str) -> None:
    schedule, step = component(name), 1e-6
    rise = schedule.log_snr(INSIDE + step) - schedule.log_snr(INSIDE - step)
    torch.testing.assert_close(schedule.slope(INSIDE), rise / (2 * step), rtol=1e-6, atol=0)
    with torch.inference_mode():
        assert torch.equal(schedule.slope(INSIDE.clone()), schedule.slope(INSIDE).detach())


@pytest.mark.parametrize("name", NAMES)
def test_time_at_is_the_inverse(name: str) -> None:
    schedule = component(name)
    torch.testing.assert_close(schedule.time_at(schedule.log_snr(INSIDE)), INSIDE)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_in_half_precision_keeps_its_schedule(name: str) -> None:
    schedule = component(name)
    before = schedule.log_snr(INSIDE)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(schedule.log_snr(INSIDE), before)
    after = schedule.to(torch.bfloat16).log_snr(INSIDE)
    torch.testing.assert_close(after, before, rtol=0, atol=0.1 if name == "learned" else 0)


@pytest.mark.parametrize("name", NAMES)
def test_schedules_share_the_ends_that_they_are_given(name: str) -> None:
    whole = component(name)
    schedule = Between(whole, log_snr_max=8, log_snr_min=-5)
    ends = schedule.log_snr(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([8.0, -5.0]).double(), rtol=0, atol=1e-9)
    assert torch.isfinite(schedule.slope(torch.linspace(0, 1, 101))).all()
    assert not Process(schedule, None).is_discrete
    assert schedule.name == whole.name
    t = whole.time_at(torch.tensor([8.0, -5.0]))
    share = torch.linspace(0, 1, 11, dtype=torch.float64)
    part = whole.log_snr(t[0] + (t[1] - t[0]) * share)
    torch.testing.assert_close(schedule.log_snr(share), part)


@pytest.mark.parametrize("name", ["linear_log_snr", "edm", "learned"])
def test_a_schedule_with_ends_of_its_own_is_itself_between_them(name: str) -> None:
    whole = component(name)
    high, low = whole.log_snr(torch.tensor([0.0, 1.0])).tolist()
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.equal(Between(whole, high, low).log_snr(t), whole.log_snr(t))
    moved = component(name, "log_snr_max=8", "log_snr_min=-5").log_snr(t)
    torch.testing.assert_close(moved[[0, -1]], torch.tensor([8.0, -5.0]).double())


def test_the_cut_ends_of_a_learned_schedule_stay_where_they_are_in_value_and_gradient() -> None:
    schedule = Between(schedules.Learned(hidden=16), 5, -4)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in schedule.parameters():
            weight.add_(3 * torch.randn_like(weight))
    values = schedule.log_snr(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(values[[0, 2]], torch.tensor([5.0, -4.0]).double())
    at_ends = torch.autograd.grad(values[[0, 2]].sum(), schedule.parameters(), retain_graph=True)
    inside = torch.autograd.grad(values[1], schedule.parameters())
    assert max(float(g.abs().max()) for g in at_ends) < 1e-6
    assert all((g != 0).any() for g in inside)


def test_a_cut_of_a_cut_is_the_inner_cut() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    cosine = schedules.Cosine()
    twice = Between(Between(cosine, log_snr_min=-20), 8, -5)
    torch.testing.assert_close(twice.log_snr(t), Between(cosine, 8, -5).log_snr(t))


@pytest.mark.parametrize("name", NAMES)
def test_any_schedule_bends_to_a_zero_terminal_snr(name: str) -> None:
    straight = component(name)
    bent = ZeroTerminalSNR(straight)
    assert bent.log_snr(torch.ones(1)) == -torch.inf
    begin = torch.tensor([straight.first], dtype=torch.float64)
    assert torch.equal(straight.log_snr(begin), bent.log_snr(begin))
    if straight.log_snr(torch.ones(1)) > -torch.inf:
        assert (bent.log_snr(TIMES[1:]) < straight.log_snr(TIMES[1:])).all()
    Process(bent, T)
    a, b = (alpha_bar(s).sqrt() for s in (straight, bent))
    first = alpha_bar(straight, begin).sqrt()
    torch.testing.assert_close(b, (a - a[-1]) * first / (first - a[-1]), rtol=0, atol=1e-12)


def test_the_closed_forms_are_the_papers() -> None:
    u = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)

    def same(schedule: NoiseSchedule, alpha_squared: Tensor) -> None:
        expected = torch.log(alpha_squared / (1 - alpha_squared))
        torch.testing.assert_close(schedule.log_snr(u), expected, rtol=1e-12, atol=1e-11)

    same(schedules.Linear(), torch.exp(-0.1 * u - 19.9 * u**2 / 2))
    root = math.sqrt(0.1) + u * (math.sqrt(20) - math.sqrt(0.1))
    integral = (root**3 - 0.1**1.5) / 3 / (math.sqrt(20) - math.sqrt(0.1))
    same(schedules.Quadratic(), torch.exp(-integral))
    f = [torch.cos((x + 0.008) / 1.008 * math.pi / 2) ** 2 for x in (u, torch.zeros(()).double())]
    same(schedules.Cosine(), f[0] / f[1])
    half_tangent = -2 * torch.log(torch.tan(math.pi * u / 2))
    torch.testing.assert_close(schedules.Cosine(s=0).log_snr(u), half_tangent)
    torch.testing.assert_close(schedules.Trigonometric().log_snr(u), half_tangent)
    same(schedules.RectifiedFlow(), (1 - u) ** 2 / ((1 - u) ** 2 + u**2))
    for shift in (0.5, 3.0):
        shifted = shift * u / (1 + (shift - 1) * u)
        moved = schedules.RectifiedFlow().log_snr(shifted)
        torch.testing.assert_close(schedules.RectifiedFlow(shift).log_snr(u), moved)
        wider = half_tangent - 2 * math.log(shift)
        torch.testing.assert_close(schedules.Trigonometric(shift).log_snr(u), wider)
    for start, end, tau in ((-3.0, 3.0, 1.0), (-3.0, 3.0, 0.5), (0.0, 3.0, 0.7)):
        low, x, high = (
            torch.sigmoid((start + v * (end - start)) / tau) for v in (u * 0, u, u * 0 + 1)
        )
        same(schedules.Sigmoid(start, end, tau), (high - x) / (high - low))


def test_cosine_and_sigmoid_are_exact_at_infinity_and_far_from_it() -> None:
    paths = (schedules.RectifiedFlow(), schedules.Trigonometric())
    cuts = (schedules.Cosine(), schedules.Sigmoid(), schedules.Sigmoid(tau=1e-3))
    for schedule in (*paths, *cuts):
        assert schedule.log_snr(torch.tensor([0.0, 1.0])).tolist() == [math.inf, -math.inf]
    # Half of a cosine is its own mirror image without the offset, and so is a logistic.
    u = torch.tensor([1e-300, 1e-12, 1e-3, 0.3], dtype=torch.float64)
    for schedule in (schedules.Cosine(s=0), schedules.Sigmoid()):
        torch.testing.assert_close(schedule.log_snr(u[2:]), -schedule.log_snr(1 - u[2:]))
        assert torch.isfinite(schedule.log_snr(u)).all()


@pytest.mark.parametrize(("sigma_min", "sigma_max"), [(0.002, 80.0), (1e-6, 1e5)])
def test_edm_draws_its_noise_from_a_cut_log_normal(sigma_min: float, sigma_max: float) -> None:
    schedule = schedules.EDM(sigma_min=sigma_min, sigma_max=sigma_max)
    ends = [(math.log(s) + 1.2) / 1.2 for s in (sigma_min, sigma_max)]
    u = np.linspace(0, 1, 41)
    log_sigma = truncnorm.ppf(u, *ends, loc=-1.2, scale=1.2)
    ours = -schedule.log_snr(torch.from_numpy(u)).numpy() / 2
    np.testing.assert_allclose(ours, log_sigma, atol=1e-9)
    assert ours[[0, -1]] == pytest.approx([math.log(sigma_min), math.log(sigma_max)], abs=1e-12)


@pytest.mark.parametrize(
    ("table", "curve"),
    [
        (lambda T: LinearBetas(T), schedules.Linear()),
        (lambda T: ScaledLinearBetas(T), schedules.Quadratic(0.85, 12.0)),
        (lambda T: CosineBetas(T), schedules.Cosine()),
    ],
    ids=["linear", "scaled_linear", "cosine"],
)
def test_a_table_of_many_betas_is_its_curve(table: Any, curve: NoiseSchedule) -> None:
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    errors = [float((alpha_bar(table(n), t) - alpha_bar(curve, t)).abs().max()) for n in (500, T)]
    assert errors[1] < 2e-3
    if not isinstance(curve, schedules.Cosine):
        assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    else:  # whose betas are made from the curve: only those that are clipped differ
        assert errors[1] < 1e-12


@pytest.mark.parametrize("steps", [20, 100, 1000])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (LinearBetas, {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
        (
            ScaledLinearBetas,
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
        (CosineBetas, {"beta_schedule": "squaredcos_cap_v2"}),
    ],
    ids=["linear", "scaled_linear", "cosine"],
)
def test_tables_are_those_of_diffusers(ours: Any, theirs: dict[str, Any], steps: int) -> None:
    unscaled = {} if ours is CosineBetas else {"rescale": False}
    schedule: BetaTable = ours(steps, **unscaled)
    scheduler = DDPMScheduler(num_train_timesteps=steps, **theirs)
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    expected = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(alpha_bar(schedule, t), expected, rtol=0, atol=1e-5)
    exact = (1 - schedule.betas).cumprod(0)
    torch.testing.assert_close(alpha_bar(schedule, t), exact, rtol=1e-12, atol=1e-15)
    bent = ZeroTerminalSNR(schedule)
    expected = (1 - rescale_zero_terminal_snr(schedule.betas)).cumprod(0)
    torch.testing.assert_close(alpha_bar(bent, t), expected, rtol=0, atol=1e-12)
    assert alpha_bar(bent, t)[-1] == 0


def test_betas_without_the_factor_leave_the_image_in_the_noise() -> None:
    for steps, left in ((100, 0.364), (200, 0.132)):
        trap, cured = LinearBetas(steps, rescale=False), LinearBetas(steps)
        assert float(alpha_bar(trap, torch.ones(1))) == pytest.approx(left, abs=5e-4)
        assert float(alpha_bar(cured, torch.ones(1))) < 4e-5


def test_a_float32_product_gets_the_first_variance_wrong() -> None:
    table = CosineBetas(4000)
    exact = 1 - alpha_bar(table, torch.arange(1, 4001, dtype=torch.float64) / 4000)
    single = 1 - (1 - table.betas.float()).cumprod(0).double()
    assert float(((single - exact) / exact).abs().max()) == pytest.approx(2.9e-3, rel=0.05)


def test_a_table_is_exact_on_its_times_and_a_line_between() -> None:
    table = LinearBetas(10, beta_end=0.005)
    at = table.log_snr(torch.arange(1, 11, dtype=torch.float64) / 10)
    torch.testing.assert_close(at, table.table, rtol=1e-14, atol=0)
    between = table.log_snr(torch.tensor([0.25, 0.95], dtype=torch.float64))
    expected = torch.stack([(table.table[1] + table.table[2]), (table.table[8] + table.table[9])])
    torch.testing.assert_close(between, expected / 2)
    early = torch.sigmoid(-table.log_snr(torch.tensor([0.0, 0.001, 0.002]).double()))
    assert early[0] == 0 and float(early[2] / early[1]) == pytest.approx(2, rel=1e-3)


def test_a_learned_schedule_learns_between_its_ends() -> None:
    schedule = schedules.Learned(hidden=16)
    line = schedules.LinearLogSNR()
    assert (schedule.log_snr(INSIDE) - line.log_snr(INSIDE)).abs().max() < 0.5
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in schedule.parameters():
            weight.add_(3 * torch.randn_like(weight))
    values = schedule.log_snr(torch.linspace(0, 1, 1001))
    assert (values[1:] < values[:-1]).all()
    assert (values[0], values[-1]) == (13, -9)
    assert (values - line.log_snr(torch.linspace(0, 1, 1001))).abs().max() > 0.1
    for function in (schedule.log_snr, schedule.slope):
        gradients = torch.autograd.grad(function(INSIDE).square().sum(), schedule.parameters())
        assert all(torch.isfinite(g).all() and (g != 0).any() for g in gradients)
    with torch.no_grad():
        assert not schedule.slope(INSIDE).requires_grad


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.Linear(beta_min=0), "beta_min=0: give a finite number, above 0"),
        (lambda: schedules.Linear(beta_max=0.01), "beta_max=0.01: .* at least 0.1"),
        (lambda: schedules.Quadratic(beta_max=math.inf), "beta_max=inf"),
        (lambda: schedules.Cosine(s=-0.1), "s=-0.1"),
        (lambda: schedules.Sigmoid(end=-4), "end=-4: .* above -3"),
        (lambda: schedules.Sigmoid(tau=0), "tau=0"),
        (lambda: schedules.RectifiedFlow(shift=0), "shift=0"),
        (lambda: schedules.Trigonometric(shift=-1), "shift=-1"),
        (lambda: schedules.EDM(P_std=0), "P_std=0"),
        (lambda: schedules.EDM(sigma_min=0), "sigma_min=0"),
        (lambda: schedules.EDM(sigma_max=0.001), "sigma_max=0.001: .* above 0.002"),
        (lambda: schedules.Learned(hidden=0), "hidden=0"),
        (lambda: schedules.LinearLogSNR(-9, 13), "log_snr_max=-9, log_snr_min=13"),
        (lambda: Between(schedules.Linear(), math.nan), "log_snr_max=nan"),
        (lambda: Between(schedules.Linear(), -9, 13), "log_snr_max=-9, log_snr_min=13"),
        (
            lambda: Between(schedules.LinearLogSNR(), 14),
            "log_snr_max=14: LinearLogSNR runs",
        ),
        (lambda: LinearBetas(0), "steps=0: give a whole number of at least 1"),
        (lambda: LinearBetas(beta_start=0), "beta_start=0: a beta is above 0 and below 1"),
        (lambda: LinearBetas(beta_start=-0.1), "beta_start=-0.1: a beta"),
        (lambda: LinearBetas(beta_end=1.0), "beta_end=1: a beta is above 0 and below 1; give"),
        (lambda: LinearBetas(10), r"beta_end=0.02: rescaled by 1000/steps=100 it is 2, .* more st"),
        (lambda: LinearBetas(10, beta_end=1.5, rescale=False), "beta_end=1.5: a beta"),
        (lambda: ScaledLinearBetas(beta_start=math.nan), "beta_start=nan"),
        (lambda: CosineBetas(max_beta=1.0), "max_beta=1: a beta is above 0 and below 1"),
        (lambda: CosineBetas(s=-1), "s=-1"),
    ],
)
def test_a_wrong_value_is_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_ends_beyond_the_curve_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^log_snr_min=-9: ScaledLinearBetas runs from inf to -5\.364"
    ):
        Between(ScaledLinearBetas(), log_snr_min=-9)
