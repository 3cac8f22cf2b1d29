"""The losses have the optima of their papers, and the penalties are those of known gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from genlab.config.build import build
from genlab.config.check import check
from genlab.errors import ConfigError
from genlab.gan.augmentation import DifferentiableAugmentation
from genlab.gan.losses import (
    AdversarialLoss,
    Hinge,
    NonSaturating,
    RelativisticPaired,
    Wasserstein,
)
from genlab.gan.penalties import OneCentred, ZeroCentred, squared_gradient
from genlab.seeding import BatchNoise

CONF = Path(__file__).parents[2] / "conf/model"
FILES = sorted((CONF / "adversarial_loss").glob("*.yaml"))
#: Two distributions over four points.
P = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
Q = torch.tensor([0.4, 0.1, 0.1, 0.4], dtype=torch.float64)


def component(path: Path, key: str, **changes: Any) -> Any:
    node = {**OmegaConf.to_container(OmegaConf.load(path)), **changes}
    return build(check(node, key), key)


def expected(loss: AdversarialLoss, scores: Tensor, part: str = "discriminator") -> Tensor:
    """The loss of scores at four points, over all pairs of a real and a drawn one."""
    real, fake = (
        scores[i].flatten() for i in torch.meshgrid(*[torch.arange(4)] * 2, indexing="ij")
    )
    weights = (P[:, None] * Q).flatten()
    return (weights * getattr(loss, part)(real, fake)).sum()


def test_the_best_score_of_a_classifier_is_the_log_ratio_and_its_loss_the_js_divergence() -> None:
    scores = (P / Q).log().requires_grad_()
    loss = expected(NonSaturating(), scores)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient.abs().max() < 1e-12
    middle = (P + Q) / 2
    js = ((P * (P / middle).log()).sum() + (Q * (Q / middle).log()).sum()) / 2
    assert loss.item() == pytest.approx(2 * math.log(2) - 2 * float(js), rel=1e-12)


def test_the_best_score_under_the_hinge_loss_is_a_sign_and_its_loss_the_total_variation() -> None:
    scores = torch.where(P > Q, 1.0, -1.0).double()
    least = expected(Hinge(), scores)
    for _ in range(200):
        assert expected(Hinge(), scores + torch.randn(4, dtype=torch.float64)) >= least
    assert float(least) == pytest.approx(2 - float((P - Q).abs().sum()), rel=1e-12)


def test_the_wasserstein_loss_is_the_difference_of_the_mean_scores() -> None:
    scores = torch.randn(4, dtype=torch.float64)
    assert float(expected(Wasserstein(), scores)) == pytest.approx(float(((Q - P) * scores).sum()))


def test_a_relativistic_loss_sees_differences_of_scores_alone() -> None:
    scores = torch.randn(4, dtype=torch.float64)
    for part in ("discriminator", "generator"):
        moved = expected(RelativisticPaired(), scores + 7, part)
        assert float(moved) == pytest.approx(float(expected(RelativisticPaired(), scores, part)))
    equal = expected(RelativisticPaired(), torch.zeros(4, dtype=torch.float64))
    assert float(equal) == pytest.approx(math.log(2))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_networks_pull_the_score_of_a_drawn_image_in_opposite_directions(path: Path) -> None:
    loss: AdversarialLoss = component(path, "model.adversarial_loss")
    real, fake = (0.3 * torch.randn(50, dtype=torch.float64) for _ in range(2))
    fake.requires_grad_()
    (down,) = torch.autograd.grad(loss.discriminator(real, fake).sum(), fake)
    (up,) = torch.autograd.grad(loss.generator(real, fake).sum(), fake)
    assert (down > 0).all() and (up < 0).all()
    if not loss.is_relative:
        assert torch.equal(loss.generator(real, fake), loss.generator(fake.detach(), fake))


def test_a_squared_gradient_is_that_of_a_function_whose_gradient_is_known() -> None:
    x = torch.randn(6, 2, 3, 4, dtype=torch.float64)
    w = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    found = squared_gradient(lambda images: (w * images.square()).sum((1, 2, 3)), x)
    torch.testing.assert_close(found, (2 * w * x).square().sum((1, 2, 3)))
    (gradient,) = torch.autograd.grad(found.sum(), w)
    torch.testing.assert_close(gradient, (8 * w * x.square()).sum(0))


def test_penalties_have_the_weights_of_their_papers() -> None:
    real, fake = torch.randn(5, 1, 2, 2), torch.randn(5, 1, 2, 2)
    w = torch.tensor([3.0, 0.0, 4.0, 0.0]).view(1, 1, 2, 2)

    def score(x: Tensor) -> Tensor:
        return (w * x).sum((1, 2, 3))

    noise = BatchNoise(5, 0)
    terms = ZeroCentred(r1=0.1, r2=2)(score, real, fake, noise)
    assert {name: values.tolist() for name, values in terms.items()} == {
        "r1": pytest.approx([0.1 / 2 * 25] * 5),
        "r2": pytest.approx([25] * 5),
    }
    assert ZeroCentred(r1=0, r2=1)(score, real, fake, noise).keys() == {"r2"}
    (values,) = OneCentred(10)(score, real, fake, noise).values()
    assert values.tolist() == pytest.approx([10 * 16] * 5)


def test_a_lazy_penalty_is_due_at_every_so_manieth_step() -> None:
    due = [step for step in range(9) if ZeroCentred(every=3).is_due(step)]
    assert due == [2, 5, 8]
    assert ZeroCentred(every=3).is_due(None)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("penalty/r1", {"r1": -1}, r"^k\.r1=-1\.0: give a finite number, at least 0$"),
        ("penalty/r1_r2", {"r2": math.inf}, r"^k\.r2=inf: give a finite number, at least 0$"),
        ("penalty/r1", {"every": 0}, r"^k\.every=0: give a whole number of at least 1$"),
        ("penalty/one_centred", {"weight": -3}, r"^k\.weight=-3\.0: "),
        ("augmentation/differentiable", {"cutout": 1.5}, r"^k\.cutout=1\.5: .* at most 1$"),
        ("augmentation/differentiable", {"translation": -0.1}, r"^k\.translation=-0\.1: "),
        ("augmentation/differentiable", {"brightness": -1}, r"^k\.brightness=-1\.0: "),
    ],
)
def test_a_value_out_of_range_is_named(file: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        component(CONF / f"{file}.yaml", "k", **change)


def augmented(x: Tensor, **only: float) -> Tensor:
    none = {"brightness": 0.0, "translation": 0.0, "cutout": 0.0}
    return DifferentiableAugmentation(**{**none, **only})(x, BatchNoise(len(x), 0))


def test_no_augmentation_is_the_identity() -> None:
    x = torch.randn(7, 3, 6, 5)
    assert torch.equal(augmented(x), x)


def test_brightness_adds_a_constant_to_each_image() -> None:
    x = torch.randn(40, 2, 5, 6)
    change = augmented(x, brightness=1.0) - x
    assert change.std((1, 2, 3)).max() < 1e-6
    assert change.abs().max() <= 0.5 and change[:, 0, 0, 0].std() > 0.2


def test_a_shift_moves_all_pixels_alike_and_fills_with_zeros() -> None:
    x = torch.zeros(200, 1, 8, 16)
    x[:, :, 4, 8] = 1.0
    y = augmented(x, translation=0.25)
    assert torch.equal(y.sum((1, 2, 3)), torch.ones(200))
    rows, columns = (y.nonzero()[:, axis] for axis in (2, 3))
    assert {*rows.tolist()} == {2, 3, 4, 5, 6}
    assert {*columns.tolist()} == {*range(4, 13)}
    full = augmented(torch.ones(200, 1, 8, 16), translation=0.25).sum((1, 2, 3))
    lost = (8 - (rows - 4).abs()) * (16 - (columns - 8).abs())
    assert full.tolist() == lost.tolist()


def test_cutout_blanks_one_rectangle_of_at_most_the_given_side() -> None:
    y = augmented(torch.ones(300, 2, 8, 12), cutout=0.5)
    blank = (y == 0).all(1)
    assert torch.equal(blank, (y == 0).any(1))
    height, width = blank.any(2).sum(1), blank.any(1).sum(1)
    assert torch.equal(blank.sum((1, 2)), height * width)
    assert height.max() == 4 and width.max() == 6
    assert blank.any(0).all()  # every pixel of some image


def test_an_augmentation_passes_gradients_to_what_it_kept() -> None:
    x = torch.randn(9, 1, 8, 8, requires_grad=True)
    DifferentiableAugmentation()(x, BatchNoise(9, 0)).sum().backward()
    assert x.grad is not None
    assert {*x.grad.unique().tolist()} == {0.0, 1.0}
