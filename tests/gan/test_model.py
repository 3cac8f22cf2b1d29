"""The GAN: which network a loss trains, what a draw depends on, how instability is named."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from genlab.gan.augmentation import DifferentiableAugmentation
from genlab.gan.evaluation import Diversity, energy_score
from genlab.gan.losses import (
    AdversarialLoss,
    Hinge,
    NonSaturating,
    RelativisticPaired,
    Wasserstein,
)
from genlab.gan.model import GAN, Networks
from genlab.gan.penalties import GradientPenalty, OneCentred, ZeroCentred
from genlab.nets.gan import ConvDiscriminator, ConvGenerator
from genlab.protocols import (
    CanEncode,
    CanExport,
    CanReconstruct,
    CanSample,
    CanSampleClasses,
    CanWalk,
    HasBound,
    HasForecast,
    HasLikelihood,
    HasSampler,
    HasSetting,
    ImageSpec,
)
from genlab.seeding import BatchNoise, ImageNoise

SPEC = ImageSpec(1, 10, 7, classes=("a", "b", "c"))
NETWORKS = Networks(
    partial(ConvGenerator, channels=(8, 8)), partial(ConvDiscriminator, channels=(8, 8), features=8)
)


def gan(**changes: Any) -> GAN:
    torch.manual_seed(0)
    keys = {"spec": SPEC, "latent_dim": 5, "net": NETWORKS, "adversarial_loss": NonSaturating()}
    return GAN(**{**keys, **changes})


def images(n: int = 12, spec: ImageSpec = SPEC) -> Tensor:
    return torch.rand(n, *spec.shape, generator=torch.Generator().manual_seed(1))


def labels(n: int = 12) -> Tensor:
    return torch.arange(n) % 3


def gradients(network: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in network.parameters()]


EVERYTHING = {
    "penalty": ZeroCentred(1, 1),
    "augmentation": DifferentiableAugmentation(),
    "conditional": True,
}


@pytest.mark.parametrize("loss", [NonSaturating(), Hinge(), Wasserstein(), RelativisticPaired()])
def test_each_loss_trains_its_own_network_alone(loss: AdversarialLoss) -> None:
    model, x = gan(adversarial_loss=loss, **EVERYTHING), images()
    model.generator_loss(x, labels(), BatchNoise(12, 0))["generator_loss"].backward()
    assert all(gradient is None for gradient in gradients(model.discriminator))
    assert all(p.requires_grad for p in model.discriminator.parameters())
    of_generator = gradients(model.generator)
    assert any(g is not None and g.abs().max() > 0 for g in of_generator)
    model.zero_grad()
    model.discriminator_loss(x, labels(), 0, BatchNoise(12, 0))["discriminator_loss"].backward()
    assert all(gradient is None for gradient in gradients(model.generator))
    assert all(g is not None for g in gradients(model.discriminator))


def test_the_sum_of_the_losses_has_the_gradients_of_both() -> None:
    model, x = gan(**EVERYTHING), images()
    noise = BatchNoise(12, 3)
    model.discriminator_loss(x, labels(), 0, noise)["discriminator_loss"].backward()
    model.generator_loss(x, labels(), noise)["generator_loss"].backward()
    apart = gradients(model)
    model.zero_grad()
    terms = model.loss(x, labels(), 0, BatchNoise(12, 3))
    assert {"r1", "r2", "real_score", "fake_score"} <= terms.keys()
    terms["loss"].backward()
    for one, other in zip(apart, gradients(model), strict=True):
        torch.testing.assert_close(one, other)


def test_a_lazy_penalty_counts_as_often_as_it_is_left_out() -> None:
    model, x = gan(penalty=ZeroCentred(1, 0, every=4)), images()
    losses = [model.discriminator_loss(x, step=step, noise=BatchNoise(12, 0)) for step in (2, 3)]
    assert "r1" not in losses[0]
    difference = losses[1]["discriminator_loss"] - losses[0]["discriminator_loss"]
    torch.testing.assert_close(difference, 4 * losses[1]["r1"])


class Point(nn.Module):
    """Every image is the same number."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return self.theta.expand(len(z), 1, 1, 1)


class Slope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.psi = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return self.psi * x[:, 0, 0, 0]


