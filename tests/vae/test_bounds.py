"""The ELBO's terms, free bits and the importance-weighted bound, against closed forms."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from genlab.protocols import ImageSpec
from genlab.seeding import BatchNoise, ImageNoise
from genlab.tensors import nats_to_bits_per_dim
from genlab.vae.bounds import elbo_terms, gaussian_kl
from genlab.vae.bounds import iwae_log_likelihood as iwae
from genlab.vae.kl import FreeBits
from genlab.vae.likelihoods import GaussianLikelihood
from genlab.vae.posterior import clamped_fraction, diagonal_gaussian
from genlab.vae.priors import StandardNormal, VampPrior


def test_the_kl_of_a_gaussian_has_its_closed_form_and_gradients() -> None:
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    assert float(gaussian_kl(zero, zero)) == 0
    assert float(gaussian_kl(one, zero)) == 0.5
    mean, log_var = torch.randn(50, requires_grad=True), torch.randn(50, requires_grad=True)
    kl = gaussian_kl(mean, log_var)
    expected = kl_divergence(Normal(mean, (log_var / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl, expected)
    kl.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(mean.grad, mean.detach())
    torch.testing.assert_close(log_var.grad, (log_var.detach().exp() - 1) / 2)


@pytest.mark.parametrize(
    ("nats", "dims", "bits"),
    [(7651, 3072, 3.59), (205.65, 784, 0.3784), (2.6364, 1, 3.80)],
)
def test_bits_per_dim(nats: float, dims: int, bits: float) -> None:
    assert nats_to_bits_per_dim(nats, dims) == pytest.approx(bits, rel=2e-3)


def test_dequantised_8_bit_data_need_8_more_bits() -> None:
    # a uniform density on [0, 1] has 0 nats, and 8-bit noise has 8 bits
    assert nats_to_bits_per_dim(0.0, 784) + math.log2(256) == 8


def test_the_posterior_s_log_variance_is_clamped_and_the_clamp_is_counted() -> None:
    parameters = torch.tensor([[1.0, 2.0, -30.0, 0.5], [0.0, 3.0, 12.0, 10.0]])
    q = diagonal_gaussian(parameters, (-20.0, 10.0))
    torch.testing.assert_close(q.mean, parameters[:, :2])
    expected = torch.tensor([[-20.0, 0.5], [10.0, 10.0]])
    torch.testing.assert_close(2 * q.scale.log(), expected)
    assert clamped_fraction(parameters, (-20.0, 10.0)).tolist() == [0.5, 0.5]


def test_the_posterior_is_float32_under_half_precision() -> None:
    q = diagonal_gaussian(torch.zeros(2, 4, dtype=torch.bfloat16), (-20.0, 10.0))
    assert q.mean.dtype == q.scale.dtype == torch.float32


def test_the_terms_are_per_image_and_the_monte_carlo_kl_is_unbiased() -> None:
    torch.manual_seed(0)
    spec = ImageSpec(1, 2, 2)
    x = torch.rand(1, 1, 2, 2).expand(20_000, 1, 2, 2)
    q = diagonal_gaussian(torch.tensor([[0.5, -1.0, -0.4, 0.3]]).expand(20_000, 4), (-20.0, 10.0))
    z = q.rsample()
    likelihood, output = GaussianLikelihood(1.0), torch.zeros_like(x)
    closed = elbo_terms(x, output, z, q, likelihood, StandardNormal(spec, 2))
    assert closed.kl_per_dim is not None and closed.kl_per_dim.shape == (20_000, 2)
    torch.testing.assert_close(closed.kl, closed.kl_per_dim.sum(1))
    torch.testing.assert_close(closed.reconstruction, -likelihood.log_prob(output, x))
    # a VampPrior whose encoder ignores its input is the standard normal, by Monte Carlo
    vamp = VampPrior(spec, 2, components=3)
    drawn = elbo_terms(
        x, output, z, q, likelihood, vamp, lambda u: Normal(torch.zeros(3, 2), torch.ones(3, 2))
    )
    assert drawn.kl_per_dim is None
    assert float(drawn.kl.mean()) == pytest.approx(float(closed.kl.mean()), abs=0.03)


def free_bits(kl_per_dim: Tensor, kind: Any, nats: float) -> Tensor:
    free = FreeBits(kind, nats)
    return free.combine(free.rows(kl_per_dim.sum(1), kl_per_dim).mean(0))


# Three images fall below half a nat in the second dimension, and one above it.
TOY = torch.tensor([[1.0, 0.6], [2.0, 0.1], [1.2, 0.1], [1.8, 0.08]])


@pytest.mark.parametrize(
    ("kind", "nats", "expected"),
    [
        ("per_dimension", 0.5, 2.0),  # 1.5 + max(.5, .22)
        ("per_image", 0.5, 2.025),  # 1.5 + (.6 + 3 * .5) / 4
        ("total", 0.5, 1.72),  # 1.5 + .22, above .5
        ("total", 1.8, 1.8),
    ],
)
def test_free_bits_are_three_different_losses(kind: str, nats: float, expected: float) -> None:
    assert float(free_bits(TOY, kind, nats)) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["per_dimension", "per_image", "total"])
def test_no_free_bits_is_the_kl(kind: str) -> None:
    assert float(free_bits(TOY, kind, 0.0)) == pytest.approx(float(TOY.sum(1).mean()))


def test_free_bits_have_no_gradient_where_they_are_free() -> None:
    kl = TOY.clone().requires_grad_()
    free_bits(kl, "per_dimension", 0.5).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(kl.grad, torch.tensor([[0.25, 0.0]]).expand(4, 2))


@pytest.mark.parametrize(("kind", "nats"), [("dimension", 0.5), ("total", -1.0)])
def test_wrong_free_bits_are_refused(kind: str, nats: float) -> None:
    with pytest.raises(ValueError, match=f"^(kind={kind!r}|nats={nats}): "):
        FreeBits(kind, nats)  # type: ignore[arg-type]


class LinearGaussian:
    """p(z) = N(0, I), p(x|z) = N(Wz, sigma^2 I), in float64, where log p(x) is known."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.w = torch.randn(6, 3, dtype=torch.float64)
        # columns at right angles make the posterior diagonal
        self.w = torch.linalg.qr(self.w)[0] * torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
        self.variance = 0.3
        self.x = torch.randn(5, 1, 2, 3, dtype=torch.float64)
        self.prior = Independent(Normal(torch.zeros(3).double(), torch.ones(3).double()), 1)
        self.calls: list[tuple[Tensor, Tensor]] = []

    def log_prob_x_given_z(self, x: Tensor, z: Tensor) -> Tensor:
        self.calls.append((x, z))
        scale = math.sqrt(self.variance)
        return Normal(z @ self.w.T, scale).log_prob(x.flatten(1)).sum(1)

    def log_p(self) -> Tensor:
        covariance = self.w @ self.w.T + self.variance * torch.eye(6, dtype=torch.float64)
        zero = torch.zeros(6, dtype=torch.float64)
        return MultivariateNormal(zero, covariance).log_prob(self.x.flatten(1))

    def posterior(self) -> Normal:
        precision = (self.w.square().sum(0) / self.variance) + 1
        mean = self.x.flatten(1) @ self.w / self.variance / precision
        return Normal(mean, precision.rsqrt().expand_as(mean))

    def bound(self, q: Normal, k: int, chunk: int = 100) -> Tensor:
        noise = BatchNoise(len(self.x))
        return iwae(self.x, q, self.log_prob_x_given_z, self.prior, k, chunk, noise)


