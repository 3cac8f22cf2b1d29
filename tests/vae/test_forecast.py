"""The forecast: the linear VAE solved exactly, and what holds for any decoder."""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal
from torch.nn import functional

import genlab
from genlab.errors import DataError
from genlab.protocols import ImageSpec
from genlab.vae import spectrum as spectrum_module
from genlab.vae.bounds import elbo_terms, gaussian_kl
from genlab.vae.diagnostics import active_units, fitted_aggregate
from genlab.vae.forecast import Forecast, forecast, forecasts, optimal_variance, water_filling
from genlab.vae.likelihoods import (
    Bernoulli,
    CalibratedGaussian,
    ContinuousBernoulliLikelihood,
    DiscretizedLogisticLikelihood,
    DiscretizedLogisticMixtureLikelihood,
    GaussianLikelihood,
    LearnedGaussian,
)
from genlab.vae.priors import StandardNormal
from genlab.vae.spectrum import PixelStatistics, spectrum

EIGENVALUES = torch.tensor([9.0, 5.0, 3.0, 1.5, 0.7, 0.3, 0.2, 0.1], dtype=torch.float64)
SPEC = ImageSpec(1, 2, 4, levels=None)
K = 5


@dataclass
class LinearVAE:
    """Data of D = 8 with exactly these eigenvalues, and a linear VAE on them, in float64."""

    x: Tensor
    mean: Tensor
    decoder: Tensor
    encoder: Tensor
    log_var: Tensor

    @staticmethod
    def optimal(theta: float) -> LinearVAE:
        torch.manual_seed(0)
        basis = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
        mean = torch.randn(8, dtype=torch.float64)
        # 16 points, one pair on each axis, have the covariance without any sampling error
        axes = basis * (8 * EIGENVALUES).sqrt()
        x = mean + torch.cat([axes, -axes], dim=1).T
        top, u = EIGENVALUES[:K], basis[:, :K]
        gain = (top - theta).clamp(min=0).sqrt()
        log_var = (theta / top.clamp(min=theta)).log()
        return LinearVAE(x, mean, u * gain, u * gain / top, log_var)

    def terms(self, likelihood: GaussianLikelihood) -> tuple[Tensor, Tensor]:
        """Reconstruction and KL, averaged over the data and exactly over z."""
        z_mean = (self.x - self.mean) @ self.encoder
        scale = (self.log_var / 2).exp()
        # a quadratic is integrated exactly by two points on each axis of a Gaussian
        steps = math.sqrt(K) * torch.diag(scale)
        reconstruction, kl = torch.zeros(()), torch.zeros(())
        x = self.x.float().reshape(-1, *SPEC.shape)
        prior = StandardNormal(SPEC, K)
        for step in torch.cat([steps, -steps]):
            z = z_mean + step
            output = (self.mean + z @ self.decoder.T).float().reshape_as(x)
            q = Normal(z_mean.float(), scale.float().expand(len(z), K))
            terms = elbo_terms(x, output, z.float(), q, likelihood, prior)
            reconstruction = reconstruction + terms.reconstruction.mean() / (2 * K)
            kl = kl + terms.kl.mean() / (2 * K)
        return reconstruction, kl


@pytest.mark.parametrize(
    ("theta", "rate"), [(0.1, 8.23350), (1, 2.65537), (2, 1.41292), (4, 0.51704), (30, 0.0)]
)
def test_the_published_rates_to_five_digits(theta: float, rate: float) -> None:
    found = water_filling(EIGENVALUES, theta, K)
    assert found.rate == pytest.approx(rate, abs=5e-6)
    # of each latent its mean KL: the aggregate is N(0, 1), so that only its variance counts
    model = LinearVAE.optimal(theta)
    z = (model.x - model.mean) @ model.encoder
    by_unit = gaussian_kl(z, model.log_var.expand_as(z)).mean(0)
    assert found.rates == pytest.approx(by_unit.tolist(), abs=1e-12)