def dirac(loss: AdversarialLoss, penalty: GradientPenalty | None) -> float:
    """The distance that remains between two points, data at 0 and samples from 1 on.

    This is the Dirac-GAN of Mescheder et al. (2018, def. 2.1), trained by gradient descent.
    """
    spec = ImageSpec(1, 1, 1, levels=None)
    networks = Networks(lambda **_: Point(), lambda **_: Slope())
    model = GAN(spec, 1, loss, networks, penalty or ZeroCentred())
    model.penalty = penalty  # afterwards, since some losses are refused without one
    x = torch.full((4, 1, 1, 1), 0.5)
    turn = [torch.optim.SGD(network.parameters(), 0.1) for network in model.networks().values()]
    for _ in range(1000):
        for optimizer, part in zip(turn, ("generator_loss", "discriminator_loss"), strict=True):
            optimizer.zero_grad()
            getattr(model, part)(x)[part].backward()
            optimizer.step()
    return abs(model.generator.theta.item())


@pytest.mark.parametrize(
    ("loss", "penalty", "converges"),
    [
        (NonSaturating(), None, False),
        (Wasserstein(), None, False),
        (RelativisticPaired(), None, False),
        (NonSaturating(), ZeroCentred(0.5, 0), True),
        (NonSaturating(), ZeroCentred(0, 0.5), True),
        (Wasserstein(), ZeroCentred(0.5, 0), True),
        (RelativisticPaired(), ZeroCentred(0.5, 0.5), True),
    ],
)
def test_the_dirac_gan_converges_with_a_zero_centred_penalty_alone(
    loss: AdversarialLoss, penalty: GradientPenalty | None, converges: bool
) -> None:
    distance = dirac(loss, penalty)
    assert distance < 1e-3 if converges else distance > 0.1


def test_a_sample_is_a_function_of_seed_number_and_class() -> None:
    model = gan(conditional=True)
    ten = model.sample(10, seed=3)
    assert ten.shape == (10, *SPEC.shape) and ten.min() >= 0 and ten.max() <= 1
    torch.testing.assert_close(model.sample(3, seed=3, first=6), ten[6:9])
    torch.testing.assert_close(model.sample(10, seed=3, classes=[0, 1, 2]), ten)
    assert (model.sample(10, seed=4) - ten).abs().max() > 1e-4
    ones = model.sample(10, seed=3, classes=[1])
    same = (ones - ten).abs().amax((1, 2, 3)) < 1e-6
    assert same.tolist() == [i % 3 == 1 for i in range(10)]


def test_a_class_that_the_model_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^class=3: this model knows the classes 0 to 2$"):
        gan(conditional=True).sample(1, classes=[3])
    with pytest.raises(ValueError, match=r"^class=0: this model was trained without classes$"):
        gan().sample(1, classes=[0])


def test_a_walk_is_closed_and_passes_two_draws() -> None:
    model = gan(conditional=True)
    walk = model.walk(panels=70, steps=4)
    assert walk.shape == (4, 70, *SPEC.shape)
    noise = ImageNoise(0, "walk", indices=range(70))
    a, b = noise.normal(2, 5).unbind(1)
    of_class = torch.arange(70) % 3
    for frame, z in zip(walk, (a, b, -a, -b), strict=True):
        with torch.no_grad():
            expected = ((model.generate(z, of_class) + 1) / 2).clamp(0, 1)
        torch.testing.assert_close(frame, expected, rtol=1e-4, atol=1e-5)


def test_its_abilities_are_to_sample_and_no_bound() -> None:
    model = gan()
    for ability in (CanSample, CanSampleClasses, CanWalk, CanExport, HasSetting):
        assert isinstance(model, ability)
    for ability in (HasBound, HasLikelihood, CanEncode, CanReconstruct, HasSampler, HasForecast):
        assert not isinstance(model, ability)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_dim": 0}, r"^latent_dim=0: give a whole number of at least 1$"),
        ({"draws": 1}, r"^draws=1: give a whole number of at least 2$"),
        (
            {"conditional": True, "spec": ImageSpec(1, 8, 8)},
            r"^conditional=true: these data have no classes; give false$",
        ),
    ],
)
def test_a_value_out_of_range_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gan(**change)


