"""The VAE under training: three distributions, q(z|x), p(x|z), p(z), and what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from genlab import seeding
from genlab.errors import ConfigError
from genlab.modules.base import GenerativeModule
from genlab.modules.optimization import Adam
from genlab.protocols import ImageSpec
from genlab.tensors import nats_to_bits_per_dim
from genlab.vae import bounds, diagnostics
from genlab.vae.forecast import Forecast, forecast
from genlab.vae.kl_schedules import KLSchedule, objective
from genlab.vae.kl_weight import KLDialect, effective
from genlab.vae.likelihoods import Likelihood
from genlab.vae.posterior import DiagonalGaussian, clamped_fraction, diagonal_gaussian
from genlab.vae.priors import Prior


@dataclass(frozen=True)
class FreeBits:
    """Which of the losses called free bits, and how many nats are free (see `bounds.free_bits`).

    Raises:
        ConfigError: for an unknown kind, or nats below 0.
    """

    kind: Literal["none", "per_dimension", "per_image", "total"] = "none"
    nats: float = 0.0

    def __post_init__(self) -> None:
        bounds.check_free_bits("total" if self.kind == "none" else self.kind, self.nats)


@dataclass(frozen=True)
class Networks:
    """The encoder and the decoder, which still need the spec and the sizes."""

    encoder: Callable[..., nn.Module]
    decoder: Callable[..., nn.Module]


class VAE(GenerativeModule):
    """A variational autoencoder (Kingma and Welling 2014) with a weighted KL (Higgins et al. 2017).

    The loss is reconstruction + kl_weight * kl, both summed over dimensions and averaged over
    images, in nats, the reconstruction with its normalising constant.

    Args:
        spec: the images.
        latent_dim: d, the size of z.
        kl_weight: weight of the KL term, 0 or more; how it is quoted is `kl_dialect`'s business.
        kl_dialect: null for the canonical convention, else the reductions under which the weight
            was quoted.
        likelihood, prior, kl_schedule: the components of these names; `prior` still needs the spec.
        net: encoder and decoder, which still need the spec and the sizes.
        free_bits: none, or which of the three losses of that name.
        log_var_range: the log-variance of q(z|x) is clamped to it.
        iwae_samples: K of the bound on log p(x) that the test computes; 0 to leave it out.
        iwae_chunk: how many of the K samples are decoded at a time.
        optimizer, seed: see `GenerativeModule`.

    Raises:
        ConfigError: for a value outside its range, or components that do not fit each other.
    """

    def __init__(
        self,
        spec: ImageSpec,
        latent_dim: int,
        kl_weight: float,
        kl_dialect: KLDialect | None,
        likelihood: Likelihood,
        prior: Callable[..., Prior],
        kl_schedule: KLSchedule,
        net: Networks,
        free_bits: FreeBits,
        log_var_range: Sequence[float],
        iwae_samples: int,
        iwae_chunk: int,
        optimizer: Adam,
        seed: int,
    ) -> None:
        super().__init__(spec, optimizer, seed)
        if latent_dim < 1:
            raise ConfigError(f"model.latent_dim={latent_dim}: at least 1 latent is needed")
        if len(log_var_range) != 2 or not log_var_range[0] < log_var_range[1]:
            raise ConfigError(f"model.log_var_range={list(log_var_range)}: low, then high")
        if iwae_samples < 0 or iwae_chunk < 1:
            raise ConfigError(
                f"model.iwae_samples={iwae_samples}, model.iwae_chunk={iwae_chunk}: samples are 0 "
                "or more, a chunk holds at least 1"
            )
        likelihood.check(spec)
        self.latent_dim = latent_dim
        self.weight = effective(kl_weight, kl_dialect, likelihood, spec, latent_dim)
        self.kl_schedule = kl_schedule
        self.log_var_range = (log_var_range[0], log_var_range[1])
        self.iwae_samples, self.iwae_chunk = iwae_samples, iwae_chunk
        self.likelihood = likelihood
        self.encoder = net.encoder(spec=spec, latent_dim=latent_dim)
        self.decoder = net.decoder(
            spec=spec, latent_dim=latent_dim, out_channels=likelihood.output_channels(spec)
        )
        self.prior = prior(spec=spec, latent_dim=latent_dim)
        self.free_bits = free_bits
        if free_bits.kind not in ("none", "total") and not self.prior.kl_is_analytic:
            raise ConfigError(
                f"model.free_bits.kind={free_bits.kind}: this prior's KL has no parts by "
                "dimension; use total"
            )
        self._posteriors: list[tuple[Tensor, Tensor, Tensor]] = []
        self._kl_by_unit: Tensor | None = None

    def meaning(self) -> str:
        return self.weight.sentence

    def label(self) -> str:
        return f"kl_weight {self.weight.quoted:g}"

    def forecast(self, pixels: np.ndarray) -> Forecast | None:
        if self.free_bits.kind != "none" or self.kl_schedule.final_capacity is not None:
            return None  # they hold the rate elsewhere than the weight alone would
        return forecast(
            self.likelihood, pixels, self.spec, self.latent_dim, self.weight.beta_effective
        )

    def verdict(self, metrics: Mapping[str, float]) -> str:
        return diagnostics.verdict(int(metrics["active_units"]), self.latent_dim)

    def networks(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "decoder": self.decoder}

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """q(z|x): images (B, C, H, W) in [0, 1] to a Gaussian (B, d)."""
        return diagonal_gaussian(self.encoder(x), self.log_var_range)

    def decode(self, z: Tensor) -> Distribution:
        """p(x|z): latents (B, d) to a distribution over images (B, C, H, W)."""
        distribution: Distribution = self.likelihood(self.decoder(z))
        return distribution

    def _terms(self, x: Tensor, posterior: DiagonalGaussian) -> tuple[bounds.ElboTerms, Tensor]:
        z = posterior.rsample()
        output = self.decoder(z)
        terms = bounds.elbo_terms(x, output, z, posterior, self.likelihood, self.prior, self.encode)
        return terms, z

    def objective(self, x: Tensor, labels: Tensor | None, step: int) -> dict[str, Tensor]:
        terms, _ = self._terms(x, self.encode(x))
        reconstruction, kl = terms.reconstruction.mean(), terms.kl.mean()
        loss = self._loss(reconstruction, kl, terms.kl_per_dim, step)
        return {"loss": loss, "reconstruction": reconstruction, "kl": kl}

    def _loss(
        self, reconstruction: Tensor, kl: Tensor, kl_per_dim: Tensor | None, step: int | None
    ) -> Tensor:
        """The loss at a step, or with step None at the values that the schedule ends at."""
        if self.free_bits.kind != "none":
            parts = kl.reshape(1, 1) if kl_per_dim is None else kl_per_dim
            kl = bounds.free_bits(parts, self.free_bits.kind, self.free_bits.nats)
        return objective(reconstruction, kl, self.weight.beta_effective, self.kl_schedule, step)

    def bound(self, x: Tensor) -> dict[str, Tensor]:
        terms, _ = self._terms(x, self.encode(x))
        return {"reconstruction": terms.reconstruction, "kl": terms.kl}

    def training_metrics(self, terms: dict[str, float], step: int) -> dict[str, float]:  # type: ignore[override]
        scheduled = self.kl_schedule.weight(step)
        return {
            **terms,
            **self._derived(terms),
            "kl_weight": self.weight.quoted * scheduled,
            "beta_effective": self.weight.beta_effective * scheduled,
        }

    def _derived(self, means: dict[str, float]) -> dict[str, float]:
        """What follows from the two terms, always at weight 1."""
        neg_elbo = means["reconstruction"] + means["kl"]
        return {
            "neg_elbo": neg_elbo,
            "bits_per_dim": nats_to_bits_per_dim(neg_elbo, self.spec.dims),
        }

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._posteriors, self._kl_by_unit = [], None

    def evaluate(self, x: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        parameters = self.encoder(x)
        posterior = diagonal_gaussian(parameters, self.log_var_range)
        terms, z = self._terms(x, posterior)
        self._posteriors.append((posterior.loc.cpu(), posterior.log_var.cpu(), z.cpu().float()))
        if terms.kl_per_dim is not None:
            total = terms.kl_per_dim.double().sum(0)
            self._kl_by_unit = total if self._kl_by_unit is None else self._kl_by_unit + total
        clamped = clamped_fraction(parameters, self.log_var_range)
        measured = {
            "reconstruction": terms.reconstruction,
            "kl": terms.kl,
            "log_var_clamped": clamped.expand(len(x)),
        }
        if self.trainer.testing and self.iwae_samples:
            measured[f"nll_iwae_{self.iwae_samples}"] = -self.log_likelihood(x)
        return measured

    def log_likelihood(self, x: Tensor) -> Tensor:
        """The bound of `iwae_samples` samples on log p(x), (B,) in nats, in float32."""
        with torch.autocast(x.device.type, enabled=False):
            return bounds.iwae_log_likelihood(
                x,
                self.encode(x),
                lambda images, z: self.likelihood.log_prob(self.decoder(z), images),
                self.prior.distribution(self.encode),
                self.iwae_samples,
                self.iwae_chunk,
            )

    def posteriors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Means, log-variances and one sample each, (N, d), of the split evaluated last."""
        means, log_vars, z = (torch.cat(parts) for parts in zip(*self._posteriors, strict=True))
        return means, log_vars, z

    def on_evaluated(self) -> None:
        means, log_vars, z = (self.of_all(part) for part in self.posteriors())
        self._posteriors = [(means, log_vars, z)]

    def summary(self, means: dict[str, float], split: str) -> dict[str, float]:
        mean, log_var, z = self.posteriors()
        if self._kl_by_unit is not None:
            by_unit = self.reduce_sum(self._kl_by_unit) / self.evaluated_images
            self.final_curves = {"kl_by_unit": by_unit.tolist()}
        kl_per_dim = (
            diagnostics.kl_per_dim(mean, log_var)[None] if self.prior.kl_is_analytic else None
        )
        loss = self._loss(
            torch.tensor(means["reconstruction"], dtype=torch.float64),
            torch.tensor(means["kl"], dtype=torch.float64),
            kl_per_dim,
            None,
        )
        metrics = {
            "loss": float(loss),
            **means,
            **self._derived(means),
            "kl_weight": self.weight.quoted,
            "beta_effective": self.weight.beta_effective,
            "active_units": float(diagnostics.active_units(mean)),
        }
        if self.weight.theta is not None:
            metrics["theta"] = self.weight.theta
        if self.prior.kl_is_analytic:
            information = diagnostics.information(mean, log_var, z)
            metrics |= {
                "mutual_information": information.mutual_information,
                "aggregate_kl": information.aggregate_kl,
                "information_cap": information.cap,
            }
        return metrics

    def sample(self, n: int, seed: int) -> Tensor:
        return self.sample_with(range(n), seed)

    def sample_with(self, indices: Sequence[int], seed: int) -> Tensor:
        """Images (n, C, H, W) in [0, 1]; image i depends on (seed, indices[i]) alone."""
        prior = self.prior.distribution(self.encode)
        draws = []
        for i in indices:
            seeding.reseed(seed, "sample", i)
            draws.append(prior.sample((1,)))
        return self._images(torch.cat(draws))

    def sample_aggregate(self, n: int, seed: int) -> Tensor:
        """Images from a full Gaussian fitted to q(z), the mean over the evaluated split of q(z|x).

        At kl_weight 0 nothing ties q(z) to the prior, so that samples from the prior are no fair
        picture of what the decoder knows.
        """
        mean, log_var, _ = self.posteriors()
        aggregate = diagnostics.fitted_aggregate(mean, log_var)
        draws = []
        for i in range(n):
            seeding.reseed(seed, "aggregate", i)
            draws.append(aggregate.sample((1,)))
        return self._images(torch.cat(draws).float())

    def _images(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            images: Tensor = self.decode(z.to(self.device)).mean
        return images

    def reconstruct(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._images(self.encode(x).loc)

    def interpolate(self, a: Tensor, b: Tensor, steps: int) -> Tensor:
        with torch.no_grad():
            start, end = self.encode(a).loc, self.encode(b).loc
        t = torch.linspace(0, 1, steps, device=start.device)[None, :, None]
        z = start[:, None] * (1 - t) + end[:, None] * t
        return self._images(z.flatten(0, 1)).unflatten(0, (len(a), steps))

    def traverse(self, x: Tensor, dims: Sequence[int], values: Sequence[float]) -> Tensor:
        """One image (1, C, H, W) with one latent at a time set to each value.

        Returns:
            (len(dims), len(values), C, H, W) in [0, 1].
        """
        with torch.no_grad():
            base = self.encode(x).loc
        z = base.repeat(len(dims) * len(values), 1)
        for row, dim in enumerate(dims):
            for column, value in enumerate(values):
                z[row * len(values) + column, dim] = value
        return self._images(z).unflatten(0, (len(dims), len(values)))