@pytest.mark.parametrize("theta", [0.1, 0.7, 1.0, 2.0, 4.0, 30.0])
@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_the_terms_of_an_optimal_linear_vae_are_the_forecast(theta: float, sigma: float) -> None:
    model, likelihood = LinearVAE.optimal(theta), GaussianLikelihood(sigma)
    reconstruction, kl = model.terms(likelihood)
    pixels = model.x.reshape(-1, *SPEC.shape).numpy()
    found = forecast(likelihood, pixels, SPEC, K, theta / sigma**2)
    assert found.exact
    assert found.rate == pytest.approx(float(kl), rel=1e-5, abs=1e-5)
    assert found.reconstruction == pytest.approx(float(reconstruction), rel=1e-5)
    assert found.collapse == (theta >= 9) == (found.active_units == 0)
    assert found.collapse_threshold == pytest.approx(9 / sigma**2, rel=1e-5)
    assert found.rate_ceiling is not None and found.rate is not None
    assert found.rate <= found.rate_ceiling
    # with the posterior mean each active direction keeps theta^2 / l
    z = (model.x - model.mean) @ model.encoder
    error = (model.x - model.mean - z @ model.decoder.T).square().sum(1).mean()
    expected = water_filling(EIGENVALUES, theta, K)
    assert expected.sse_mean == pytest.approx(float(error))
    assert found.squared_error == pytest.approx(expected.distortion, rel=1e-5)
    # the variance of a posterior mean is 1 - theta / l, and the aggregate is exactly N(0, I)
    assert active_units(z) == expected.active_units == found.active_units
    fitted = fitted_aggregate(z, model.log_var.expand_as(z))
    identity = torch.eye(K, dtype=torch.float64)
    torch.testing.assert_close(fitted.covariance_matrix, identity, atol=1e-12, rtol=0)


@pytest.mark.parametrize("theta", [0.5, 1.0, 4.0, 30.0])
def test_no_other_linear_vae_does_better(theta: float) -> None:
    likelihood = GaussianLikelihood(1.0)

    def loss(model: LinearVAE) -> Tensor:
        reconstruction, kl = model.terms(likelihood)
        return reconstruction + theta * kl

    best = LinearVAE.optimal(theta)
    parts = [best.decoder, best.encoder, best.log_var]
    for part in parts:
        part.requires_grad_()
    optimum = loss(best)
    for gradient in torch.autograd.grad(optimum, parts):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=2e-5, rtol=0)
    for size in (0.01, 0.1, 1.0):
        for _ in range(5):
            moved = [p.detach() + size * torch.randn_like(p) for p in parts]
            assert loss(LinearVAE(best.x, best.mean, *moved)) > optimum - 1e-4


def test_at_weight_1_the_bound_is_the_likelihood_of_probabilistic_pca() -> None:
    sigma2 = float(EIGENVALUES[K:].mean())
    model = LinearVAE.optimal(sigma2)
    covariance = model.decoder @ model.decoder.T + sigma2 * torch.eye(8, dtype=torch.float64)
    exact = -MultivariateNormal(model.mean, covariance).log_prob(model.x).mean()
    reconstruction, kl = model.terms(GaussianLikelihood(math.sqrt(sigma2)))
    assert float(reconstruction + kl) == pytest.approx(float(exact), rel=1e-5)
    # which a free scale finds by itself: the mean of the discarded eigenvalues
    assert optimal_variance(EIGENVALUES, 1.0, K) == pytest.approx(sigma2)
    for likelihood in (LearnedGaussian(), CalibratedGaussian()):
        pixels = model.x.reshape(-1, *SPEC.shape).numpy()
        found = forecast(likelihood, pixels, SPEC, K, 1.0)
        assert found.reconstruction is not None and found.rate is not None
        assert found.reconstruction + found.rate == pytest.approx(float(exact), rel=1e-5)
        assert found.rate_ceiling is None


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 1.4, 1.7, 2.5, 4.0, 30.0])
def test_the_optimal_scale_is_the_minimum_over_all_scales(beta: float) -> None:
    def loss(variance: float) -> float:
        optimum = water_filling(EIGENVALUES, beta * variance, K)
        rate = 0.0 if beta == 0 else beta * optimum.rate
        return 4 * math.log(variance) + optimum.distortion / (2 * variance) + rate

    found = optimal_variance(EIGENVALUES, beta, K)
    grid = torch.logspace(-3, 2, 4001).tolist()
    assert loss(found) <= min(map(loss, grid)) + 1e-9
    # the self-consistency that Rybkin et al. prescribe: the variance is the mean squared error
    assert found == pytest.approx(water_filling(EIGENVALUES, beta * found, K).distortion / 8)