@pytest.mark.parametrize(
    ("penalty", "value"),
    [(None, "null"), (ZeroCentred(0, 0), "0"), (OneCentred(0), "0")],
)
def test_a_loss_without_a_minimum_is_refused_where_nothing_bounds_the_gradient(
    penalty: GradientPenalty | None, value: str
) -> None:
    message = f"^penalty={value}: the Wasserstein loss has no minimum where .* give a penalty"
    with pytest.raises(ValueError, match=message):
        gan(adversarial_loss=Wasserstein(), penalty=penalty)
    for other in (NonSaturating(), Hinge(), RelativisticPaired()):
        gan(adversarial_loss=other, penalty=penalty)

    def bounded(**keys: Any) -> nn.Module:
        network = ConvDiscriminator(channels=(8, 8), features=8, **keys)
        return network.apply(lambda m: spectral_norm(m) if hasattr(m, "weight") else m)

    networks = Networks(NETWORKS.generator, bounded)
    gan(adversarial_loss=Wasserstein(), penalty=penalty, net=networks)


@pytest.mark.parametrize("penalty", [ZeroCentred(1, 0), ZeroCentred(0, 1), OneCentred(1)])
def test_one_penalty_is_enough_for_the_wasserstein_loss(penalty: GradientPenalty) -> None:
    assert gan(adversarial_loss=Wasserstein(), penalty=penalty).penalty is penalty


def test_scores_are_in_float32_and_current_under_autocast() -> None:
    """Autocast keeps copies of weights; without care those before a step, or without gradients."""
    model, x = gan(penalty=ZeroCentred(1, 1)), images()

    def gradient() -> list[Tensor | None]:
        model.zero_grad()
        terms = model.discriminator_loss(x, step=0, noise=BatchNoise(12, 0))
        assert all(value.dtype == torch.float32 for value in terms.values())
        terms["discriminator_loss"].backward()
        return gradients(model.discriminator)

    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = gradient()
    with torch.autocast("cpu", torch.bfloat16):
        model.generator_loss(x, noise=BatchNoise(12, 1))["generator_loss"].backward()
        assert all(g is not None for g in gradients(model.generator))
        for one, other in zip(gradient(), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0.05, atol=1e-3)


def test_compiled_networks_have_the_same_losses_penalties_included() -> None:
    model, x = gan(**EVERYTHING), images()
    expected = model.loss(x, labels(), 0, BatchNoise(12, 0))
    for network in model.networks().values():
        network.compile(backend="aot_eager")
    found = model.loss(x, labels(), 0, BatchNoise(12, 0))
    found["loss"].backward()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_a_rank_has_the_rows_of_the_whole_batch() -> None:
    model, x = gan(adversarial_loss=RelativisticPaired(), **EVERYTHING), images()
    whole = model.loss(x, labels(), 0, BatchNoise(12, 0))
    parts = [
        model.loss(x[rank::2], labels()[rank::2], 0, BatchNoise(6, 0, "cpu", rank, 2))
        for rank in (0, 1)
    ]
    for name, value in whole.items():
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, value)


def test_the_energy_score_is_half_the_energy_distance_above_that_of_the_data() -> None:
    """For N(m, 1) on a line against N(0, 1) data, where E|X - Y| is known."""

    def mean_distance(m: float) -> float:  # of N(m, 2) from 0: a folded normal
        s = math.sqrt(2)
        return s * math.sqrt(2 / math.pi) * math.exp(-((m / s) ** 2) / 2) + m * math.erf(m / 2)

    n = 200_000
    random = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, 1, 1, generator=random, dtype=torch.float64)
    for m in (0.0, 0.5, 2.0):
        samples = m + torch.randn(n, 2, 1, 1, 1, generator=random, dtype=torch.float64)
        found = energy_score(samples, x)
        error = 4 * float(found.std()) / math.sqrt(n)
        assert float(found.mean()) == pytest.approx(
            mean_distance(m) - mean_distance(0) / 2, abs=error
        )


def test_the_energy_score_is_lowest_for_the_distribution_of_the_data() -> None:
    def score(values: Tensor) -> float:
        return float(energy_score(values, torch.randn(20_000, 1, 2, 2)).mean())

    true = score(torch.randn(20_000, 4, 1, 2, 2))
    assert true < score(0.5 * torch.randn(20_000, 4, 1, 2, 2))
    assert true < score(torch.zeros(20_000, 4, 1, 2, 2))
    assert true < score(2.0 * torch.randn(20_000, 4, 1, 2, 2))


