"""The latents of a VAE as a codec: its bound against what is known of linear-Gaussian images."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from genlab.callbacks.diffusion import trajectory
from genlab.callbacks.videos import TrajectoryVideo
from genlab.codecs.latents import LatentCodec
from genlab.diffusion.bound import continuous_decoder_nll, decoder_nll
from genlab.diffusion.gaussian import GaussianData
from genlab.diffusion.model import DDPM
from genlab.diffusion.parameterizations import Epsilon, eps_from_x0
from genlab.diffusion.samplers import DDIM, Ancestral
from genlab.diffusion.schedules import LinearLogSNR
from genlab.diffusion.time_samplers import LowDiscrepancy
from genlab.diffusion.variances import FixedLarge, Optimal
from genlab.diffusion.weightings import Simple
from genlab.nets.mlp import MLPDenoiser
from genlab.nets.vae import MapDecoder, MapEncoder, MLPDecoder, MLPEncoder
from genlab.protocols import Autoencoder, ImageSpec, OnStep
from genlab.seeding import BatchNoise, Noise
from genlab.vae.kl_schedules import Constant
from genlab.vae.likelihoods import (
    Bernoulli,
    CalibratedGaussian,
    DiscretizedLogisticLikelihood,
    GaussianLikelihood,
    Likelihood,
)
from genlab.vae.model import VAE, Networks
from genlab.vae.priors import StandardNormal

#: Eigenvalues of the covariance of the images, of which the VAE has the largest as its latents.
EIGENVALUES = torch.tensor([6.0, 3.0, 2.0, 1.5, 0.7, 0.4], dtype=torch.float64)
LATENTS = 3
SIGMA = 0.8
SPEC = ImageSpec(1, 2, 3, levels=None)
GREY = ImageSpec(1, 8, 8)


def small_vae(
    spec: ImageSpec = SPEC, likelihood: Likelihood | None = None, latents: int = LATENTS
) -> VAE:
    """A linear VAE with vectors for latents."""
    return VAE(
        spec,
        latents,
        1.0,
        likelihood or GaussianLikelihood(SIGMA),
        StandardNormal,
        Constant(),
        Networks(
            lambda **given: MLPEncoder(hidden=[], **given),
            lambda **given: MLPDecoder(hidden=[], **given),
        ),
    )


def optimal_vae() -> VAE:
    """Probabilistic PCA of the images: q(z|x) is the exact posterior, and q(z) is N(0, I)."""
    vae = small_vae().double()
    level = SIGMA**2
    kept = EIGENVALUES[:LATENTS]
    encoder, decoder = vae.encoder[-1], vae.decoder[0]
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
        for i, value in enumerate(kept.tolist()):
            decoder.weight[i, i] = math.sqrt(value - level)
            encoder.weight[i, i] = math.sqrt(value - level) / value
            encoder.bias[LATENTS + i] = math.log(level / value)
    return vae


#: Standard deviations of the model whose likelihood the VAE reaches, N(0, W W^T + sigma^2 I).
STD = torch.where(torch.arange(SPEC.dims) < LATENTS, EIGENVALUES, SIGMA**2).sqrt()


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(count, SPEC.dims, dtype=torch.float64, generator=generator)
    return (noise * STD).reshape(count, *SPEC.shape)


def exact_nll(x: Tensor) -> Tensor:
    return -Normal(torch.zeros_like(STD), STD).log_prob(x.flatten(1)).sum(1)


class Points(Noise):
    """Points at which the mean of a quadratic function is its expectation over normal numbers.

    These are +-sqrt(n) e_i for n numbers: those of the image, of z, and of x_t at any one time. A
    time is the middle of its part.
    """

    def __init__(self) -> None:
        n = SPEC.dims + 2 * LATENTS
        ends = math.sqrt(n) * torch.eye(n, dtype=torch.float64)
        image, self.of_z, self.of_x_t = torch.cat([ends, -ends]).split(
            [SPEC.dims, LATENTS, LATENTS], 1
        )
        self.images = (image * STD).reshape(-1, *SPEC.shape)
        self.is_first = True

    def normal(self, *shape: int) -> Tensor:
        found, self.is_first = (self.of_z if self.is_first else self.of_x_t), False
        return found.reshape(-1, *shape)

    def spread(self) -> Tensor:
        return torch.full((len(self.images),), 0.5, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        raise NotImplementedError


def expected(model: DDPM, scale: float = 1.0) -> dict[str, float]:
    """The expectation of every value of an evaluation of a model with a linear network.

    The scale of the codec is this many times what it measures.
    """
    points = Points()
    model.codec.measure([model.inputs(points.images)])
    model.codec.scale.mul_(scale)
    with torch.no_grad():
        found = model.evaluate(points.images, noise=points, full=True)
    return {name: float(value.mean()) for name, value in found.items() if value.ndim == 1}


NLL = float(exact_nll(Points().images).mean())


class Exact(nn.Module):
    """The best network for latents that are N(0, std^2 I)."""

    def __init__(self, std: float = 1.0) -> None:
        super().__init__()
        self.data = GaussianData(0.0, std)

    def forward(self, x_t: Tensor, log_snr: Tensor, labels: Tensor | None = None) -> Tensor:
        x0_hat = self.data.posterior_mean(x_t, log_snr)
        return Epsilon().target(x0_hat, eps_from_x0(x0_hat, x_t, log_snr), log_snr)


def latent_model(vae: VAE, net: Any = None, steps: int | None = 200, **changes: Any) -> DDPM:
    defaults: dict[str, Any] = {
        "noise_schedule": LinearLogSNR(12.0, -12.0),
        "reverse_variance": FixedLarge(),
        "sampler": DDIM(steps=5),
        "val_draws": 4,
        "test_draws": None if steps else 16,
    }
    return DDPM(
        vae.spec,
        steps,
        parameterization=Epsilon(),
        weighting=Simple(),
        time_sampler=LowDiscrepancy(),
        net=(lambda **_: Exact()) if net is None else net,
        codec=lambda spec: LatentCodec(spec, lambda **_: vae).to(next(vae.parameters()).dtype),
        **{**defaults, **changes},
    )


def bound_of(found: dict[str, Any]) -> Any:
    return found["reconstruction"] + found["kl"]


def test_the_bound_of_a_perfect_model_is_the_exact_likelihood() -> None:
    """At any T: `fixed_large` is the variance of p(x_s | x_t) for latents of unit variance."""
    for steps in (20, 100):
        found = expected(latent_model(optimal_vae(), steps=steps))
        assert found["kl"] == pytest.approx(found["log_posterior"] + found["latent_nll"])
        assert bound_of(found) == pytest.approx(NLL, abs=1e-4)
    log_snr = torch.linspace(-12, 12, 2000, dtype=torch.float64)
    best = Optimal()
    best.measure(log_snr, torch.sigmoid(-log_snr))
    found = expected(latent_model(optimal_vae(), steps=20, reverse_variance=best))
    assert bound_of(found) == pytest.approx(NLL, abs=1e-4)


def test_with_another_variance_it_is_closer_with_more_steps() -> None:
    """The gap of `fixed_large` falls as 1/T, where latents have a spread that is not 1."""
    gaps = []
    for steps in (60, 240):
        model = latent_model(optimal_vae(), net=lambda **_: Exact(0.5), steps=steps)
        found = expected(model, scale=2)
        gaps.append(bound_of(found) - NLL)
    assert 0 < gaps[1] < gaps[0] and gaps[1] == pytest.approx(gaps[0] / 4, rel=0.05)
    assert gaps[1] < 5e-2


def test_in_continuous_time_too() -> None:
    found = expected(latent_model(optimal_vae(), steps=None, test_draws=100))
    assert bound_of(found) == pytest.approx(NLL, abs=1e-4)


def test_the_gain_over_the_vae_is_the_divergence_of_its_latents_from_the_prior() -> None:
    """Latents 3 z + 1 cost the VAE KL(N(1, 9) || N(0, 1)) each, and the diffusion model nothing."""
    vae = optimal_vae()
    with torch.no_grad():
        vae.encoder[-1].weight[:LATENTS] *= 3
        vae.encoder[-1].bias[:LATENTS] = 1
        vae.encoder[-1].bias[LATENTS:] += math.log(9)
        vae.decoder[0].bias -= vae.decoder[0].weight.sum(1) / 3
        vae.decoder[0].weight /= 3
    divergence = LATENTS * float(
        kl_divergence(Normal(torch.tensor(1.0), torch.tensor(3.0)), Normal(0.0, 1.0))
    )
    points = Points()
    with torch.no_grad():
        own = {name: float(v.mean()) for name, v in vae.bound(points.images, points).items()}
    model = latent_model(vae, steps=100)
    found = expected(model)
    assert bound_of(own) - bound_of(found) == pytest.approx(divergence, abs=1e-4)
    poor = expected(latent_model(vae, net=lambda **_: Exact(0.7), steps=100))
    assert bound_of(own) - bound_of(poor) < divergence - 1e-2
    torch.testing.assert_close(model.codec.shift, torch.ones_like(model.codec.shift))
    torch.testing.assert_close(model.codec.scale, torch.full_like(model.codec.scale, 3))
    # the scale has no part in the sum
    model.codec.scale.mul_(0.7)
    with torch.no_grad():
        again = model.evaluate(points.images, noise=Points(), full=True)
    parts = again["log_posterior"].mean() - found["log_posterior"]
    assert float(parts) == pytest.approx(LATENTS * math.log(0.7), abs=1e-6)


def test_a_learned_network_is_never_better_than_the_likelihood() -> None:
    torch.manual_seed(0)
    x = images(1000)
    vae = optimal_vae()
    model = latent_model(vae, net=lambda **given: MLPDenoiser(width=32, blocks=1, **given).double())
    model.codec.measure([model.inputs(x)])
    optimizer = torch.optim.Adam(model.net.parameters(), lr=1e-2)
    bounds = []
    for steps in (0, 100):
        for _ in range(steps):
            optimizer.zero_grad()
            model.loss(x[torch.randint(len(x), (128,))])["loss"].backward()
            optimizer.step()
        with torch.no_grad():
            found = model.evaluate(x, noise=BatchNoise(len(x), 3))
        gap = bound_of(found) - exact_nll(x)
        assert float(gap.mean()) > -3 * float(gap.std()) / math.sqrt(len(gap))
        bounds.append(float(gap.mean()))
    assert bounds[1] < bounds[0] / 2


def test_scaled_latents_have_unit_variance_in_every_channel() -> None:
    torch.manual_seed(0)
    vae = VAE(
        GREY,
        12,
        1.0,
        DiscretizedLogisticLikelihood(),
        StandardNormal,
        Constant(),
        Networks(
            lambda **given: MapEncoder(channels=[8, 8], **given),
            lambda **given: MapDecoder(channels=[8, 8], **given),
        ),
    )
    assert vae.latent_shape == (3, 2, 2) and isinstance(vae, Autoencoder)
    codec = LatentCodec(GREY, lambda **_: vae)
    x = torch.rand(500, *GREY.shape) ** torch.linspace(0.2, 5, 500)[:, None, None, None]
    inputs = codec.inputs(x)
    assert inputs.shape == (500, 2, 3, 2, 2) and codec.code.shape == (3, 2, 2)
    codec.measure(inputs.split(128))
    x0 = torch.cat([codec.draw(inputs, BatchNoise(500, i)) for i in range(40)])
    channels = x0.transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(3), atol=0.02, rtol=0)
    torch.testing.assert_close(channels.std(1), torch.ones(3), atol=0.02, rtol=0)
    mean = (inputs[:, 0] - codec.shift) / codec.scale
    back = (codec.decode(mean) + 1) / 2
    torch.testing.assert_close(back, vae.reconstruct(x))


def test_a_frozen_vae_stays_as_it_was_trained() -> None:
    """In training too: its running variance, its mode and its weights are not touched."""
    vae = small_vae(likelihood=CalibratedGaussian())
    vae.likelihood.variance.fill_(0.5)
    model = latent_model(vae, net=lambda **given: MLPDenoiser(width=8, blocks=1, **given)).train()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    x = images(16).float()
    model.loss(x)["loss"].backward()
    model.evaluate(x)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    trained = [name for name, p in model.named_parameters() if p.grad is not None]
    assert trained and all(name.startswith("net.") for name in trained)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(trained)


def test_samples_and_films_are_images() -> None:
    vae = optimal_vae()
    model = latent_model(vae, sampler=Ancestral(), steps=20)
    seen: list[Tensor] = []
    x = model.sample(5, on_step=lambda i, t, x_t, x0_hat: seen.extend((x_t, x0_hat)))
    assert [code.shape for code in seen] == [(5, *model.code.shape)] * 2 * 20
    assert {model.images_of(code).shape for code in seen} == {x.shape} == {(5, *SPEC.shape)}
    way, _ = model.noised(images(3), 4)
    assert way.shape == (3, 5, *SPEC.shape)
    torch.testing.assert_close(way[:, 0], images(3))
    assert not model.sampler.clip and not model.clip


def test_pictures_and_films_of_sampling_show_the_decoded_latents(tmp_path: Path) -> None:
    model = latent_model(optimal_vae(), sampler=Ancestral(), steps=20)
    of_images = SimpleNamespace(spec=model.spec, images_of=lambda x: x)

    def draw_images(keep: OnStep) -> None:
        decode = model.images_of
        model.sample(3, on_step=lambda i, t, x_t, x0_hat: keep(i, t, decode(x_t), decode(x0_hat)))

    picture = trajectory(model, lambda keep: model.sample(3, on_step=keep), 20, 4, "")
    np.testing.assert_array_equal(picture, trajectory(of_images, draw_images, 20, 4, ""))
    film = TrajectoryVideo(tmp_path, images=3, seconds=1, fps=10).film(model, images)
    assert film is not None and len(film) == 10


def test_samples_have_the_distribution_of_the_images() -> None:
    """Means of p(x|z) at z ~ N(0, I): the covariance of the images without the noise of p(x|z)."""
    model = latent_model(optimal_vae(), sampler=Ancestral(), steps=20)
    x = model.sample(4000).flatten(1)
    std = (STD.square() - SIGMA**2).clamp(min=0).sqrt()
    torch.testing.assert_close(x.std(0), std.to(x), atol=0.06, rtol=0)


def test_the_decoder_term_of_real_numbers_is_a_density() -> None:
    torch.manual_seed(0)
    x0, mean = torch.randn(2, 4, 2, 3, 3, dtype=torch.float64)
    log_variance = torch.randn(4, dtype=torch.float64)
    std = (log_variance / 2).exp()[:, None, None, None]
    nats = -Normal(mean, std).log_prob(x0).sum((1, 2, 3))
    torch.testing.assert_close(decoder_nll(x0, mean, log_variance, None), nats)
    log_snr = torch.full((4,), 5.0, dtype=torch.float64)
    inverse = Normal(mean / torch.sigmoid(log_snr[0]).sqrt(), math.exp(-2.5))
    nats = -inverse.log_prob(x0).sum((1, 2, 3))
    torch.testing.assert_close(continuous_decoder_nll(x0, mean, log_snr, None), nats)


def test_what_is_no_codec_is_refused() -> None:
    vae = small_vae(GREY, Bernoulli())
    with pytest.raises(ValueError, match=r"likelihood: bernoulli: on grey pixels .* no density"):
        LatentCodec(GREY, lambda **_: vae)
    LatentCodec(
        ImageSpec(1, 8, 8, levels=2), lambda **_: small_vae(ImageSpec(1, 8, 8, 2), Bernoulli())
    )
    with pytest.raises(ValueError, match=r"run=null: give the run directory of a trained VAE"):
        LatentCodec(GREY)
    with pytest.raises(ValueError, match=r"run=there: a Linear has no latents; give a VAE"):
        LatentCodec(GREY, lambda **_: nn.Linear(1, 1), run="there")


def test_collapsed_channels_are_kept_or_refused_and_constant_ones_refused() -> None:
    vae = optimal_vae()
    with torch.no_grad():
        vae.encoder[-1].weight[1] = 0
        vae.encoder[-1].bias[LATENTS + 1] = -20  # of weight 0: a clamped variance
    codec = LatentCodec(SPEC, lambda **_: vae).double()
    x = images(500)
    told = codec.measure([codec.inputs(x)])
    assert "divided by 4.54e-05 to" in told[0] and "channels 1 say nothing" in told[1]
    noise = BatchNoise(len(x), 0)
    assert float(codec.encode(x, noise)[:, 1].std()) == pytest.approx(1, abs=0.1)
    codec.collapsed = "refuse"
    with pytest.raises(ValueError, match=r"collapsed=refuse: the channels 1 say nothing"):
        codec.measure([codec.inputs(x)])
    vae.log_var_range = (-100.0, 10.0)
    with torch.no_grad():
        vae.encoder[-1].bias[LATENTS + 1] = -90
    with pytest.raises(ValueError, match=r"constant in the channels 1"):
        codec.measure([codec.inputs(x)])
