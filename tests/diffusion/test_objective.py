"""One weighted error: what the network predicts does not change it, and times do not bias it."""

from __future__ import annotations

import itertools
import math
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from genlab.config.build import build
from genlab.config.check import check
from genlab.diffusion.beta_tables import LinearBetas
from genlab.diffusion.parameterizations import (
    X0,
    Epsilon,
    Parameterization,
    V,
    Velocity,
    eps_from_x0,
)
from genlab.diffusion.process import Process, alpha_sigma, diffuse, posterior_coefficients
from genlab.diffusion.schedule_ends import Between, ZeroTerminalSNR
from genlab.diffusion.schedules import (
    Cosine,
    Learned,
    Linear,
    LinearLogSNR,
    NoiseSchedule,
    RectifiedFlow,
    Trigonometric,
)
from genlab.diffusion.time_samplers import (
    Importance,
    LogitNormal,
    LowDiscrepancy,
    TimeSampler,
    Uniform,
)
from genlab.diffusion.weightings import (
    P2,
    VLB,
    FlowMatching,
    LogitNormalFlow,
    MinSNR,
    SigmoidWeighting,
    Simple,
    TruncatedSNR,
    Weighting,
)
from genlab.errors import TrainingError
from genlab.seeding import BatchNoise
from genlab.tensors import sum_except_batch

CONF = Path(__file__).parents[2] / "conf/model"
T = 1000
TIMES = torch.arange(1, T + 1, dtype=torch.float64) / T


def files(group: str) -> list[Path]:
    return sorted((CONF / group).glob("*.yaml"))


def component(path: Path) -> Any:
    node = check(OmegaConf.to_container(OmegaConf.load(path)), "model.x")
    return build(node, "model.x")


PARAMETERIZATIONS: list[Parameterization] = [component(path) for path in files("parameterization")]
WEIGHTINGS: list[Weighting] = [component(path) for path in files("weighting")]
PROCESSES = [Process(Linear(), T), Process(LinearBetas(10, 1e-3, 5e-3), 10)]
CONTINUOUS = Process(Between(Linear(), 13, -9), None)


def noisy(process: Process, n: int = 64) -> tuple[Tensor, ...]:
    """x_0, noise, another noise in the place of a network's, and times, in float64."""
    torch.manual_seed(0)
    images = torch.randn(3, n, 2, 3, 3, dtype=torch.float64)
    return (*images, process.times((torch.arange(n) + 0.5) / n))


@pytest.mark.parametrize("kind", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("process", [*PROCESSES, CONTINUOUS])
def test_the_right_output_gives_the_image_back(kind: Parameterization, process: Process) -> None:
    x0, eps, _, t = noisy(process)
    log_snr = process.log_snr(t)
    x_t = diffuse(x0, eps, log_snr)
    back = kind.x0_hat(kind.target(x0, eps, log_snr), x_t, log_snr)
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(eps_from_x0(x0, x_t, log_snr), eps, rtol=0, atol=1e-12)
    assert kind.x0_hat(eps.float(), x_t.float(), log_snr).dtype == torch.float32


@pytest.mark.parametrize("process", [*PROCESSES, CONTINUOUS])
def test_an_output_goes_round_all_kinds_and_comes_back(process: Process) -> None:
    x0, eps, output, t = noisy(process)
    log_snr = process.log_snr(t)
    x_t = diffuse(x0, eps, log_snr)
    v_hat = output
    for kind, other in itertools.pairwise([V(), Epsilon(), Velocity(), X0(), V()]):
        x0_hat = kind.x0_hat(output, x_t, log_snr)
        output = other.target(x0_hat, eps_from_x0(x0_hat, x_t, log_snr), log_snr)
    # relative to the largest number on the way, x0_hat of a noise or the noise of an x0_hat
    tolerance = 1e-12 * float(torch.cosh(log_snr / 2).max())
    torch.testing.assert_close(output, v_hat, rtol=0, atol=tolerance)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda w: type(w).__name__)