def diversity(sample: Tensor, target: Tensor) -> float:
    metric = Diversity()
    metric.update(sample, target)
    return float(metric.compute()["diversity"])


def test_k_different_samples_cover_at_most_k_minus_1_directions() -> None:
    target = torch.randn(4000, 1, 4, 4)
    few = 5 * torch.randn(9, 1, 4, 4)  # far apart, so that they cover as many as they can
    directions = 16  # of equal variance; 95 % of it takes all of them
    for k in (1, 2, 5, 9):
        share = diversity(few[torch.arange(4000) % k], target)
        assert share == pytest.approx((k - 1) / directions, abs=1e-3)


def test_samples_like_the_data_have_all_the_diversity_and_blurred_ones_less() -> None:
    target = torch.randn(4000, 2, 3, 3)
    assert diversity(target, target) == pytest.approx(1)
    assert diversity(torch.randn(4000, 2, 3, 3), target) > 0.95
    assert diversity(0.5 * torch.randn(4000, 2, 3, 3), target) == pytest.approx(0.25, abs=0.02)
    assert diversity(2 * torch.randn(4000, 2, 3, 3), target) == pytest.approx(1)


def test_a_generator_that_ignores_its_noise_has_no_diversity_however_many_classes_it_knows() -> (
    None
):
    labels = torch.arange(4000) % 50
    centres = 3 * torch.randn(50, 1, 4, 4)
    target = centres[labels] + torch.randn(4000, 1, 4, 4)

    def within(sample: Tensor) -> float:
        metric = Diversity(within_classes=True)
        for rows in (slice(0, 1500), slice(1500, 4000)):
            metric.update(sample[rows], target[rows], labels[rows])
        return float(metric.compute()["diversity"])

    assert diversity(centres[labels], target) > 0.8
    assert within(centres[labels]) == pytest.approx(0, abs=1e-12)
    assert within(centres[labels] + torch.randn(4000, 1, 4, 4)) > 0.95
    # the noise alone counts: the classes may lie anywhere
    assert within(torch.randn(4000, 1, 4, 4)) > 0.95


def test_data_without_variance_have_no_diversity() -> None:
    metric = Diversity()
    metric.update(torch.randn(10, 1, 3, 3), torch.ones(10, 1, 3, 3))
    assert metric.compute() == {}


def test_a_discriminator_that_cannot_tell_is_right_half_of_the_time() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
            return torch.zeros(len(x))

    class Brightness(nn.Module):
        def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
            return x.mean((1, 2, 3))

    for network, accuracy in ((Constant(), 0.5), (Brightness(), 1.0)):
        model = gan(net=Networks(NETWORKS.generator, lambda _of=network, **_: _of))
        values = model.evaluate(torch.ones(6, *SPEC.shape), None, BatchNoise(6, 0))
        assert values["discriminator_accuracy"].tolist() == [accuracy] * 6


@pytest.mark.parametrize(
    ("metrics", "verdict"),
    [
        ({"energy_score": 5.0, "diversity": 0.9, "discriminator_accuracy": 0.7}, ""),
        ({"energy_score": 5.0, "diversity": 0.1, "discriminator_accuracy": 1.0}, "mode collapse"),
        (
            {"energy_score": 5.0, "diversity": 0.9, "discriminator_accuracy": 1.0},
            "saturated discriminator",
        ),
        ({"energy_score": math.nan, "diversity": math.nan}, "diverged"),
        # of three classes: one alone is 2/3 from equal shares, two of them 1/3
        ({"diversity": 0.9, "class_distance_classifier_1a2b3c": 0.66}, "mode collapse"),
        ({"diversity": 0.9, "class_distance_classifier_1a2b3c": 0.33}, ""),
        ({}, ""),
    ],
)
def test_an_instability_is_named(metrics: dict[str, float], verdict: str) -> None:
    assert gan().verdict(metrics) == verdict


def test_penalty_and_loss_make_the_label() -> None:
    assert gan().label() == "non-saturating loss"
    assert gan(penalty=ZeroCentred(0.5, 0.0)).label() == "non-saturating loss, R1 0.5"
    model = gan(adversarial_loss=Wasserstein(), penalty=OneCentred(10, every=2))
    assert model.describe().startswith("Wasserstein loss, gradient penalty 10 every 2 steps; ")