def test_with_the_exact_posterior_every_weight_is_the_likelihood() -> None:
    model = LinearGaussian()
    for k, chunk in [(1, 50), (7, 3), (64, 64)]:
        bound = model.bound(model.posterior(), k, chunk)
        assert float((bound - model.log_p()).abs().max()) < 1e-12


@pytest.mark.parametrize(("k", "chunk"), [(1, 50), (5, 10), (7, 3), (10, 5), (10, 1)])
def test_k_is_honoured_exactly_and_the_chunks_do_not_matter(k: int, chunk: int) -> None:
    model = LinearGaussian()
    q = Normal(torch.zeros(5, 3).double(), torch.ones(5, 3).double())
    torch.manual_seed(3)
    bound = model.bound(q, k, chunk)
    sizes = [len(z) // 5 for _, z in model.calls]
    assert sum(sizes) == k and max(sizes) <= chunk
    # the definition, on the very samples that were drawn: here p(z) / q(z|x) is 1
    log_weights = torch.cat(
        [model.log_prob_x_given_z(x, z).reshape(-1, 5) for x, z in list(model.calls)]
    )
    torch.testing.assert_close(bound, log_weights.logsumexp(0) - math.log(k))
    for x, _ in model.calls:
        torch.testing.assert_close(x[:5], model.x)


def test_the_bound_rises_with_k_and_stays_below_the_likelihood() -> None:
    model = LinearGaussian()
    exact = model.posterior()
    q = Normal(exact.loc + 0.3, exact.scale * 1.4)
    torch.manual_seed(0)
    means = [
        torch.stack([model.bound(q, k) for _ in range(2000 // k)]).mean(0).mean()
        for k in (1, 4, 16, 64)
    ]
    assert all(a < b for a, b in itertools.pairwise(means))
    assert means[-1] < model.log_p().mean() < means[-1] + 0.05
    # k = 1 is the ELBO: log p(x) - KL(q || p(z|x))
    elbo = model.log_p() - kl_divergence(q, exact).sum(1)
    assert float(means[0]) == pytest.approx(float(elbo.mean()), abs=0.05)


def test_autocast_does_not_reach_the_bound() -> None:
    model = LinearGaussian()
    seen = []

    def log_prob(x: Tensor, z: Tensor) -> Tensor:
        seen.append((z.float() @ model.w.T.float()).dtype)
        return model.log_prob_x_given_z(x, z)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        iwae(model.x, model.posterior(), log_prob, model.prior, 2, 2, BatchNoise(5))
    assert seen == [torch.float32]


def test_a_seed_makes_the_bound_repeatable() -> None:
    model = LinearGaussian()
    q = Normal(torch.zeros(5, 3).double(), torch.ones(5, 3).double())
    runs = [
        iwae(
            model.x,
            q,
            model.log_prob_x_given_z,
            model.prior,
            6,
            4,
            BatchNoise(5, 1),
        )
        for _ in range(2)
    ]
    assert torch.equal(*runs)


@pytest.mark.parametrize(("k", "chunk"), [(0, 5), (5, 0)])
def test_no_samples_are_refused(k: int, chunk: int) -> None:
    model = LinearGaussian()
    with pytest.raises(ValueError, match="=0"):
        model.bound(model.posterior(), k, chunk)


def test_the_bound_of_an_image_does_not_depend_on_its_batch() -> None:
    model = LinearGaussian()
    q = Normal(torch.zeros(5, 3).double(), torch.ones(5, 3).double())

    def bound(rows: list[int]) -> Tensor:
        part, noise = Normal(q.loc[rows], q.scale[rows]), ImageNoise(7, indices=rows)
        return iwae(model.x[rows], part, model.log_prob_x_given_z, model.prior, 6, 4, noise)

    apart = torch.cat([bound([0, 1]), bound([2, 3, 4])])
    torch.testing.assert_close(apart, bound([0, 1, 2, 3, 4]), rtol=1e-12, atol=0)
