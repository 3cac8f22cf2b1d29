"""The variational autoencoder: an encoder q(z|x), a likelihood p(x|z), a prior p(z), a KL term."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from genlab.errors import naming
from genlab.protocols import HasLatentMap, ImageSpec, NetworkExport
from genlab.seeding import ImageNoise, Noise, or_default
from genlab.tensors import device_of, great_circle, has_diverged, mean_of_all_rows
from genlab.vae import bounds, diagnostics
from genlab.vae.forecast import Forecast, forecast
from genlab.vae.kl import FreeBits, KLConvention, KLPenalty, effective
from genlab.vae.kl_schedules import KLSchedule
from genlab.vae.likelihoods import Likelihood
from genlab.vae.posterior import DiagonalGaussian, clamped_fraction, diagonal_gaussian
from genlab.vae.priors import Prior, StandardNormal

#: Number of images of a walk that are decoded at once.
_WALK_BATCH = 64


@dataclass(frozen=True)
class Networks:
    """Constructors of the encoder and the decoder; the VAE gives them the spec and the sizes."""

    encoder: Callable[..., nn.Module]
    decoder: Callable[..., nn.Module]


class VAE(nn.Module):
    """A variational autoencoder (Kingma and Welling 2014) with a weighted KL (Higgins et al. 2017).

    The loss is reconstruction + kl_weight * kl, both summed over dimensions and averaged over
    images, in nats; the reconstruction includes its normalising constant. Images x are
    (B, C, H, W) in [0, 1]. Without `noise`, torch's default generator is used.

    Args:
        spec: shape and kind of the images.
        latent_dim: d, the size of z; where the encoder's latents are a map, C * h * w of it.
        kl_weight: weight of the KL term, 0 or more, quoted in `kl_convention`.
        kl_convention: None for the canonical one (see `genlab.vae.kl`).
        likelihood, prior, kl_schedule: the components of these names; `prior` is called with the
            spec and the latent size.
        net: encoder and decoder.
        free_bits: the amount of KL that is not penalised, and the variant of free bits.
        log_var_range: range to which the log-variance of q(z|x) is clamped.
        iwae_samples: K of the bound on log p(x) in a full evaluation; 0 to leave it out.
        iwae_chunk: number of the K samples that are decoded at a time.

    Attributes:
        latent_shape: (C, h, w) of z before it is flattened; (d, 1, 1) for a vector.

    Raises:
        ValueError: if a value is outside its range, or components do not fit each other.
    """

    def __init__(
        self,
        spec: ImageSpec,
        latent_dim: int,
        kl_weight: float,
        likelihood: Likelihood,
        prior: Callable[..., Prior],
        kl_schedule: KLSchedule,
        net: Networks,
        kl_convention: KLConvention | None = None,
        free_bits: FreeBits = FreeBits(),  # noqa: B008  (it is frozen)
        log_var_range: Sequence[float] = (-20.0, 10.0),
        iwae_samples: int = 0,
        iwae_chunk: int = 50,
    ) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim={latent_dim}: at least 1 latent is needed")
        if len(log_var_range) != 2 or not log_var_range[0] < log_var_range[1]:
            raise ValueError(f"log_var_range={list(log_var_range)}: give low, then high")
        if iwae_samples < 0:
            raise ValueError(f"iwae_samples={iwae_samples}: give 0 or more")
        if iwae_chunk < 1:
            raise ValueError(f"iwae_chunk={iwae_chunk}: give 1 or more")
        with naming("likelihood"):
            likelihood.check(spec)
        self.spec, self.latent_dim = spec, latent_dim
        self.log_var_range = (log_var_range[0], log_var_range[1])
        self.iwae_samples, self.iwae_chunk = iwae_samples, iwae_chunk
        self.likelihood = likelihood
        self.encoder = net.encoder(spec=spec, latent_dim=latent_dim)
        is_map = isinstance(self.encoder, HasLatentMap)
        self.latent_shape = self.encoder.latent_shape if is_map else (latent_dim, 1, 1)
        self.decoder = net.decoder(
            spec=spec, latent_dim=latent_dim, out_channels=likelihood.output_channels(spec)
        )
        self.prior = prior(spec=spec, latent_dim=latent_dim)
        weight = effective(kl_weight, kl_convention, likelihood, spec, latent_dim)
        self.kl_penalty = KLPenalty(weight, kl_schedule, free_bits)
        if free_bits.needs_parts and not self.prior.kl_is_analytic:
            raise ValueError(
                f"free_bits.kind={free_bits.kind}: this prior's KL has no parts by dimension; use "
                "total"
            )

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Compute q(z|x), a Gaussian (B, d), from images (B, C, H, W) in [0, 1]."""
        return diagonal_gaussian(self.encoder(x), self.log_var_range)

    def decode(self, z: Tensor) -> Distribution:
        """Compute p(x|z), a distribution over images (B, C, H, W), from latents (B, d)."""
        distribution: Distribution = self.likelihood(self.decoder(z))
        return distribution

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """Compute log p(x|z) of images (B, C, H, W) and latents (B, d), (B,) in nats."""
        return self.likelihood.log_prob(self.decoder(z), x)

    def check_density(self) -> None:
        """Raise ValueError if p(x|z) is neither a density nor a probability of the images."""
        with naming("likelihood"):
            self.likelihood.check_density(self.spec)

    def _terms(
        self, x: Tensor, posterior: DiagonalGaussian, eps: Tensor
    ) -> tuple[bounds.ElboTerms, Tensor]:
        """Compute the terms of the bound at one posterior sample z (B, d); return terms and z."""
        z = posterior.loc + posterior.scale * eps
        output = self.decoder(z)
        terms = bounds.elbo_terms(x, output, z, posterior, self.likelihood, self.prior, self.encode)
        return terms, z

    def loss(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        step: int | None = None,
        noise: Noise | None = None,
    ) -> dict[str, Tensor]:
        """Compute the loss of a batch and its terms, scalars in nats per image.

        Args:
            x: images (B, C, H, W) in [0, 1].
            labels: ignored.
            step: the optimizer step, for the KL schedule; None for its final values.
            noise: source of the random numbers for z.
        """
        eps = or_default(noise, x).normal(self.latent_dim)
        reconstruction, kl, kl_rows = self(x, eps)
        reconstruction = reconstruction.mean()
        return {
            "loss": reconstruction + self.kl_penalty(mean_of_all_rows(kl_rows), step),
            "reconstruction": reconstruction,
            "kl": kl.mean(),
        }

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the terms of the bound at z = mean + std eps; `compile` compiles this.

        Args:
            x: images (B, C, H, W) in [0, 1].
            eps: standard normal numbers (B, d).

        Returns:
            `reconstruction` and `kl`, (B,) in nats, and the rows (B, k) of the KL penalty.
        """
        terms, _ = self._terms(x, self.encode(x), eps)
        return terms.reconstruction, terms.kl, self.kl_penalty.rows(terms.kl, terms.kl_per_dim)

    def evaluate(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        noise: Noise | None = None,
        full: bool = False,
    ) -> dict[str, Tensor]:
        """Evaluate images (B, C, H, W); return values whose first axis is the images.

        Values of shape (B,) are averaged over a data set: `reconstruction` and `kl` in nats,
        `log_var_clamped`, a fraction, and with `full` also `nll_iwae_K` in nats. The others,
        `mean`, `log_var` and `z` (B, d), `kl_rows` (B, k) and `kl_per_dim` (B, d), are for
        `genlab.vae.evaluation`.
        """
        noise = or_default(noise, x)
        parameters = self.encoder(x)
        posterior = diagonal_gaussian(parameters, self.log_var_range)
        terms, z = self._terms(x, posterior, noise.normal(self.latent_dim))
        values = {
            "reconstruction": terms.reconstruction,
            "kl": terms.kl,
            "log_var_clamped": clamped_fraction(parameters, self.log_var_range),
            "mean": posterior.loc,
            "log_var": posterior.log_var,
            "z": z,
            "kl_rows": self.kl_penalty.rows(terms.kl, terms.kl_per_dim),
        }
        if terms.kl_per_dim is not None:
            values["kl_per_dim"] = terms.kl_per_dim
        if full and self.iwae_samples:
            nats = -self.log_likelihood(x, self.iwae_samples, noise)
            values[f"nll_iwae_{self.iwae_samples}"] = nats
        return values

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, samples: int | None = None, noise: Noise | None = None
    ) -> Tensor:
        """Estimate a lower bound on log p(x), (B,) in nats, by importance sampling in float32.

        Args:
            x: images (B, C, H, W) in [0, 1].
            samples: K (Burda et al. 2016); None for `iwae_samples`, or 100 if that is 0.
        """
        with torch.autocast(x.device.type, enabled=False):
            return bounds.iwae_log_likelihood(
                x,
                self.encode(x),
                self.log_prob,
                self.prior.distribution(self.encode),
                samples or self.iwae_samples or 100,
                self.iwae_chunk,
                or_default(noise, x),
            )

    def bound(self, x: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        """Compute `reconstruction` and `kl` of images, each (B,), in nats per image."""
        eps = or_default(noise, x).normal(self.latent_dim)
        terms, _ = self._terms(x, self.encode(x), eps)
        return {"reconstruction": terms.reconstruction, "kl": terms.kl}

    @torch.no_grad()
    def sample(self, n: int, seed: int = 0, first: int = 0) -> Tensor:
        """Draw images `first`, ..., `first` + n - 1 of a seed from the prior, (n, C, H, W)."""
        noise = self._image_noise("sample", n, seed, first)
        return self._images(self.prior.sample(noise, self.encode))

    @torch.no_grad()
    def sample_aggregate(self, x: Tensor, n: int, seed: int = 0) -> Tensor:
        """Draw n images with z from a full-covariance Gaussian fitted to q(z) over the images x.

        At kl_weight 0 the loss does not tie q(z) to the prior, so samples from the prior do not
        show what the decoder has learned.
        """
        q = self.encode(x)
        aggregate = diagnostics.fitted_aggregate(q.loc, q.log_var)
        noise = self._image_noise("aggregate", n, seed)
        z = aggregate.loc + noise.normal(self.latent_dim).double() @ aggregate.scale_tril.T
        return self._images(z.float())

    @property
    def is_tied_to_prior(self) -> bool:
        """True if the loss pulls q(z) towards the prior."""
        return self.kl_penalty.weight.beta_effective > 0

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Decode the posterior mean of images (B, C, H, W) in [0, 1]; same shape and range."""
        return self._images(self.encode(x).loc)

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, steps: int) -> Tensor:
        """Decode a straight line between two posterior means: (B, steps, C, H, W)."""
        start, end = self.encode(a).loc, self.encode(b).loc
        t = torch.linspace(0, 1, steps, device=start.device)[None, :, None]
        z = start[:, None] * (1 - t) + end[:, None] * t
        return self._images(z.flatten(0, 1)).unflatten(0, (len(a), steps))

    @torch.no_grad()
    def latent_kl(self, x: Tensor) -> Tensor:
        """Compute KL(q(z_i|x) || N(0, 1)) of each latent, its mean over images x, (d,), in nats."""
        q = self.encode(x)
        return diagnostics.kl_per_dim(q.loc, q.log_var)

    @torch.no_grad()
    def traverse(self, x: Tensor, dims: Sequence[int], values: Sequence[float]) -> Tensor:
        """Decode one image (1, C, H, W) with one latent at a time set to each value.

        Returns:
            (len(dims), len(values), C, H, W) in [0, 1].
        """
        z = self.encode(x).loc.repeat(len(dims) * len(values), 1)
        for row, dim in enumerate(dims):
            for column, value in enumerate(values):
                z[row * len(values) + column, dim] = value
        return self._images(z).unflatten(0, (len(dims), len(values)))

    @torch.no_grad()
    def walk(self, panels: int, steps: int, seed: int = 0) -> Tensor | None:
        """Decode a closed walk along a great circle through two draws a, b of the prior.

        Every step is as typical of the prior as any other.

        Returns:
            (steps, panels, C, H, W) in [0, 1]; None if the prior is not standard normal.
        """
        if not isinstance(self.prior, StandardNormal):
            return None
        noise = self._image_noise("walk", panels, seed)
        a, b = noise.normal(2, self.latent_dim).unbind(1)
        z = great_circle(a, b, steps)
        images = [self._images(batch) for batch in z.flatten(0, 1).split(_WALK_BATCH)]
        return torch.cat(images).unflatten(0, (steps, panels))

    def forecast(self, pixels: npt.NDArray[np.uint8]) -> Forecast | None:
        """Forecast the effect of the KL weight on training images (N, C, H, W), before training.

        Returns None with free bits or a capacity, where the weight alone does not set the rate.
        """
        penalty = self.kl_penalty
        if penalty.free_bits.kind != "none" or penalty.schedule.final_capacity is not None:
            return None
        beta = penalty.weight.beta_effective
        return forecast(self.likelihood, pixels, self.spec, self.latent_dim, beta)

    def describe(self) -> str:
        """Describe the KL weight in one line."""
        return self.kl_penalty.weight.sentence

    def label(self) -> str:
        """Return the setting and its value, for a caption."""
        return f"kl_weight {self.kl_penalty.weight.quoted:g}"

    def verdict(self, metrics: Mapping[str, float]) -> str:
        """Summarise the latents in two or three words, or say "diverged"; empty if unknown."""
        if has_diverged(metrics.get("reconstruction", 0.0), self.spec.dims):
            return "diverged"
        active = metrics.get("active_units")
        return "" if active is None else diagnostics.verdict(int(active), self.latent_dim)

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks by name, to be compiled and sharded."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def exports(self) -> dict[str, NetworkExport]:
        """Return `encoder` and `decoder`: the moments of q(z|x), and the mean of p(x|z)."""
        return {
            "encoder": NetworkExport(
                _Encoder(self),
                {"x": torch.zeros(3, *self.spec.shape)},
                ("mean", "stddev"),
                "maps images x (B, C, H, W) in [0, 1] to the mean and the standard deviation of "
                "q(z given x), each (B, d).",
            ),
            "decoder": NetworkExport(
                _Decoder(self),
                {"z": torch.zeros(3, self.latent_dim)},
                ("image",),
                "maps latents z (B, d) to the mean of p(x given z).",
            ),
        }

    def _image_noise(self, purpose: str, n: int, seed: int, first: int = 0) -> ImageNoise:
        return ImageNoise(seed, purpose, indices=range(first, first + n), device=device_of(self))

    def _images(self, z: Tensor) -> Tensor:
        images: Tensor = self.decode(z.to(device_of(self))).mean
        return images


class _Encoder(nn.Module):
    """The moments of q(z|x), as a module."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.model.encode(x)
        return posterior.mean, posterior.stddev


class _Decoder(nn.Module):
    """The mean of p(x|z), as a module."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> Tensor:
        mean: Tensor = self.model.decode(z).mean
        return mean
