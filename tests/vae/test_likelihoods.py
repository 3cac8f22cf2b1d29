"""p(x|z): normalised, in nats, in float32, and refused where it does not fit the data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional

from genlab.config.build import build
from genlab.config.check import check
from genlab.protocols import ImageSpec
from genlab.vae import likelihoods
from genlab.vae.likelihoods import Likelihood

FILES = sorted((Path(__file__).parents[2] / "conf/model/likelihood").glob("*.yaml"))
GREY, COLOUR = ImageSpec(1, 4, 5), ImageSpec(3, 4, 5)
BINARY, LATENT = ImageSpec(1, 4, 5, levels=2), ImageSpec(1, 4, 5, levels=None)


def component(path: Path, **changes: Any) -> Likelihood:
    node = {**OmegaConf.to_container(OmegaConf.load(path)), **changes}
    likelihood: Likelihood = build(check(node, "model.likelihood"))
    return likelihood


def output_for(likelihood: Likelihood, spec: ImageSpec, batch: int = 6) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(batch, likelihood.output_channels(spec), spec.height, spec.width)


def pixels(spec: ImageSpec, batch: int = 6) -> Tensor:
    return torch.randint(256, (batch, *spec.shape)) / 255


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
def test_every_likelihood_scores_means_and_samples(path: Path, spec: ImageSpec) -> None:
    changes = {"colour_targets": True} if path.stem == "bernoulli" else {}
    likelihood = component(path, **changes)
    likelihood.check(spec)
    output, x = output_for(likelihood, spec).requires_grad_(), pixels(spec)
    log_prob = likelihood.log_prob(output, x)
    log_prob.sum().backward()  # type: ignore[no-untyped-call]
    assert log_prob.shape == (6,) and torch.isfinite(log_prob).all()
    assert output.grad is not None and torch.isfinite(output.grad).all()
    likelihood.eval()
    distribution = likelihood(output)
    torch.testing.assert_close(distribution.log_prob(x), likelihood.log_prob(output, x))
    assert distribution.mean.shape == distribution.sample().shape == x.shape


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_likelihood_computes_in_float32_on_a_half_precision_output(path: Path) -> None:
    likelihood = component(path).eval()
    output, x = output_for(likelihood, GREY).bfloat16(), pixels(GREY)
    expected = likelihood.log_prob(output.float(), x)
    assert likelihood.log_prob(output, x).dtype == torch.float32
    torch.testing.assert_close(likelihood.log_prob(output, x), expected)
    torch.testing.assert_close(likelihood(output).log_prob(x), expected)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_likelihood_is_normalised_over_its_support(path: Path) -> None:
    likelihood, spec = component(path).eval(), ImageSpec(1, 1, 1)
    output = torch.full((1, likelihood.output_channels(spec), 1, 1), 0.3)
    name, log_weight = path.stem, 0.0
    if name == "bernoulli":
        x = torch.tensor([0.0, 1.0])
    elif name.startswith("discretized"):
        x = torch.arange(256) / 255
    else:
        low, high = (0.0, 1.0) if name == "continuous_bernoulli" else (-12.0, 12.0)
        n = 20_000
        x = low + (high - low) * (torch.arange(n, dtype=torch.float64) + 0.5).float() / n
        log_weight = math.log((high - low) / n)
    x = x.reshape(-1, 1, 1, 1)
    log_prob = likelihood.log_prob(output.expand(len(x), -1, 1, 1), x).double()
    total = float((log_prob.detach() + log_weight).exp().sum())
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_squared_error_scale_means_a_squared_error(path: Path) -> None:
    likelihood = component(path).eval()
    sigma = likelihood.squared_error_scale()
    if sigma is None:
        assert not isinstance(likelihood, likelihoods.GaussianLikelihood)
        return
    output, x = output_for(likelihood, GREY), pixels(GREY)
    squared_error = (output - x).square().flatten(1).sum(1)
    constant = GREY.dims / 2 * math.log(2 * math.pi * sigma**2)
    expected = -squared_error / (2 * sigma**2) - constant
    torch.testing.assert_close(likelihood.log_prob(output, x), expected)


def test_bernoulli_is_the_cross_entropy_of_the_logits() -> None:
    logits, x = torch.randn(3, 1, 4, 5) * 30, pixels(GREY, 3)
    expected = functional.binary_cross_entropy_with_logits(
        logits.double(), x.double(), reduction="none"
    )
    torch.testing.assert_close(
        likelihoods.Bernoulli().log_prob(logits, x), -expected.flatten(1).sum(1).float()
    )


def test_a_gaussian_is_torch_s_normal() -> None:
    output, x = torch.randn(3, 1, 4, 5), torch.randn(3, 1, 4, 5)
    expected = Normal(output, 0.3).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(likelihoods.GaussianLikelihood(0.3).log_prob(output, x), expected)
    learned = likelihoods.LearnedGaussian(0.3)
    torch.testing.assert_close(learned.log_prob(output, x), expected)


def test_the_calibrated_variance_is_the_mse_and_its_reconstruction_is_exact() -> None:
    likelihood = likelihoods.CalibratedGaussian()
    output, x = torch.randn(8, 1, 4, 5, requires_grad=True), torch.randn(8, 1, 4, 5)
    mse = (output - x).square().mean()
    reconstruction = -likelihood.log_prob(output, x).mean()
    expected = GREY.dims / 2 * (torch.log(2 * math.pi * mse) + 1)
    torch.testing.assert_close(reconstruction, expected)
    # the gradient goes through the variance: it is that of the closed form
    (got,) = torch.autograd.grad(reconstruction, output, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected, output)
    torch.testing.assert_close(got, wanted)
    # and the variance, not its root, is the optimum of a free scale
    learned = likelihoods.LearnedGaussian(math.sqrt(mse.item()))
    learned.log_prob(output.detach(), x).mean().backward()
    assert float(learned.log_scale.grad) == pytest.approx(0, abs=1e-4)


def test_the_calibrated_variance_is_fixed_in_evaluation() -> None:
    likelihood = likelihoods.CalibratedGaussian()
    errors = [0.5, 0.1, 0.3]
    for error in errors:
        likelihood.log_prob(torch.zeros(4, 1, 4, 5), torch.full((4, 1, 4, 5), math.sqrt(error)))
    assert float(likelihood.variance) == pytest.approx(sum(errors) / 3)
    likelihood.eval()
    x = torch.randn(2, 1, 4, 5)
    expected = Normal(0, math.sqrt(0.3)).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(likelihood.log_prob(torch.zeros_like(x), x), expected)
    assert float(likelihood.variance) == pytest.approx(0.3)
    restored = likelihoods.CalibratedGaussian().eval()
    restored.load_state_dict(likelihood.state_dict())
    torch.testing.assert_close(restored.log_prob(torch.zeros_like(x), x), expected)


def test_training_uses_the_batch_variance_and_evaluation_the_running_variance() -> None:
    likelihood, output = likelihoods.CalibratedGaussian(), torch.zeros(4, 1, 4, 5)
    torch.manual_seed(0)
    batches = [scale * torch.randn(4, 1, 4, 5) for scale in (1.0, 0.1, 3.0, 0.5)]
    variances = [float(x.square().mean()) for x in batches]
    for i, (x, variance) in enumerate(zip(batches, variances, strict=True)):
        expected = Normal(0, math.sqrt(variance)).log_prob(x).flatten(1).sum(1)
        torch.testing.assert_close(likelihood.train().log_prob(output, x), expected)
        # for every batch that is evaluated
        running = Normal(0, math.sqrt(sum(variances[: i + 1]) / (i + 1)))
        for other in batches:
            expected = running.log_prob(other).flatten(1).sum(1)
            torch.testing.assert_close(likelihood.eval().log_prob(output, other), expected)


def test_a_perfect_fit_and_a_negative_reconstruction_are_finite() -> None:
    likelihood, x = likelihoods.CalibratedGaussian(), torch.rand(4, 1, 4, 5)
    assert torch.isfinite(likelihood.log_prob(x, x)).all()
    assert float(-likelihood.log_prob(x + 1e-3, x).mean()) < 0


@pytest.mark.parametrize(
    ("name", "spec", "remedy"),
    [
        ("bernoulli", COLOUR, "colour_targets=true"),
        ("bernoulli", LATENT, "gaussian"),
        ("continuous_bernoulli", LATENT, "gaussian"),
        ("continuous_bernoulli", BINARY, "bernoulli"),
        ("discretized_logistic", LATENT, "gaussian"),
        ("discretized_logistic", BINARY, "bernoulli"),
        ("discretized_logistic_mixture", LATENT, "gaussian"),
        ("discretized_logistic_mixture", BINARY, "bernoulli"),
    ],
)
def test_a_likelihood_that_does_not_fit_the_data_is_refused(
    name: str, spec: ImageSpec, remedy: str
) -> None:
    likelihood = component(FILES[0].with_name(f"{name}.yaml"))
    with pytest.raises(ValueError, match=f"^{name}.*{remedy}"):
        likelihood.check(spec)


def test_bernoulli_takes_binary_colour_and_grey_targets() -> None:
    likelihoods.Bernoulli().check(GREY)
    likelihoods.Bernoulli().check(ImageSpec(3, 4, 5, levels=2))
    likelihoods.Bernoulli(colour_targets=True).check(COLOUR)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: likelihoods.GaussianLikelihood(0), "scale=0"),
        (lambda: likelihoods.GaussianLikelihood(math.nan), "scale=nan"),
        (lambda: likelihoods.LearnedGaussian(-1), "initial_scale=-1"),
        (lambda: likelihoods.CalibratedGaussian(1.5), "decay=1.5"),
        (
            lambda: likelihoods.DiscretizedLogisticMixtureLikelihood(0),
            "components=0",
        ),
    ],
)
def test_a_wrong_value_is_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}: "):
        make()