@pytest.mark.parametrize("process", [*PROCESSES, CONTINUOUS])
def test_the_loss_does_not_depend_on_what_is_predicted(
    weighting: Weighting, process: Process
) -> None:
    x0, eps, eps_hat, t = noisy(process)
    log_snr = process.log_snr(t)
    x_t = diffuse(x0, eps, log_snr)
    x0_hat = Epsilon().x0_hat(eps_hat, x_t, log_snr)
    log_weight = weighting.log_weight(process, t)
    loss = log_weight.exp() * sum_except_batch((x0 - x0_hat).square())
    for kind in PARAMETERIZATIONS:
        output = kind.target(x0_hat, eps_from_x0(x0_hat, x_t, log_snr), log_snr)
        error = sum_except_batch((kind.target(x0, eps, log_snr) - output).square())
        same = (log_weight + kind.log_scale(log_snr)).exp() * error
        torch.testing.assert_close(same, loss, rtol=1e-10, atol=0)


def test_the_weights_are_the_papers() -> None:
    process = Process(LinearBetas(T), T)
    log_snr = process.log_snr(TIMES)
    snr = log_snr.exp()
    eps_snr, v_snr = (p.log_scale(log_snr).exp() for p in (Epsilon(), V()))
    torch.testing.assert_close(eps_snr, 1 / snr)
    torch.testing.assert_close(v_snr, 1 / (snr + 1))

    def weight(weighting: Weighting) -> Tensor:
        return weighting.log_weight(process, TIMES).exp()

    torch.testing.assert_close(weight(Simple()) * eps_snr, torch.ones(T).double())
    torch.testing.assert_close(weight(MinSNR(3)) * v_snr, snr.clamp(max=3) / (snr + 1))
    torch.testing.assert_close(weight(TruncatedSNR()), snr.clamp(min=1))
    torch.testing.assert_close(weight(P2(2, 0.5)) * eps_snr, 1 / (2 + snr).sqrt())
    torch.testing.assert_close(weight(P2(gamma=0)), snr)
    half = 1 / (1 + torch.exp(log_snr - 0.7))
    torch.testing.assert_close(weight(SigmoidWeighting(0.7)), weight(VLB()) * half)


def test_flow_matching_weighs_the_error_of_the_velocity() -> None:
    process = Process(RectifiedFlow(), T)
    x0, eps, output, t = noisy(process)
    unit = torch.hypot(1 - t, t).reshape(-1, 1, 1, 1)
    time = t.reshape(-1, 1, 1, 1)
    log_snr = process.log_snr(t)
    straight = (1 - time) * x0 + time * eps
    torch.testing.assert_close(diffuse(x0, eps, log_snr) * unit, straight, rtol=0, atol=1e-12)
    published = sum_except_batch((output - (eps - x0)).square())
    kind = Velocity()
    weight = (FlowMatching().log_weight(process, t) + kind.log_scale(log_snr)).exp()
    torch.testing.assert_close(weight, torch.ones_like(weight), rtol=0, atol=1e-12)
    x0_hat = kind.x0_hat(output, straight / unit, log_snr)
    error = sum_except_batch((x0 - x0_hat).square())
    ours = FlowMatching().log_weight(process, t).exp() * error
    torch.testing.assert_close(ours, published, rtol=1e-10, atol=0)


def test_the_velocity_is_the_derivative_of_the_path_and_pi_halves_of_v_on_a_circle() -> None:
    x0, eps, _, _ = noisy(PROCESSES[0])
    t = torch.linspace(0.02, 0.98, 64, dtype=torch.float64)

    def position(schedule: NoiseSchedule, t: Tensor) -> Tensor:
        log_snr = schedule.log_snr(t)
        x_t = diffuse(x0, eps, log_snr)
        straight = sum(alpha_sigma(log_snr)).reshape(-1, 1, 1, 1)
        return x_t / straight if isinstance(schedule, RectifiedFlow) else x_t

    for schedule, kind, factor in (
        (RectifiedFlow(), Velocity(), 1.0),
        (Trigonometric(), V(), math.pi / 2),
    ):
        h = 1e-5
        slope = (position(schedule, t + h) - position(schedule, t - h)) / (2 * h)
        target = kind.target(x0, eps, schedule.log_snr(t))
        torch.testing.assert_close(slope, factor * target, rtol=0, atol=1e-7)


