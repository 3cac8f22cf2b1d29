"""The loss, the bound and the samples of a DDPM, against networks that are known."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from trained_runs import load_with_data, train_in

from genlab.diffusion.beta_tables import LinearBetas
from genlab.diffusion.gaussian import GaussianData
from genlab.diffusion.model import DDPM
from genlab.diffusion.parameterizations import (
    X0,
    Epsilon,
    Parameterization,
    V,
    Velocity,
    eps_from_x0,
)
from genlab.diffusion.samplers import DDIM, Ancestral
from genlab.diffusion.schedule_ends import Between, ZeroTerminalSNR
from genlab.diffusion.schedules import (
    EDM,
    Cosine,
    Linear,
    LinearLogSNR,
    NoiseSchedule,
    RectifiedFlow,
    Sigmoid,
)
from genlab.diffusion.schedules import Learned as LearnedSchedule
from genlab.diffusion.time_samplers import LowDiscrepancy, TimeSampler, Uniform
from genlab.diffusion.variances import FixedLarge, FixedSmall, Optimal, ReverseVariance
from genlab.diffusion.variances import Learned as LearnedVariance
from genlab.diffusion.weightings import VLB, FlowMatching, MinSNR, Simple
from genlab.errors import TrainingError
from genlab.metrics.measures import Evaluation
from genlab.modules.ddpm import DDPMModule
from genlab.nets.unet import UNet
from genlab.protocols import CanSample, HasBound, ImageSpec
from genlab.runs.directory import RunDirectory
from genlab.runs.run import Run
from genlab.seeding import BatchNoise, Noise

SPEC = ImageSpec(1, 4, 4, classes=("zero", "one", "two"))
STD = 0.3


class Guess(nn.Module):
    """E[x_0 | x_t] of Gaussian pixels of this spread, in the terms of a parameterization."""

    def __init__(self, kind: Parameterization, std: float = STD) -> None:
        super().__init__()
        self.kind, self.data = kind, GaussianData(0.0, std)

    def forward(self, x_t: Tensor, log_snr: Tensor, labels: Tensor | None = None) -> Tensor:
        x0_hat = self.data.posterior_mean(x_t, log_snr)
        return self.kind.target(x0_hat, eps_from_x0(x0_hat, x_t, log_snr), log_snr)


class Lines(nn.Module):
    """Linear functions of each pixel of x_t, one for each output."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.lines = nn.ModuleList(nn.Linear(1, 1) for _ in range(outputs))

    def forward(self, x_t: Tensor, log_snr: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.cat([line(x_t.unsqueeze(-1)) for line in self.lines], dim=1).squeeze(-1)


class Witness(nn.Module):
    """Keeps the labels that it is given, and gives nothing."""

    def forward(self, x_t: Tensor, log_snr: Tensor, labels: Tensor | None = None) -> Tensor:
        self.labels = labels
        return torch.zeros_like(x_t)


def build(net: nn.Module | None = None, **changes: Any) -> DDPM:
    """A DDPM of 4 x 4 images around a network that is known, by default the perfect one."""
    kind = changes.setdefault("parameterization", Epsilon())
    made = Guess(kind) if net is None else net
    defaults: dict[str, Any] = {
        "spec": SPEC,
        "steps": 20,
        "noise_schedule": Between(Cosine(), log_snr_min=-20.0),
        "weighting": Simple(),
        "time_sampler": LowDiscrepancy(),
        "reverse_variance": FixedLarge(),
        "sampler": DDIM(steps=5),
        "net": lambda **_: made,
        "conditional": False,
        "label_drop": 0.1,
        "guidance": 1.0,
        "variance_loss_weight": 0.001,
        "clip": True,
        "val_draws": 4,
        "test_draws": None,
    }
    return DDPM(**{**defaults, **changes})


class Curved(nn.Module):
    """Some function of image and log-SNR, in the place of a trained network."""

    def forward(self, x_t: Tensor, log_snr: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.tanh(x_t - 0.3 * x_t.roll(1, -1) + log_snr.sigmoid().reshape(-1, 1, 1, 1))


def flow_matching(matcher: Any) -> tuple[Tensor, Tensor]:
    """The loss of a model, and that of the positions and velocities that a matcher gives.

    Args:
        matcher: called with noise, images and the share of the image in the position.
    """
    net = Curved()
    model = build(
        net,
        steps=1000,
        noise_schedule=RectifiedFlow(),
        parameterization=Velocity(),
        weighting=FlowMatching(),
        time_sampler=Uniform(),
    )
    ours = model.loss(X, noise=BatchNoise(len(X), 1))["loss"]
    noise = BatchNoise(len(X), 1)
    t = model.process.times(Uniform().sample(noise)[0])
    eps = noise.normal(*SPEC.shape).double()
    position, velocity = matcher(eps, 2 * X - 1, 1 - t)
    # the network sees the position at unit variance, and the velocity goes from noise to image
    unit = torch.hypot(t, 1 - t).reshape(-1, 1, 1, 1)
    output = -net(position / unit, 2 * torch.log((1 - t) / t))
    return ours, X[0].numel() * (output - velocity).square().mean()


def test_the_loss_of_flow_matching_is_the_published_formula() -> None:
    def matcher(noise: Tensor, images: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        share = share.reshape(-1, 1, 1, 1)  # Lipman et al. (2023), eq. 22 and 23 at sigma_min = 0
        return share * images + (1 - share) * noise, images - noise

    torch.testing.assert_close(*flow_matching(matcher), rtol=1e-10, atol=0)


def test_the_loss_of_flow_matching_is_that_of_torchcfm() -> None:
    torchcfm = pytest.importorskip("torchcfm")

    def matcher(noise: Tensor, images: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        sampled = torchcfm.ConditionalFlowMatcher(sigma=0.0)
        _, *found = sampled.sample_location_and_conditional_flow(noise, images, share)
        return found[0], found[1]

    torch.testing.assert_close(*flow_matching(matcher), rtol=1e-6, atol=0)


def pixels(n: int, seed: int = 0, std: float = STD) -> Tensor:
    """Independent Gaussian pixels as 8-bit images (n, 1, 4, 4)."""
    generator = torch.Generator().manual_seed(seed)
    x0 = std * torch.randn(n, *SPEC.shape, generator=generator)
    return ((x0.clamp(-1, 1) + 1) * 127.5).round().byte()


IMAGES = pixels(500)
X = IMAGES.double() / 255


def trainer(**options: Any) -> pl.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def evaluation(
    model: DDPM, split: str = "val", images: Tensor = IMAGES, seed: int = 0, size: int = 250
) -> Evaluation:
    """A validation or a test on these images, in batches of this size."""
    places = torch.arange(len(images))
    batches: Any = [
        {"image": image, "index": index}
        for image, index in zip(images.split(size), places.split(size), strict=True)
    ]
    loader: DataLoader[Any] = DataLoader(batches, batch_size=None)
    module = DDPMModule(model, torch.optim.Adam, seed=seed)
    (trainer().test if split == "test" else trainer().validate)(module, loader, verbose=False)
    return module.evaluations[split]


def evaluated(model: DDPM, split: str = "val", **options: Any) -> dict[str, float]:
    return evaluation(model, split, **options).metrics


def plain(curves: dict[str, list[float]], folder: Path) -> dict[str, Any]:
    """Curves as a run directory keeps them."""
    with RunDirectory(folder / "run") as directory:
        directory.write_bound(curves)
    found = Run(folder / "run").bound
    assert found is not None
    return found


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard error."""
    column = torch.tensor(values, dtype=torch.float64)
    return float(column.mean()), float(column.std() / math.sqrt(len(values)))


@pytest.mark.parametrize("weighting", [Simple(), VLB(), MinSNR()], ids=lambda w: type(w).__name__)
@pytest.mark.parametrize("steps", [20, None])
def test_what_the_network_predicts_does_not_change_the_loss(
    weighting: Any, steps: int | None
) -> None:
    losses = []
    for kind in (Epsilon(), X0(), V()):
        schedule = Between(Cosine(), 13.0, -9.0)
        module = build(
            parameterization=kind,
            weighting=weighting,
            steps=steps,
            noise_schedule=schedule,
            test_draws=4,
        )
        torch.manual_seed(0)
        losses.append(float(module.loss(X, None, 0)["loss"]))
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-10)


class At(TimeSampler):
    """The times that it was given."""

    def __init__(self, u: Tensor) -> None:
        super().__init__()
        self.u = u

    def sample(self, noise: Noise) -> tuple[Tensor, Tensor]:
        return self.u, torch.ones_like(self.u)


def test_the_loss_in_nats_is_that_of_the_paper_step_by_step() -> None:
    """T KL(q(x_(t-1) | x_t, x_0) || p) with the posterior variance (Ho et al. 2020, eq. 8)."""
    steps = 50
    betas = torch.linspace(1e-4 * 20, 0.02 * 20, steps, dtype=torch.float64)
    bars = [1.0, *torch.cumprod(1 - betas, 0).tolist()]
    x = X[: steps - 1]
    module = build(
        Guess(Epsilon(), 0.5),
        steps=steps,
        noise_schedule=LinearBetas(steps),
        weighting=VLB(),
        time_sampler=At((torch.arange(1, steps) + 0.5) / steps),
        reverse_variance=FixedSmall(),
    )
    torch.manual_seed(0)
    loss = float(module.loss(x, None, 0)["loss"])

    torch.manual_seed(0)
    noise = torch.randn(x.shape).double()
    total = 0.0
    for x0, eps, t in zip(2 * x - 1, noise, range(2, steps + 1), strict=True):
        bar, before, beta = bars[t], bars[t - 1], float(betas[t - 1])
        x_t = math.sqrt(bar) * x0 + math.sqrt(1 - bar) * eps
        x0_hat = math.sqrt(bar) * 0.25 / (bar * 0.25 + 1 - bar) * x_t
        from_x0 = math.sqrt(before) * beta / (1 - bar)
        variance = beta * (1 - before) / (1 - bar)
        total += float((from_x0 * (x0 - x0_hat)).square().sum()) / (2 * variance)
    assert loss == pytest.approx(steps * total / (steps - 1), rel=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"net": Witness()},
        {"net": Guess(V(), 0.6), "parameterization": V(), "weighting": MinSNR(), "steps": None},
        {"net": Lines(2), "reverse_variance": LearnedVariance(), "variance_loss_weight": 1.0},
        {"steps": 1, "sampler": DDIM(steps=1)},
    ],
    ids=["eps", "v, continuous", "learned variance", "one step"],
)
def test_the_loss_of_a_validation_is_the_loss_of_training(options: dict[str, Any]) -> None:
    """It is not clipped, although the bound is."""
    if options.get("steps", 20) is None:
        options = {**options, "noise_schedule": LinearLogSNR(), "test_draws": 4}
    module = build(**options, time_sampler=Uniform())
    if isinstance(module.net, Lines):  # near what is right, so that nothing is clipped
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(0.1)
        module.clip = False
    torch.manual_seed(1)
    with torch.no_grad():
        training = [float(module.loss(X.float(), None, 0)["loss"]) for _ in range(40)]
    validation = [evaluated(module, seed=seed)["loss"] for seed in range(10)]
    (ours, our_error), (theirs, their_error) = spread(training), spread(validation)
    assert abs(ours - theirs) < 3 * math.hypot(our_error, their_error) + 1e-4 * ours
    if isinstance(module.net, Witness):
        assert ours == pytest.approx(SPEC.dims, rel=0.02)


def test_the_estimate_of_a_validation_is_the_sum_of_the_test() -> None:
    module = build(Guess(Epsilon(), 0.5), steps=50, val_draws=2)
    estimates = [evaluated(module, seed=seed) for seed in range(15)]
    sums = [evaluated(module, "test", seed=seed) for seed in range(3)]
    for name in ("neg_elbo", "kl_diffusion", "reconstruction", "bits_per_dim"):
        ours, our_error = spread([metrics[name] for metrics in estimates])
        theirs, their_error = spread([metrics[name] for metrics in sums])
        assert abs(ours - theirs) < 3 * math.hypot(our_error, their_error), name
    assert estimates[0]["kl_prior"] == pytest.approx(sums[0]["kl_prior"], rel=1e-6)


def test_the_standard_error_is_that_of_other_images() -> None:
    module = build(steps=50, val_draws=1)
    metrics = [evaluated(module, images=pixels(100, seed), seed=seed) for seed in range(30)]
    bounds = torch.tensor([m["neg_elbo"] for m in metrics])
    said = torch.tensor([m["neg_elbo_se"] for m in metrics]).mean()
    # the times of a batch are even, so that it is less than for independent ones
    assert bounds.std() < 1.25 * said


@pytest.mark.parametrize("steps", [1, 20, None])
@pytest.mark.parametrize("split", ["val", "test"])
def test_the_terms_sum_to_the_bound(steps: int | None, split: str, tmp_path: Path) -> None:
    module = build(
        steps=steps,
        noise_schedule=LinearLogSNR(),
        test_draws=None if steps else 8,
        sampler=DDIM(steps=1),
    )
    found = evaluation(module, split)
    metrics, curves = found.metrics, plain(found.curves, tmp_path)
    neg_elbo, kl = metrics["neg_elbo"], metrics["kl"]
    assert neg_elbo == pytest.approx(metrics["reconstruction"] + kl, rel=1e-6)
    assert kl == pytest.approx(metrics["kl_prior"] + metrics["kl_diffusion"], rel=1e-6)
    assert metrics["bits_per_dim"] == pytest.approx(neg_elbo / (16 * math.log(2)), rel=1e-6)
    by_network = metrics["kl_diffusion"] + (metrics["reconstruction"] if steps else 0)
    by_log_snr = [v for name, v in metrics.items() if name.startswith("bound_log_snr_")]
    for shares in (curves["nats"], curves["nats_by_log_snr"], by_log_snr):
        assert sum(shares) == pytest.approx(by_network, rel=1e-6)
    assert len(curves["nats"]) == (steps if split == "test" and steps else min(40, steps or 40))


def test_a_bound_at_zero_terminal_snr_is_plain_json(tmp_path: Path) -> None:
    module = build(parameterization=V(), noise_schedule=ZeroTerminalSNR(Linear()))
    found = evaluation(module, "test")
    assert found.metrics["kl_prior"] == 0
    assert plain(found.curves, tmp_path)["log_snr"][-1] is None


def test_in_continuous_time_the_bound_does_not_depend_on_the_schedule() -> None:
    """Between the same ends, with the same network (Kingma et al. 2021, VDM, section 5.1)."""
    ends = {"log_snr_max": 8.0, "log_snr_min": -9.0}
    schedules: list[NoiseSchedule] = [
        LinearLogSNR(**ends),
        EDM(**ends),
        *(Between(curve, **ends) for curve in (Cosine(), Sigmoid(), Linear())),
    ]
    bent = LearnedSchedule(hidden=4, **ends)
    nn.init.constant_(bent.height, 3.0)
    found = []
    for schedule in [*schedules, bent]:
        module = build(
            Guess(Epsilon(), 0.5),
            steps=None,
            noise_schedule=schedule,
            weighting=VLB(),
            test_draws=32,
        )
        metrics = [
            evaluated(module, "test", images=IMAGES[:250], seed=seed)["kl_diffusion"]
            for seed in range(4)
        ]
        found.append(spread(metrics))
    reference, its_error = found[0]
    for value, error in found[1:]:
        assert abs(value - reference) < 3.5 * math.hypot(error, its_error)
        assert error < 1e-2 * reference


def test_a_learned_schedule_keeps_its_ends_and_lowers_the_variance_of_the_loss() -> None:
    schedule = LearnedSchedule(hidden=16)
    module = build(
        steps=None,
        noise_schedule=schedule,
        weighting=VLB(),
        time_sampler=Uniform(),
        test_draws=4,
    )
    x = pixels(2000, seed=1).float() / 255

    def losses() -> Tensor:
        torch.manual_seed(5)
        with torch.no_grad():
            return torch.stack([module.loss(x[i::500], None, 0)["loss"] for i in range(500)])

    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    before, ends_before = losses(), schedule.log_snr(ends).detach()
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.05)
    for step in range(300):
        torch.manual_seed(step)
        optimizer.zero_grad()
        module.loss(x[:128], None, step)["loss"].backward()
        optimizer.step()
    after = losses()
    torch.testing.assert_close(schedule.log_snr(ends), ends_before, rtol=0, atol=1e-12)
    assert after.var() < 0.5 * before.var()
    error = math.hypot(before.std() / math.sqrt(500), after.std() / math.sqrt(500))
    assert abs(before.mean() - after.mean()) < 3 * error


def test_a_network_is_trained_by_the_loss_and_the_schedule_by_its_variance() -> None:
    """The gradient of the network's weights is that under the same schedule, held fixed."""
    gradients = []
    for learns in (True, False):
        schedule = LearnedSchedule(hidden=4)
        nn.init.constant_(schedule.height, 1.0)
        torch.manual_seed(0)
        net = Lines().double()
        module = build(net, steps=None, noise_schedule=schedule, weighting=VLB(), test_draws=4)
        schedule.requires_grad_(learns)
        torch.manual_seed(1)
        module.loss(X, None, 0)["loss"].backward()
        gradients.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", [10, 500])
def test_the_optimal_variance_is_measured_in_validation_and_has_the_lowest_bound(
    steps: int,
) -> None:
    bounds = {}
    for kind in (FixedSmall, FixedLarge, Optimal):
        variance: ReverseVariance = kind()
        module = build(Guess(Epsilon(), 0.4), steps=steps, reverse_variance=variance)
        first, second = evaluated(module), evaluated(module)
        if not isinstance(variance, Optimal):
            assert first == second
            bounds[kind] = first["neg_elbo"]
            continue
        assert first["neg_elbo"] == pytest.approx(bounds[FixedLarge], rel=1e-6)
        assert variance.is_measured
        assert second["neg_elbo"] < min(bounds.values())
        # another draw of the noise, for another network of the same kind
        tested = evaluated(module, "test", seed=7)
        restored = build(Guess(Epsilon(), 0.4), steps=steps, reverse_variance=Optimal())
        restored.load_state_dict(module.state_dict())
        assert evaluated(restored, "test", seed=7) == tested


def test_the_mean_is_not_trained_by_the_term_of_the_variance() -> None:
    """Nichol & Dhariwal (2021), section 3.1."""
    gradients: dict[float, list[Tensor]] = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        net = Lines(2)
        module = build(net, reverse_variance=LearnedVariance(), variance_loss_weight=weight)
        torch.manual_seed(1)
        terms = module.loss(X.float(), None, 0)
        torch.testing.assert_close(
            terms["loss"], terms["error_loss"] + weight * terms["variance_loss"]
        )
        terms["loss"].backward()
        gradients[weight] = [p.grad for p in net.parameters() if p.grad is not None]
    torch.testing.assert_close(gradients[0.0][:2], gradients[1.0][:2], rtol=0, atol=0)
    assert all((g == 0).all() for g in gradients[0.0][2:])
    assert all((g != 0).all() for g in gradients[1.0][2:])


@pytest.mark.parametrize(
    ("drop", "conditional"), [(0.0, True), (0.25, True), (1.0, True), (0.5, False)]
)
def test_classes_are_hidden_as_often_as_asked(drop: float, conditional: bool) -> None:
    net = Witness()
    module = build(net, conditional=conditional, label_drop=drop)
    labels = torch.arange(3).repeat(400)
    torch.manual_seed(0)
    module.loss(X[:1].expand(1200, -1, -1, -1), labels, 0)
    if not conditional:
        assert net.labels is None
        return
    assert net.labels is not None
    hidden = net.labels == -1
    assert torch.equal(net.labels[~hidden], labels[~hidden])
    assert float(hidden.double().mean()) == pytest.approx(drop, abs=0.04)
    with torch.no_grad():
        module.predict(2 * X[:3].float() - 1, torch.full((3,), 0.5), labels[:3])
    assert torch.equal(net.labels, labels[:3])


def random_unet(classes: int = 0) -> UNet:
    """A small U-Net, away from the zeros at which it starts."""
    torch.manual_seed(0)
    net = UNet(SPEC, out_channels=1, classes=classes, channels=8, multipliers=[1, 2], attention=[])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net.eval()


@pytest.mark.parametrize("sampler", [DDIM(steps=5), DDIM(steps=5, eta=1.0), Ancestral(steps=5)])
def test_an_image_is_the_same_in_whatever_batch_it_is_drawn(sampler: Any) -> None:
    module = build(random_unet(3), conditional=True, sampler=sampler)
    assert isinstance(module, CanSample) and isinstance(module, HasBound)
    asked: dict[str, Any] = {"classes": [0, 1, 2, 0, -1, 2], "guidance": 2.0}
    together = module.sample(6, 3, **asked)
    for first, n in ((0, 1), (1, 3), (4, 2)):
        part = module.sample(n, 3, first, **asked)
        torch.testing.assert_close(part, together[first : first + n], rtol=0, atol=1e-5)
    assert ((together >= 0) & (together <= 1)).all()
    other = module.sample(6, 4, **asked)
    assert (other - together).abs().amax() > 0.01
    torch.testing.assert_close(module.sample(2, 3), module.sample(7, 3)[:2], rtol=0, atol=1e-5)


def test_the_class_and_the_guidance_change_the_image() -> None:
    module = build(random_unet(3), conditional=True)
    images = {
        (label, guidance): module.sample(2, classes=[label], guidance=guidance)
        for label, guidance in ((0, 1.0), (1, 1.0), (0, 3.0), (-1, 1.0), (-1, 3.0))
    }
    for other in ((1, 1.0), (0, 3.0), (-1, 1.0)):
        assert (images[0, 1.0] - images[other]).abs().amax() > 1e-3
    # without a class there is nothing to be guided to
    torch.testing.assert_close(images[-1, 1.0], images[-1, 3.0], rtol=0, atol=1e-5)
    free = module.sample(2, classes=[-1])
    torch.testing.assert_close(images[-1, 1.0], free)


def test_guidance_acts_in_its_interval_of_log_snrs_alone() -> None:
    def drawn(interval: list[float] | None, guidance: float = 3.0) -> torch.Tensor:
        module = build(random_unet(3), conditional=True, guidance_interval=interval)
        return module.sample(3, classes=[0], guidance=guidance)

    everywhere = drawn(None)
    assert torch.equal(drawn([-50.0, 50.0]), everywhere)
    assert torch.equal(drawn([40.0, 50.0]), drawn(None, guidance=1.0))
    middle = drawn([-2.0, 2.0])
    for other in (everywhere, drawn(None, guidance=1.0)):
        assert (middle - other).abs().amax() > 1e-3


@pytest.mark.parametrize("interval", [[1.0], [2.0, 1.0], [1.0, 2.0, 3.0]])
def test_an_interval_of_guidance_has_two_ends_in_order(interval: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^guidance_interval=\[.*: give two log-SNRs, the lower"):
        build(Witness(), guidance_interval=interval)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"classes": [0, 3]}, "class=3: this model knows the classes 0 to 2"),
        ({"classes": [-2, 0]}, "class=-2: this model knows the classes 0 to 2"),
        ({"guidance": 2.0, "classes": []}, "guidance=2: this model has no class to be guided to"),
        ({"classes": [0, 1], "guidance": -1.0}, "guidance=-1.0: give .* at least 0"),
        ({"classes": [0, 1], "guidance": 1e308}, "guidance=1e\\+308: give .* at most 1000"),
    ],
)
def test_a_request_that_the_model_cannot_meet_is_refused(
    request_: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        build(Witness(), conditional=True).sample(2, **request_)
    with pytest.raises(ValueError, match=r"trained without classes|no class to be guided"):
        build(Witness()).sample(2, **request_)


def test_classes_that_the_data_do_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="conditional=true: these data have no classes"):
        build(spec=ImageSpec(1, 4, 4), conditional=True)


def test_an_image_that_is_not_finite_stops_the_sampling_with_its_step() -> None:
    class Late(nn.Module):
        """Breaks down where there is little noise."""

        def forward(self, x_t: Tensor, log_snr: Tensor, labels: Tensor | None = None) -> Tensor:
            return torch.where(log_snr > 0, torch.nan, 0.0).to(x_t)[:, None, None, None] * x_t

    with pytest.raises(
        TrainingError, match=r"DDIM: x is not finite after step [2-5] of 5 \(t=0\.\d+"
    ):
        build(Late()).sample(2, seed=0)


@pytest.mark.parametrize("learns", [False, True])
def test_a_step_in_bf16_is_that_of_float32_but_for_rounding(learns: bool) -> None:
    module = build(
        random_unet(),
        steps=None if learns else 1000,
        noise_schedule=LearnedSchedule(hidden=4)
        if learns
        else Between(Cosine(), log_snr_min=-20.0),
        weighting=VLB() if learns else Simple(),
        parameterization=V(),
        test_draws=4,
    )
    losses = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = module.loss(X.float(), None, 0)["loss"]
        assert loss.dtype == torch.float32
        losses.append(float(loss.detach()))
        loss.backward()
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


TINY = [
    "model=ddpm",
    "model.steps=20",
    "model.net.channels=8",
    "model.net.attention=[]",
    "model.sampler.steps=4",
    "model.val_draws=2",
    "data.train_images=64",
    "data.batch_size=16",
    "data.eval_batch_size=16",
    "trainer.max_epochs=2",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=2",
    "trainer.log_every_n_steps=1",
    "logger=none",
]


def train(tmp_path: Path, *overrides: str) -> Run:
    return train_in(tmp_path, *TINY, *overrides)


@pytest.mark.parametrize(
    "choice",
    [
        "model/sampler=ancestral model/reverse_variance=learned model/weighting=p2",
        "model/sampler=dpm_solver model/noise_schedule=zero_terminal_snr model/parameterization=v",
        "model/sampler=heun model/noise_schedule=linear_betas model.steps=50",
        "model/sampler=ancestral model.steps=null model/noise_schedule=learned model/weighting=vlb "
        "model.test_draws=4 trainer.gradient_clip_val=100",
        "model/time_sampler=importance model.time_sampler.bins=5 model.time_sampler.history=2",
        "model/net=unet_diffusers model.net.channels=[8,8] model.net.head_channels=8",
        "trainer.precision=bf16-mixed channels_last=true trainer.accumulate_grad_batches=2 "
        "trainer.gradient_clip_val=100",
    ],
)
def test_every_part_trains_and_is_rebuilt_from_its_directory(tmp_path: Path, choice: str) -> None:
    trained = train(tmp_path, "callbacks=none", *choice.split())
    assert trained.result is not None
    assert all(math.isfinite(value) for value in trained.result["metrics"].values())
    module, _ = load_with_data(trained.path)
    assert isinstance(module, DDPM)
    images = module.sample(3, seed=1)
    assert images.shape == (3, 1, 28, 28)
    torch.testing.assert_close(module.sample(4, seed=1)[:3], images, rtol=0, atol=1e-4)


def test_colour_images_of_a_folder_are_learned(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for i in range(24):
        folder = tmp_path / "tree" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    trained = train(
        tmp_path,
        *("data=folder", f"data.source.root={tmp_path}/tree", "data.train_images=null"),
        *(f"data.source.cache_dir={tmp_path}/cache", "data.val_images=4", "data.batch_size=4"),
        *("model/net=unet_small", "model.conditional=true", "callbacks=none", "trainer=smoke"),
    )
    assert trained.result is not None
    assert trained.result["metrics"]["test/bits_per_dim"] > 8  # noise has 8 bits
    module, _ = load_with_data(trained.path)
    assert module.spec.classes == ("a", "b")


def test_averaged_weights_and_the_measured_variance_belong_together(tmp_path: Path) -> None:
    """best.ckpt holds the values that a validation of its own weights measures."""
    trained = train(tmp_path, "ema_decay=0.9", "model/reverse_variance=optimal", "callbacks=none")
    module, data = load_with_data(trained.path)
    assert isinstance(module, DDPM) and isinstance(module.reverse_variance, Optimal)
    kept = {name: value.clone() for name, value in module.reverse_variance.state_dict().items()}
    assert module.reverse_variance.is_measured
    trained_again = DDPMModule(module, torch.optim.Adam)
    trainer(limit_val_batches=2).validate(trained_again, datamodule=data, verbose=False)
    for name, value in module.reverse_variance.state_dict().items():
        torch.testing.assert_close(value, kept[name], rtol=1e-6, atol=1e-9)


def test_a_run_leaves_its_pictures_and_where_its_bound_was_spent(tmp_path: Path) -> None:
    trained = train(
        tmp_path, "model.conditional=true", "model.guidance=2", "model/time_sampler=uniform"
    )
    assert trained.result is not None
    metrics, units = trained.result["metrics"], trained.result["units"]
    spent = json.loads((trained.path / "bound.json").read_text())
    assert sum(spent["nats"]) == pytest.approx(
        metrics["test/reconstruction"] + metrics["test/kl_diffusion"]
    )
    assert set(metrics) - set(units) == set()
    pictures = {path.name for path in trained.path.glob("pictures/*.png")}
    assert pictures == {
        f"{name}-final.png" for name in ("samples", "forward", "trajectory", "bound")
    }
