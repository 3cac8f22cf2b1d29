"""Test the meaning of a quoted KL weight: the table of conventions, and the refusals."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch

from genlab.protocols import ImageSpec
from genlab.vae.kl import KLConvention, effective
from genlab.vae.likelihoods import Bernoulli, GaussianLikelihood, LearnedGaussian, Likelihood

MNIST = ImageSpec(1, 28, 28)


@pytest.mark.parametrize(
    ("reconstruction", "kl", "beta"),
    [
        ("half_sum", "sum", 30),
        ("sum", "sum", 15),
        ("mean", "sum", 11_760),
        ("mean", "mean", 735),
    ],
)
def test_what_30_means_on_mnist(reconstruction: Any, kl: Any, beta: float) -> None:
    convention = KLConvention("squared", reconstruction, kl)
    weight = effective(30, convention, GaussianLikelihood(1.0), MNIST, latent_dim=16)
    assert weight.quoted == 30
    assert weight.beta_effective == pytest.approx(beta)
    assert weight.theta == pytest.approx(beta)
    assert f"{beta:g}" in weight.sentence and "kl_weight=30" in weight.sentence


def test_only_theta_is_identifiable_from_a_squared_error() -> None:
    convention = KLConvention("squared", "sum", "sum")
    for sigma in (0.1, 1.0, 3.0):
        weight = effective(30, convention, GaussianLikelihood(sigma), MNIST, 16)
        assert weight.theta == pytest.approx(15)
        assert weight.beta_effective == pytest.approx(15 / sigma**2)


@pytest.mark.parametrize(
    ("reconstruction", "kl", "beta"), [("mean", "sum", 30 * 784), ("sum", "mean", 30 / 16)]
)
def test_a_reduced_cross_entropy(reconstruction: Any, kl: Any, beta: float) -> None:
    convention = KLConvention("cross_entropy", reconstruction, kl)
    weight = effective(30, convention, Bernoulli(), MNIST, latent_dim=16)
    assert weight.beta_effective == pytest.approx(beta)
    assert weight.theta is None


def test_without_a_convention_the_weight_is_canonical() -> None:
    weight = effective(30, None, Bernoulli(), MNIST, 16)
    assert (weight.quoted, weight.beta_effective, weight.theta) == (30, 30, None)
    weight = effective(30, None, GaussianLikelihood(0.5), MNIST, 16)
    assert (weight.beta_effective, weight.theta) == (30, 7.5)
    assert effective(0, None, Bernoulli(), MNIST, 16).beta_effective == 0


@pytest.mark.parametrize(
    ("reconstruction", "kl"), list(product(["sum", "half_sum", "mean"], ["sum", "mean"]))
)
def test_the_converted_loss_is_the_quoted_one_up_to_a_factor(reconstruction: Any, kl: Any) -> None:
    """Gradients of a * SSE + w * b * KL and of the canonical loss are parallel."""
    torch.manual_seed(0)
    x, output = torch.rand(4, 1, 28, 28), torch.rand(4, 1, 28, 28, requires_grad=True)
    rate = torch.rand(4, 16, requires_grad=True)
    error = (output - x).square()
    a = {"sum": error.sum(), "half_sum": error.sum() / 2, "mean": error.mean() * 4}[reconstruction]
    b = rate.sum() if kl == "sum" else rate.mean(1).sum()
    quoted = torch.autograd.grad(a + 7 * b, [output, rate])
    likelihood = GaussianLikelihood(0.3)
    weight = effective(7, KLConvention("squared", reconstruction, kl), likelihood, MNIST, 16)
    loss = -likelihood.log_prob(output, x).sum() + weight.beta_effective * rate.sum()
    canonical = torch.autograd.grad(loss, [output, rate])
    ratios = [c / q for c, q in zip(canonical, quoted, strict=True)]
    torch.testing.assert_close(ratios[0].mean(), ratios[1].mean())
    torch.testing.assert_close(ratios[0].std(), torch.tensor(0.0), atol=0.01, rtol=0)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "30", None, True])
def test_a_weight_that_is_no_number_from_0_up_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^kl_weight="):
        effective(value, None, Bernoulli(), MNIST, 16)


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        ({}, "error"),
        ({"error": "squared"}, "reconstruction"),
        ({"error": "squared", "kl": "sum"}, "reconstruction"),
        ({"error": "squared", "reconstruction": "mean"}, "kl"),
        ({"error": "mse", "reconstruction": "mean", "kl": "sum"}, "error"),
        ({"error": "squared", "reconstruction": "mean", "kl": "half_sum"}, "kl"),
        (
            {"error": "cross_entropy", "reconstruction": "half_sum", "kl": "sum"},
            "reconstruction",
        ),
    ],
)
def test_a_convention_that_does_not_state_its_reductions_is_refused(
    arguments: dict[str, Any], missing: str
) -> None:
    with pytest.raises(ValueError, match=f"^{missing}(=| is )"):
        KLConvention(**arguments)


@pytest.mark.parametrize(
    ("error", "likelihood"),
    [
        ("squared", Bernoulli()),
        ("squared", LearnedGaussian()),
        ("cross_entropy", GaussianLikelihood(1.0)),
    ],
)
def test_a_convention_of_another_error_is_refused(error: Any, likelihood: Likelihood) -> None:
    with pytest.raises(ValueError, match=f"^kl_convention.error='{error}'"):
        effective(1, KLConvention(error, "mean", "sum"), likelihood, MNIST, 16)