def test_the_times_and_the_weight_of_logit_normal_are_the_published_loss() -> None:
    process = Process(Between(RectifiedFlow(), 60, -60), None)
    weighting = LogitNormalFlow(0.3, 0.8)
    sampler = LogitNormal(0.3, 0.8, uniform_probability=0.01)
    u, importance = sampler.sample(BatchNoise(4000, 0))
    plain = FlowMatching().log_weight(process, u)
    weight = (weighting.log_weight(process, u) - plain).exp() * importance
    # Times of the density have a weight of about 1, the few uniform ones far from it about 0.
    assert float(weight.max()) < 1 / 0.99 + 1e-9
    logit = torch.logit(u)
    mean = float((weight * logit).mean())
    assert float(weight.mean()) == pytest.approx(1, abs=0.001)
    assert mean == pytest.approx(0.3, abs=0.01)
    variance = float((weight * (logit - mean).square()).mean())
    assert math.sqrt(variance) == pytest.approx(0.8, abs=0.01)


def test_the_weight_of_the_bound_is_that_of_its_kl_terms() -> None:
    process = Process(LinearBetas(T), T)
    weight = VLB().log_weight(process, TIMES).exp()
    before, now = process.log_snr(process.previous(TIMES)), process.log_snr(TIMES)
    from_x0, _, variance = posterior_coefficients(before, now)
    expected = T * from_x0.square() / (2 * variance)
    torch.testing.assert_close(weight[1:], expected[1:], rtol=1e-9, atol=0)
    assert float(weight[0]) == pytest.approx(T / (2 * float(variance[1])), rel=1e-12)
    # The mean over t of a unit error telescopes.
    total = (now[0].exp() - now[-1].exp()) / 2
    torch.testing.assert_close(weight[1:].sum() / T, total, rtol=1e-9, atol=0)
    assert torch.isfinite(VLB().log_weight(Process(Linear(), 1), torch.ones(1).double()))


def test_many_steps_have_the_weight_of_continuous_time() -> None:
    schedule, t = CONTINUOUS.schedule, torch.linspace(0.1, 1, 10, dtype=torch.float64)
    exact = VLB().log_weight(CONTINUOUS, t)
    errors = [
        float((VLB().log_weight(Process(schedule, n), t) - exact).abs().max()) for n in (1000, 2000)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.02) and errors[1] < 0.01
    even = Process(LinearLogSNR(), None)
    middle = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    area = VLB().log_weight(even, middle).exp().mean()
    assert float(area) == pytest.approx((math.exp(13) - math.exp(-9)) / 2, rel=1e-6)