def test_a_free_scale_that_can_fit_perfectly_has_no_optimum() -> None:
    assert optimal_variance(torch.tensor([2.0, 1.0, 0.0, 0.0]), 1.0, 2) == 0


def test_weight_0_is_pca_with_an_infinite_rate() -> None:
    optimum = water_filling(EIGENVALUES, 0.0, K)
    assert optimum.rate == math.inf and optimum.active_units == K
    assert optimum.distortion == optimum.sse_mean == pytest.approx(0.6)
    pixels = LinearVAE.optimal(1.0).x.reshape(-1, *SPEC.shape).numpy()
    found = forecast(GaussianLikelihood(1.0), pixels, SPEC, K, 0.0)
    assert found.rate_ceiling == math.inf and found.collapse is False
    assert found.squared_error == pytest.approx(0.6, rel=1e-4)


def binary_data() -> Tensor:
    """300 images of 6 correlated bits, (N, 1, 2, 3)."""
    torch.manual_seed(0)
    cause = torch.rand(300, 1) < 0.4
    kept = torch.rand(300, 6) < torch.tensor([0.9, 0.8, 0.85, 0.6, 0.7, 0.95])
    return torch.where(kept, cause, ~cause).float().reshape(-1, 1, 2, 3)


def test_the_bernoulli_threshold_is_where_the_collapsed_point_loses_its_stability() -> None:
    x = binary_data()
    spec, flat = ImageSpec(1, 2, 3, levels=2), x.flatten(1).double()
    likelihood, p = Bernoulli(), x.flatten(1).double().mean(0)
    found = forecast(likelihood, x.numpy(), spec, 1, 1.0)
    threshold = found.collapse_threshold
    assert threshold is not None
    # an independent computation of the direction: the correlation matrix of bits
    values, vectors = torch.linalg.eigh(torch.corrcoef(flat.T))
    assert threshold == pytest.approx(float(values[-1]), rel=1e-4)
    scale = (p * (1 - p)).sqrt()
    u = ((flat - p) / scale) @ vectors[:, -1]
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = torch.tensor(weights / weights.sum())

    def gain(beta: float, decoder: float, encoder: float, log_var: float) -> float:
        """Return the weighted loss below that at collapse, with z integrated by quadrature."""
        z = encoder * u[:, None] + math.exp(log_var / 2) * torch.tensor(nodes)
        logits = torch.logit(p) + decoder * z[:, :, None] * (vectors[:, -1] / scale)
        targets = flat[:, None].expand_as(logits)
        nats = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        reconstruction = (nats.sum(2) * weights).sum(1).mean()
        kl = gaussian_kl(encoder * u, torch.tensor(log_var)).mean()
        entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum()
        return float(entropy - reconstruction - beta * kl)

    def water(level: float, beta: float) -> tuple[float, float, float]:
        """Decoder, encoder and log-variance of the linear optimum of a direction l > beta."""
        height = math.sqrt(level - beta)
        return height, height / level, math.log(beta / level)

    below = 0.98 * threshold
    assert gain(below, *water(threshold, below)) > 1e-5
    above = 1.02 * threshold
    for level in (above * 1.0001, above * 1.001, above * 1.01):
        assert gain(above, *water(level, above)) < 0


