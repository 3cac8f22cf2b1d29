"""Samplers against what is known of Gaussian data, against each other, and against diffusers."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genlab.diffusion.beta_tables import LinearBetas
from genlab.diffusion.gaussian import GaussianData
from genlab.diffusion.grids import Grid, Path, log_snr_path, path
from genlab.diffusion.inpainting import inpaint
from genlab.diffusion.process import Process
from genlab.diffusion.sampler_check import order, response
from genlab.diffusion.samplers import (
    DDIM,
    Ancestral,
    DPMSolver,
    DPMSolverSDE,
    Euler,
    Heun,
    Sampler,
    UniPC,
    guided,
)
from genlab.diffusion.schedule_ends import ZeroTerminalSNR
from genlab.diffusion.schedules import Cosine, Linear, LinearLogSNR, RectifiedFlow
from genlab.diffusion.variances import FixedLarge, Learned, Optimal, Prediction
from genlab.errors import TrainingError
from genlab.seeding import ImageNoise

DETERMINISTIC = [DDIM, DPMSolver, Euler, Heun, UniPC]
SAMPLERS: list[Sampler] = [
    *(Ancestral(20), DDIM(20), DDIM(20, eta=0.7), Euler(20), DPMSolver(20)),
    *(DPMSolverSDE(20), UniPC(20), Heun(20)),
]
GRIDS = get_args(Grid)
LINE = LinearLogSNR(10.0, -10.0)
CONTINUOUS = Process(LINE, None)
VARIANCES = [1e-3, 0.1, 1.0]


def line(steps: int, begin: float = -10.0, end: float = 10.0) -> Path:
    """Steps uniform in the log-SNR between two finite ends."""
    return log_snr_path(LINE, torch.linspace(begin, end, steps + 1, dtype=torch.float64))


def no_noise() -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def images(count: int = 3, size: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(
        count, 1, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


class Recorded:
    """Noise that can be played again."""

    def __init__(self, seed: int = 1) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> Tensor:
        return torch.randn(3, 1, 4, 4, generator=self.generator, dtype=torch.float64)


def network(x_t: Tensor, t: Tensor) -> Tensor:
    """Some function that is no linear one, in the place of a trained network."""
    return torch.tanh(0.7 * x_t + t.reshape(-1, 1, 1, 1) - 0.4 * x_t.roll(1, -1))


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize(
    ("sampler", "lowest", "highest"),
    [
        (DDIM, 0.9, 1.1),
        (Euler, 0.9, 1.1),
        (DPMSolver, 1.9, 2.1),
        (Heun, 1.9, 2.1),
        (UniPC, 2.9, 3.1),
    ],
    ids=["ddim", "euler", "dpm_solver", "heun", "unipc"],
)
def test_the_order_of_convergence(
    sampler: type[Sampler], lowest: float, highest: float, variance: float
) -> None:
    data = GaussianData(0.3, math.sqrt(variance))
    (begin, mean_begin), (end, mean_end) = (
        (float(std), float(mean))
        for mean, std in (data.marginal(line(1).log_snrs[[i]]) for i in (0, 1))
    )
    slopes, offsets = [], []
    for steps in (80, 160, 320):
        found = response(sampler(steps), CONTINUOUS, data, along=line(steps))
        # The exact flow maps the marginal at one end to that at the other.
        slopes.append(abs(found.slope - end / begin))
        offsets.append(abs(found.offset - (mean_end - end / begin * mean_begin)))
        assert found.noise_variance == 0
    for errors in (slopes, offsets):
        for coarse, fine in zip(errors, errors[1:], strict=False):
            assert lowest < math.log2(coarse / fine) < highest
    assert lowest < order(sampler(), data) < highest


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("variance", VARIANCES)
def test_the_optimal_variance_draws_from_the_true_distribution(variance: float, steps: int) -> None:
    data = GaussianData(0.3, math.sqrt(variance))
    way = line(steps)
    mean, std = data.marginal(way.log_snrs[[0, -1]])
    found = response(Ancestral(steps), CONTINUOUS, data, Optimal(), way)
    assert found.std(float(std[0])) == pytest.approx(float(std[1]), rel=1e-12)
    assert found.slope * float(mean[0]) + found.offset == pytest.approx(float(mean[1]), rel=1e-12)


@pytest.mark.parametrize("variance", [None, FixedLarge()], ids=["posterior", "fixed_large"])
def test_ancestral_sampling_is_of_first_order_in_distribution(variance: Any) -> None:
    assert 0.9 < order(Ancestral(), GaussianData(0.3, 0.25), variance) < 1.1


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_sde_solver_is_of_second_order_in_distribution(variance: float) -> None:
    assert 1.9 < order(DPMSolverSDE(), GaussianData(0.3, math.sqrt(variance))) < 2.1


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_on_the_straight_path_is_ddim(shift: float) -> None:
    process = Process(RectifiedFlow(shift), 1000)
    kept = []
    for sampler in (Euler(30, grid="uniform"), DDIM(30, grid="uniform")):
        kept.append(sampler(network, images(), process, no_noise))
    torch.testing.assert_close(*kept, rtol=0, atol=1e-10)


def test_euler_adds_the_velocity_times_the_step_of_time() -> None:
    way = path(Process(RectifiedFlow(), 1000), 10, "uniform")
    x = images()
    for t, s in zip(way.times[:-1].tolist(), way.times[1:].tolist(), strict=True):
        unit = math.hypot(1 - t, t)  # x_t of the model has variance 1 where x_0 has
        x0_hat = network(x / unit, torch.full((3,), t, dtype=torch.float64))
        eps_hat = (x - (1 - t) * x0_hat) / t
        x = x + (s - t) * (eps_hat - x0_hat)
    straight = Euler(10, grid="uniform", clip=False)
    ours = straight(network, images(), Process(RectifiedFlow(), 1000), no_noise)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-10)


def test_ddim_with_eta_1_is_ancestral_sampling() -> None:
    process = Process(Linear(), 30)
    one, other = (
        sampler(network, images(), process, Recorded())
        for sampler in (Ancestral(None), DDIM(30, eta=1.0))
    )
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_the_first_step_of_dpm_solver_is_ddim() -> None:
    one, other = (
        sampler(2)(network, images(), CONTINUOUS, no_noise, along=line(1, -3.0, 0.0))
        for sampler in (DDIM, DPMSolver)
    )
    assert torch.equal(one, other)


def test_heun_is_the_published_algorithm_in_its_own_space() -> None:
    way = line(6, -8.0, 6.0)
    alpha = torch.sigmoid(way.log_snrs).sqrt().tolist()
    sigma = (-way.log_snrs / 2).exp().tolist()
    y = images() / alpha[0]

    def slope(y: Tensor, i: int) -> Tensor:
        return (y - network(alpha[i] * y, way.times[i].expand(3))) / sigma[i]

    for i in range(6):
        d = slope(y, i)
        euler = y + (sigma[i + 1] - sigma[i]) * d
        y = y + (sigma[i + 1] - sigma[i]) * (d + slope(euler, i + 1)) / 2
    x = Heun(6)(network, images(), CONTINUOUS, no_noise, along=way)
    torch.testing.assert_close(x, alpha[6] * y, rtol=1e-11, atol=1e-11)


def test_evaluations() -> None:
    process, data = Process(Linear(), 1000), GaussianData(0.0, 0.5)
    counts = [response(sampler, process, data).evaluations for sampler in SAMPLERS]
    assert counts == [20, 20, 20, 20, 20, 20, 20, 39]


@pytest.mark.parametrize("sampler", DETERMINISTIC)
@pytest.mark.parametrize("schedule", [Cosine(), ZeroTerminalSNR(Linear()), Linear()], ids=str)
def test_many_steps_reach_the_data_from_any_end(sampler: type[Sampler], schedule: Any) -> None:
    data = GaussianData(0.3, 0.25)
    found = response(sampler(200), Process(schedule, 1000), data)
    assert found.std() == pytest.approx(0.25, rel=0.02)
    assert found.offset == pytest.approx(0.3, abs=0.005)


def scheduler_path(timesteps: Tensor, log_snr: Tensor) -> Path:
    """Return the path of a diffusers scheduler, as times of the table of 1000 betas."""
    times = torch.cat([(timesteps.double() + 1) / 1000, torch.zeros(1, dtype=torch.float64)])
    return Path(times, torch.cat([log_snr, torch.tensor([math.inf], dtype=torch.float64)]))


TABLE = Process(LinearBetas(1000), 1000)


def eps_of(x0_hat: Tensor, x_t: Tensor, t: int) -> Tensor:
    """The same prediction as the noise, which is what the schedulers expect."""
    log_snr = TABLE.log_snr(torch.tensor([(t + 1) / 1000], dtype=torch.float64))
    alpha, sigma = float(torch.sigmoid(log_snr).sqrt()), float(torch.sigmoid(-log_snr).sqrt())
    return (x_t - alpha * x0_hat) / sigma


def in_float64(scheduler: Any) -> Any:
    """Its float32 table is wrong by 1e-4 where there is little noise: the formulas are compared."""
    scheduler.alphas_cumprod = torch.sigmoid(TABLE.log_snr(torch.arange(1, 1001).double() / 1000))
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def one_step(t: int, s: int) -> Path:
    times = torch.tensor([t + 1, s + 1], dtype=torch.float64) / 1000
    return Path(times, TABLE.log_snr(times))


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("t", [999, 600, 40, 1])
def test_a_ddpm_step_is_that_of_diffusers(t: int, clip: bool) -> None:
    scheduler = DDPMScheduler(clip_sample=clip)
    if t < 40:
        in_float64(scheduler)
    x_t, x0_hat = images(), 1.5 * images(seed=2)
    theirs = scheduler.step(
        eps_of(x0_hat, x_t, t), t, x_t, generator=torch.Generator().manual_seed(1)
    ).prev_sample
    ours = Ancestral(1, clip=clip)(
        lambda x, t: x0_hat, x_t, TABLE, Recorded(), along=one_step(t, t - 1)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("t", [980, 500, 20])
def test_a_ddim_step_is_that_of_diffusers(t: int, clip: bool, eta: float) -> None:
    scheduler = DDIMScheduler(clip_sample=clip)
    if t < 40:
        in_float64(scheduler)
    scheduler.set_timesteps(50)
    x_t, x0_hat, noise = images(), 1.5 * images(seed=2), Recorded()()
    # Only by request does diffusers derive the noise again from what it clipped.
    theirs = scheduler.step(
        eps_of(x0_hat, x_t, t),
        t,
        x_t,
        eta=eta,
        use_clipped_model_output=True,
        variance_noise=noise,
    ).prev_sample
    ours = DDIM(1, clip=clip, eta=eta)(
        lambda x, t: x0_hat, x_t, TABLE, Recorded(), along=one_step(t, t - 20)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [3, 15, 20])
@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [
        (DPMSolver, DPMSolverMultistepScheduler()),
        (DPMSolverSDE, DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")),
        (UniPC, UniPCMultistepScheduler(beta_schedule="linear", final_sigmas_type="zero")),
    ],
    ids=["dpm_solver", "dpm_solver_sde", "unipc"],
)
def test_a_multistep_solver_is_that_of_diffusers_from_noise_to_data(
    sampler: type[Sampler], scheduler: Any, steps: int
) -> None:
    scheduler.set_timesteps(steps)
    x, noise = images().float(), Recorded()
    drawn = {"variance_noise": noise().float()} if sampler is DPMSolverSDE else {}
    for t in scheduler.timesteps.tolist():
        x0_hat = network(x, torch.full((3,), (t + 1) / 1000))
        x = scheduler.step(eps_of(x0_hat, x, t), t, x, **drawn).prev_sample
        drawn = {name: noise().float() for name in drawn}
    way = scheduler_path(scheduler.timesteps, -2 * scheduler.sigmas[:-1].double().log())
    ours = sampler(steps, clip=False)(network, images(), TABLE, Recorded(), along=way)
    torch.testing.assert_close(ours.float(), x, rtol=1e-5, atol=1e-5)


@given(
    total=st.integers(1, 300),
    share=st.floats(0, 1),
    grid=st.sampled_from(GRIDS),
    schedule=st.sampled_from([Linear(), Cosine(), ZeroTerminalSNR(Linear())]),
)
def test_a_grid_of_discrete_steps(total: int, share: float, grid: Any, schedule: Any) -> None:
    steps = max(1, round(share * total))
    times, log_snrs = path(Process(schedule, total), steps, grid)
    numbers = times * total
    assert torch.allclose(numbers, numbers.round(), atol=1e-9)
    assert times[0] == 1 and times[-1] == 0 and len(times) == len(log_snrs) == steps + 1
    assert (times.diff() < 0).all() and (log_snrs.diff() > 0).all() and log_snrs[-1] == math.inf
    if steps == total:
        assert numbers.round().tolist() == list(range(total, -1, -1))


@given(steps=st.integers(1, 200), grid=st.sampled_from(GRIDS))
def test_a_grid_in_continuous_time(steps: int, grid: Any) -> None:
    times, log_snrs = path(CONTINUOUS, steps, grid)
    assert times[0] == 1 and log_snrs[-1] == math.inf and len(times) == steps + 1
    assert (times[:-1].diff() < 0).all() and (log_snrs.diff() > 0).all()
    even = {
        "uniform": times,
        "quadratic": times.sqrt(),
        "log_snr": log_snrs[:-1],
        "karras": (-log_snrs[:-1] / 14).exp(),
        "flow": torch.sigmoid(-log_snrs[:-1] / 2),
    }[grid]
    torch.testing.assert_close(even.diff(), even.diff()[:1].expand(len(even) - 1))
    if grid in ("log_snr", "karras", "flow") and steps > 1:
        assert float(times[-2]) == pytest.approx(0, abs=1e-12)


def test_no_steps_are_spent_in_pure_noise() -> None:
    log_snrs = path(Process(Cosine(), 1000), 20, "log_snr").log_snrs
    assert (log_snrs < -11).sum() <= 2


def test_the_noise_of_an_image_depends_on_the_seed_and_its_index_alone() -> None:
    process = Process(Linear(), 20)

    def draw(indices: list[int], seed: int = 0) -> Tensor:
        draws = ImageNoise(seed, "noise", indices=indices)

        def noise() -> Tensor:
            return draws.normal(1, 4, 4)

        return DDIM(10, eta=1.0)(network, noise(), process, noise)

    together = draw([0, 1, 2, 3, 4])
    assert torch.equal(torch.cat([draw([0, 1]), draw([2]), draw([3, 4])]), together)
    assert not torch.equal(draw([0]), draw([1]))
    assert not torch.equal(draw([0]), draw([0], seed=1))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_inpainting_keeps_the_known_pixels(sampler: Sampler) -> None:
    known, mask = images(seed=3).clamp(-1, 1), torch.zeros(4, 4)
    mask[:2] = 1
    process = Process(Linear(), 100)
    keep = inpaint(known, mask, Recorded(5))
    seen: list[Tensor] = []
    x = sampler(
        network,
        images(),
        process,
        Recorded(),
        on_step=lambda i, t, x_t, x0_hat: seen.append(x_t),
        project=keep,
    )
    assert torch.equal(x[..., :2, :], known[..., :2, :])
    assert not torch.equal(x[..., 2:, :], known[..., 2:, :])
    # On the way the known part is as noisy as the rest: q(x_t | known).
    way = sampler.path(process)
    noise = Recorded(5)
    for i in range(3):
        alpha, sigma = (torch.sigmoid(s * way.log_snrs[i]).sqrt() for s in (1, -1))
        expected = alpha * known + sigma * noise()
        torch.testing.assert_close(seen[i][..., :2, :], expected[..., :2, :])


def labelled(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return network(x_t, t) + 0.1 * labels.reshape(-1, 1, 1, 1)


def test_guidance_is_linear_in_its_scale() -> None:
    labels, x_t, t = torch.tensor([0, 4, 2]), images(), torch.rand(3, dtype=torch.float64)
    conditional = labelled(x_t, t, labels)
    unconditional = labelled(x_t, t, torch.full((3,), -1))

    def x0_hat(scale: float) -> Tensor:
        said = guided(labelled, labels, scale)(x_t, t)
        return said.x0_hat if isinstance(said, Prediction) else said

    assert torch.equal(x0_hat(1.0), conditional)
    torch.testing.assert_close(x0_hat(0.0), unconditional)
    for scale in (0.5, 2.0, 7.5):
        expected = unconditional + scale * (conditional - unconditional)
        torch.testing.assert_close(x0_hat(scale), expected)


def test_guidance_takes_one_evaluation_and_keeps_the_conditional_variance() -> None:
    batches: list[int] = []

    def denoise(x_t: Tensor, t: Tensor, labels: Tensor) -> Prediction:
        batches.append(len(x_t))
        fraction = labels.double().reshape(-1, 1, 1, 1).expand_as(x_t)
        return Prediction(labelled(x_t, t, labels), fraction)

    labels, t = torch.tensor([0, 4, 2]), torch.ones(3, dtype=torch.float64)
    guided(denoise, labels)(images(), t)
    said = guided(denoise, labels, 3.0)(images(), t)
    assert batches == [3, 6]
    assert isinstance(said, Prediction) and said.variance_fraction is not None
    assert said.variance_fraction[:, 0, 0, 0].tolist() == [0, 4, 2]


def test_a_learned_variance_is_drawn_with() -> None:
    """Fractions of -1 and 1 are the two fixed variances."""
    process = Process(Linear(), 50)

    def sample(fraction: float) -> Tensor:
        def denoise(x_t: Tensor, t: Tensor) -> Prediction:
            return Prediction(network(x_t, t), torch.full_like(x_t, fraction))

        return Ancestral(50)(denoise, images(), process, Recorded(), variance=Learned())

    large = Ancestral(50)(network, images(), process, Recorded(), variance=FixedLarge())
    torch.testing.assert_close(sample(1.0), large)
    small = Ancestral(50)(network, images(), process, Recorded())
    torch.testing.assert_close(sample(-1.0), small)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_memory_does_not_grow_with_the_steps(sampler: Sampler) -> None:
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def on_step(i: int, t: float, x_t: Tensor, x0_hat: Tensor) -> None:
        alive.append(sum(ref() is not None for ref in seen))
        seen.extend([weakref.ref(x_t), weakref.ref(x0_hat)])

    replace(sampler, steps=50)(network, images(), CONTINUOUS, Recorded(), on_step=on_step)
    # The noise at the start is held by the caller, the last x0_hat by DPM-Solver++, two by UniPC.
    assert len(alive) == 50 and max(alive) <= (3 if isinstance(sampler, UniPC) else 2)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_samples_keep_the_type_of_the_images(sampler: Sampler) -> None:
    draws = ImageNoise(0, "noise", indices=range(2))

    def noise() -> Tensor:
        return draws.normal(1, 4, 4)

    x = sampler(network, noise(), CONTINUOUS, noise)
    assert x.dtype == torch.float32 and x.abs().max() <= 1.001


@pytest.mark.parametrize("clip", [True, False])
def test_what_is_not_finite_is_named(clip: bool) -> None:
    def diverged(x_t: Tensor, t: Tensor) -> Tensor:
        return x_t if t[0] > 0.55 else x_t * math.nan

    with pytest.raises(TrainingError, match=r"DDIM: x is not finite after step 6 of 10 \(t=0.5\)"):
        DDIM(10, grid="uniform", clip=clip)(diverged, images(), Process(Linear(), 10), no_noise)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DDIM(0), r"^steps=0: give a whole number of at least 1"),
        (lambda: DDIM(eta=1.5), r"^eta=1.5: give a finite number, at least 0"),
        (lambda: DDIM(101).check(Process(Linear(), 100)), r"steps=101: .* give at most 100"),
        (lambda: Ancestral(None).check(CONTINUOUS), r"steps=null .* give a number"),
        (lambda: guided(labelled, torch.zeros(1), -1.0), r"guidance=-1"),
        (lambda: inpaint(images(), torch.full((4, 4), 0.5), no_noise), "mask: give 1 where"),
        (
            lambda: Ancestral(5)(network, images(), CONTINUOUS, Recorded(), variance=Learned()),
            "reverse_variance: this network puts out no variance",
        ),
    ],
)
def test_wrong_questions_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