@pytest.mark.parametrize("weighting", [VLB(), SigmoidWeighting()])
def test_parts_of_the_bound_do_not_depend_on_the_schedule(weighting: Weighting) -> None:
    ends = {"log_snr_max": 12.0, "log_snr_min": -8.0}
    log_snr = torch.linspace(-7, 11, 10, dtype=torch.float64)
    per_log_snr = []
    for schedule in (Between(Linear(), **ends), Between(Cosine(), **ends), LinearLogSNR(**ends)):
        t = schedule.time_at(log_snr)
        density = torch.log(-schedule.slope(t))
        per_log_snr.append(weighting.log_weight(Process(schedule, None), t) - density)
    torch.testing.assert_close(per_log_snr[1], per_log_snr[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(per_log_snr[2], per_log_snr[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda w: type(w).__name__)
def test_a_zero_terminal_snr_can_be_trained_with_all_but_eps(weighting: Weighting) -> None:
    process = Process(ZeroTerminalSNR(Linear()), T)
    x0, eps, v_hat, _ = noisy(process)
    for kind in (V(), X0(), Velocity()):
        kind.check(process)
        log_snr = process.log_snr(TIMES[-64:])
        weight = (weighting.log_weight(process, TIMES[-64:]) + kind.log_scale(log_snr)).exp()
        assert torch.isfinite(weight).all()
        x0_hat = kind.x0_hat(v_hat, diffuse(x0, eps, log_snr), log_snr)
        assert torch.isfinite(x0_hat).all()
    for schedule in (process.schedule, Cosine()):
        with pytest.raises(ValueError, match=r"^Epsilon .*=v, x0 or velocity"):
            Epsilon().check(Process(schedule, T))
    Epsilon().check(Process(Between(Cosine(), log_snr_min=-20), T))


@pytest.mark.parametrize("steps", [T, None])
def test_a_learned_schedule_has_a_gradient_through_its_weight(steps: int | None) -> None:
    schedule = Learned(hidden=8)
    process = Process(schedule, steps)
    t = process.times(torch.linspace(0, 0.99, 32))
    VLB().log_weight(process, t).sum().backward()
    for weight in schedule.parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all()
        assert (weight.grad != 0).any()


SAMPLERS = files("time_sampler")


def f(u: Tensor) -> Tensor:
    """A loss that is large at one end, as that of the bound is."""
    return torch.exp(6 * u) + 1


MEAN = (math.exp(6) - 1) / 6 + 1


def trained(**arguments: Any) -> Importance:
    sampler = Importance(**arguments)
    noise = BatchNoise(64, 1)
    while not sampler.is_full:
        u, _ = sampler.sample(noise)
        sampler.update(u, f(u))
    return sampler


@pytest.mark.parametrize("path", SAMPLERS, ids=lambda p: p.stem)
def test_a_sampler_is_in_range_and_follows_the_noise(path: Path) -> None:
    sampler: TimeSampler = component(path)
    sampler.check(1_000_000)
    for n in (1, 2, 64):
        u, weight = sampler.sample(BatchNoise(n, n))
        again, _ = sampler.sample(BatchNoise(n, n))
        assert torch.equal(u, again)
        assert u.dtype == weight.dtype == torch.float64 and u.shape == weight.shape == (n,)
        assert (u >= 0).all() and (u < 1).all()
        sampler.update(u, f(u).float())


@pytest.mark.parametrize(
    "sampler",
    [
        *(Uniform(), trained(bins=20), trained(bins=7, history=1, uniform_probability=0.5)),
        *(LogitNormal(), LogitNormal(1.0, 0.5, uniform_probability=0.3)),
    ],
)
def test_a_weighted_mean_is_unbiased(sampler: TimeSampler) -> None:
    u, weight = sampler.sample(BatchNoise(100_000, 0))
    estimates = weight * f(u)
    standard_error = float(estimates.std()) / math.sqrt(len(u))
    assert abs(float(estimates.mean()) - MEAN) < 3 * standard_error
    assert float(weight.mean()) == pytest.approx(1, abs=0.03)


def test_importance_lowers_the_spread() -> None:
    noise = BatchNoise(20_000, 0)
    spread = [
        float((weight * f(u)).std())
        for u, weight in (sampler.sample(noise) for sampler in (Uniform(), trained(bins=20)))
    ]
    assert spread[1] < 0.15 * spread[0]


def test_low_discrepancy_puts_one_time_in_each_stratum() -> None:
    sampler, means = LowDiscrepancy(), []
    noise = BatchNoise(16, 0)
    places = []
    for _ in range(2000):
        u, weight = sampler.sample(noise)
        assert torch.equal((u * 16).long().sort().values, torch.arange(16))
        assert (weight == 1).all()
        means.append(float(f(u).mean()))
        places.append(float(u[5]))
    values = torch.tensor(means, dtype=torch.float64)
    assert abs(float(values.mean()) - MEAN) < 3 * float(values.std()) / math.sqrt(2000)
    assert float(values.std()) < 0.4 * float(f(torch.rand(2000, 16)).mean(1).std())
    # A place in the batch sees all times: sqrt(1 / 12 / 2000) is the error of the mean.
    assert abs(sum(places) / 2000 - 0.5) < 3 * math.sqrt(1 / 12 / 2000)


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_the_history_is_the_last_losses_of_each_bin(batch: int) -> None:
    sampler = Importance(bins=4, history=3, uniform_probability=0.1)
    expected: list[deque[float]] = [deque(maxlen=3) for _ in range(4)]
    torch.manual_seed(0)
    for _ in range(40):
        u, losses = torch.rand(batch, dtype=torch.float64), torch.randn(batch).abs()
        sampler.update(u, losses)
        for place, loss in zip((u * 4).long().tolist(), losses.tolist(), strict=True):
            expected[place].append(loss)
    for bin_, kept in enumerate(expected):
        assert sorted(sampler.losses[bin_].tolist()) == sorted([*kept, 0.0, 0.0, 0.0][:3])
    root = torch.tensor([sum(x**2 for x in kept) / 3 for kept in expected]).double().sqrt()
    probabilities = 0.9 * root / root.sum() + 0.1 / 4
    torch.testing.assert_close(sampler.probabilities(), probabilities, rtol=1e-6, atol=0)


def test_times_are_uniform_until_every_bin_has_its_history() -> None:
    sampler = Importance(bins=3, history=2)
    u = torch.tensor([0.1, 0.1, 0.5, 0.5, 0.9], dtype=torch.float64)
    sampler.update(u, torch.ones(5))
    assert not sampler.is_full
    drawn, weight = sampler.sample(BatchNoise(5, 0))
    assert torch.equal(drawn, Uniform().sample(BatchNoise(5, 0))[0]) and (weight == 1).all()
    with pytest.raises(TrainingError, match=r"^time_sampler: 1 of bins=3 .*low_discrepancy"):
        sampler.probabilities()
    sampler.update(u[4:], torch.zeros(1))
    assert sampler.is_full
    assert float(sampler.probabilities().sum()) == pytest.approx(1)


def test_losses_that_are_all_zero_leave_the_times_uniform() -> None:
    sampler = Importance(bins=4, history=1)
    sampler.update((torch.arange(4) + 0.5) / 4, torch.zeros(4))
    torch.testing.assert_close(sampler.probabilities(), torch.full((4,), 0.25).double())


def test_no_weight_is_above_the_inverse_of_the_uniform_share() -> None:
    sampler = Importance(bins=10, history=1, uniform_probability=0.01)
    sampler.update((torch.arange(10) + 0.5) / 10, 1e9 * (torch.arange(10) == 0))
    u, weight = sampler.sample(BatchNoise(10_000, 0))
    assert float(weight.max()) <= 100 and (u >= 0).all() and (u < 1).all()


def test_a_checkpoint_holds_what_a_sampler_remembers() -> None:
    sampler, resumed = trained(bins=5), Importance(bins=5)
    resumed.load_state_dict(sampler.state_dict())
    for step in range(3):
        drawn = []
        for one in (sampler, resumed):
            u, weight = one.sample(BatchNoise(8, step))
            one.update(u, f(u) + step)
            drawn.append((u, weight))
        assert torch.equal(drawn[0][0], drawn[1][0]) and torch.equal(drawn[0][1], drawn[1][1])
    assert torch.equal(sampler.losses, resumed.losses)


def test_a_training_too_short_for_its_history_is_refused() -> None:
    Importance(bins=100, history=10).check(1000)
    with pytest.raises(ValueError, match=r"^bins=100 .* 999; .*=low_discrep"):
        Importance(bins=100, history=10).check(999)
    Uniform().check(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Importance(bins=0), "bins=0"),
        (lambda: Importance(history=0), "history=0"),
        (lambda: Importance(uniform_probability=0), "uniform_probability=0"),
        (lambda: Importance(uniform_probability=1.5), "uniform_probability=1.5"),
        (lambda: MinSNR(0), "gamma=0"),
        (lambda: P2(k=0), "k=0"),
        (lambda: P2(gamma=-1), "gamma=-1"),
        (lambda: SigmoidWeighting(math.inf), "bias=inf"),
        (lambda: LogitNormal(std=0), "std=0"),
        (lambda: LogitNormal(uniform_probability=0), "uniform_probability=0"),
        (lambda: LogitNormalFlow(mean=math.nan), "mean=nan"),
    ],
)
def test_a_wrong_value_is_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}: give "):
        make()