def test_the_bernoulli_forecast_is_close_where_little_is_encoded() -> None:
    x, spec = binary_data(), ImageSpec(1, 2, 3, levels=2)
    at_one = forecast(Bernoulli(), x.numpy(), spec, 1, 1.0)
    assert at_one.collapse_threshold is not None and not at_one.exact
    weights = [at_one.collapse_threshold * f for f in (0.9, 1.1)]
    below, above = forecasts(Bernoulli(), x.numpy(), spec, 1, weights)
    assert below.active_units == 1 and above.active_units == 0
    assert below.rate == pytest.approx(0.5 * math.log(1 / 0.9))
    p = x.mean(0).double()
    entropy = float(-(p * p.log() + (1 - p) * (1 - p).log()).sum())
    assert above.collapse and above.rate == 0
    assert above.reconstruction == pytest.approx(entropy, rel=1e-5)
    assert above.rate_ceiling == pytest.approx(entropy / weights[1], rel=1e-5)


def test_pixels_that_never_vary_are_left_out_of_the_bernoulli_spectrum() -> None:
    """Pixels that vary in one image of very many are left out, too."""
    bits = binary_data().flatten(1).repeat(100, 1)
    rare = torch.zeros(len(bits), 10)
    rare[7] = 1
    constant = torch.tensor([0.0, 1.0, 0.0, 1.0]).expand(len(bits), 4)
    padded = torch.cat([constant, bits, rare], 1)

    def found(x: Tensor, beta: float) -> Forecast:
        images = x.reshape(len(x), 1, 2, -1).numpy()
        return forecast(Bernoulli(), images, ImageSpec(1, 2, x.shape[1] // 2, levels=2), 20, beta)

    for beta in (1e-4, 0.6, 1.2):
        without, among = found(bits, beta), found(padded, beta)
        assert among.active_units == without.active_units
        assert among.collapse_threshold == pytest.approx(without.collapse_threshold, rel=1e-5)
    assert found(padded, 1e-4).active_units == 6
    # nothing but such pixels: collapse at every weight
    nothing = found(torch.cat([constant, rare], 1), 1e-4)
    assert nothing.collapse_threshold == 0 and nothing.active_units == 0 and nothing.collapse


@pytest.fixture(scope="module")
def mnist() -> np.ndarray:
    path = Path(genlab.__file__).parent / "data/mnist_mini/train-images-idx3-ubyte.gz"
    content = gzip.decompress(path.read_bytes())
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 1, 28, 28)


def entropy(p: np.ndarray) -> np.ndarray:
    q = np.clip(p, 1e-300, 1)
    r = np.clip(1 - p, 1e-300, 1)
    return -(p * np.log(q) + (1 - p) * np.log(r))


def test_the_ceiling_and_floor_of_bernoulli_on_grey_mnist(mnist: np.ndarray) -> None:
    x = mnist.reshape(len(mnist), -1) / 255
    collapsed, floor = entropy(x.mean(0)).sum(), entropy(x).sum(1).mean()
    # 205.65 and 45.53 nats on the official test split; these are 10,000 training images
    assert collapsed == pytest.approx(205.65, abs=2) and floor == pytest.approx(45.53, abs=1)
    data = PixelStatistics(mnist)
    assert data.bernoulli_entropy == pytest.approx(floor, rel=1e-5)
    free, heavy = forecasts(Bernoulli(), mnist, ImageSpec(1, 28, 28), 20, [1e-3, 30.0])
    assert heavy.rate_ceiling == pytest.approx((collapsed - floor) / 30, rel=1e-4)
    assert heavy.rate_ceiling is not None and heavy.rate_ceiling < 6.9
    assert free.reconstruction is not None and free.reconstruction >= floor - 1e-3


def test_squared_error_on_mnist_collapses_at_the_first_eigenvalue(mnist: np.ndarray) -> None:
    x = mnist.reshape(len(mnist), -1) / 255
    exact = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    found = spectrum(mnist)
    np.testing.assert_allclose(found.mean, x.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.eigenvalues, exact, atol=1e-5)
    one, heavy = forecasts(GaussianLikelihood(1.0), mnist, ImageSpec(1, 28, 28), 20, [1.0, 30.0])
    assert one.active_units == 12 and not one.collapse
    assert one.rate == pytest.approx(4.4, abs=0.2)
    assert heavy.collapse and heavy.rate == 0
    # half of the summed variance over theta, for any decoder
    assert heavy.rate_ceiling == pytest.approx(x.var(0).sum() / 60, rel=1e-4)


@pytest.mark.parametrize(
    "likelihood", [DiscretizedLogisticLikelihood(), DiscretizedLogisticMixtureLikelihood(1)]
)
def test_a_constant_decoder_attains_the_discretized_ceiling(
    likelihood: DiscretizedLogisticLikelihood, mnist: np.ndarray
) -> None:
    images = mnist[:200]
    found = forecast(likelihood, images, ImageSpec(1, 28, 28), 20, 2.0)
    assert found.rate is None and found.collapse is None and found.rate_ceiling is not None
    x = torch.from_numpy(images / 255).float()
    y = 2 * x - 1
    scale = (y.std(0, correction=0) * math.sqrt(3) / math.pi).log().clamp(min=-7)
    parts = [y.mean(0), scale]
    if isinstance(likelihood, DiscretizedLogisticMixtureLikelihood):
        parts = [torch.zeros_like(scale), *parts]
    constant = torch.cat(parts).expand(200, -1, 28, 28)
    collapsed = -float(likelihood.log_prob(constant, x).mean())
    assert 2.0 * found.rate_ceiling == pytest.approx(collapsed, rel=1e-4)


def test_nothing_is_claimed_of_a_likelihood_without_a_forecast(mnist: np.ndarray) -> None:
    found = forecast(ContinuousBernoulliLikelihood(), mnist, ImageSpec(1, 28, 28), 20, 1.0)
    assert found.rate is None and found.rate_ceiling is None and "no linear" in found.basis


def test_grey_images_under_binarisation_have_the_variance_of_their_draws(
    mnist: np.ndarray,
) -> None:
    data = PixelStatistics(mnist, levels=2)
    p = mnist.reshape(len(mnist), -1).mean(0) / 255
    assert data.bernoulli_entropy == 0
    expected = (p * (1 - p)).sum()
    assert float(data.spectrum.eigenvalues.sum()) == pytest.approx(expected, rel=0.02)


def test_fewer_images_than_dimensions_have_the_same_eigenvalues() -> None:
    torch.manual_seed(0)
    pixels = torch.randn(10, 1, 4, 8).numpy()
    exact = np.linalg.eigvalsh(np.cov(pixels.reshape(10, -1).T, bias=True))[::-1]
    np.testing.assert_allclose(spectrum(pixels, None).eigenvalues, exact, atol=1e-5)


def test_blocks_and_a_large_mean_do_not_change_the_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = np.random.default_rng(0).normal(100, 1, (50, 1, 2, 3))
    monkeypatch.setattr(spectrum_module, "_BLOCK", 6 * 7)
    data = PixelStatistics(pixels, None)
    flat = pixels.reshape(50, -1)
    np.testing.assert_allclose(data.mean, flat.mean(0), rtol=1e-6)
    np.testing.assert_allclose(data.variance, flat.var(0), rtol=1e-4)
    exact = np.linalg.eigvalsh(np.cov(flat.T, bias=True))[::-1]
    np.testing.assert_allclose(data.spectrum.eigenvalues, exact, rtol=1e-3)


def test_a_covariance_that_would_take_too_long_is_measured_on_a_part_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spectrum_module, "_WORK", 1.0)
    pixels = np.random.default_rng(0).normal(0, 1, (5000, 1, 2, 2)).astype(np.float32)
    spec = ImageSpec(1, 2, 2, levels=None)
    assert spectrum(pixels, None).images < 2100
    assert not forecast(GaussianLikelihood(1.0), pixels, spec, 2, 0.5).exact


def test_wrong_questions_are_refused(mnist: np.ndarray) -> None:
    spec = ImageSpec(1, 28, 28)
    with pytest.raises(ValueError, match="kl_weight=-1"):
        forecast(Bernoulli(), mnist, spec, 20, -1)
    with pytest.raises(ValueError, match="latent_dim=0"):
        forecast(Bernoulli(), mnist, spec, 0, 1.0)
    with pytest.raises(ValueError, match="^bernoulli: "):
        forecast(Bernoulli(), mnist, ImageSpec(1, 28, 28, levels=None), 20, 1.0)
    with pytest.raises(DataError, match="at least one image"):
        spectrum(mnist[:0])
