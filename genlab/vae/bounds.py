"""The evidence lower bound by its terms, free bits, and the importance-weighted bound.

Everything is per image and in nats. The weight of the KL is the caller's: these are the raw terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from genlab.checks import number, whole
from genlab.errors import ConfigError

if TYPE_CHECKING:
    from genlab.vae.likelihoods import Likelihood
    from genlab.vae.priors import Encode, Prior, PriorDistribution

FREE_BITS = ("per_dimension", "per_image", "total")


class ElboTerms(NamedTuple):
    """The two terms of -ELBO = reconstruction + kl, in nats per image.

    Attributes:
        reconstruction: (B,), -log p(x|z) at one sample of z.
        kl: (B,), KL(q(z|x) || p(z)).
        kl_per_dim: (B, d) where the KL is a closed form, None where it is a Monte Carlo estimate.
    """

    reconstruction: Tensor
    kl: Tensor
    kl_per_dim: Tensor | None


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, exp(log_var)) || N(0, 1)) per element: (m^2 + s^2 - 1 - ln s^2) / 2."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var)


def elbo_terms(
    x: Tensor,
    output: Tensor,
    z: Tensor,
    posterior: Normal,
    likelihood: Likelihood,
    prior: Prior,
    encode: Encode | None = None,
) -> ElboTerms:
    """The terms of the bound (Kingma & Welling 2014, eq. 10).

    Args:
        x: images (B, C, H, W).
        output: what the decoder made of z, (B, output_channels, H, W).
        z: a reparameterised sample of `posterior`, (B, d).
        encode: images to q(z|x); needed by priors that are built from it (VampPrior).
    """
    reconstruction = -likelihood.log_prob(output, x)
    kl_per_dim = prior.kl_per_dim(posterior)
    if kl_per_dim is not None:
        return ElboTerms(reconstruction, kl_per_dim.sum(1), kl_per_dim)
    kl = posterior.log_prob(z).sum(1) - prior.distribution(encode).log_prob(z)
    return ElboTerms(reconstruction, kl, None)


def check_free_bits(kind: str, nats: float) -> None:
    """ConfigError unless `free_bits` knows the kind and the number of nats makes sense."""
    if kind not in FREE_BITS:
        raise ConfigError(f"model.free_bits.kind={kind!r}: choose one of {', '.join(FREE_BITS)}")
    number("model.free_bits.nats", nats, at_least=0)


def free_bits(kl_per_dim: Tensor, kind: str, nats: float) -> Tensor:
    """The KL term of the loss with `nats` of it free, a scalar (Kingma et al. 2016, eq. 15).

    Three different losses go by this name. Of a KL (B, d):

    - "per_dimension": sum_d max(nats, mean_B KL_d), the paper's
    - "per_image": mean_B sum_d max(nats, KL_d)
    - "total": max(nats, mean_B sum_d KL_d); a Monte Carlo KL (B,) enters as (B, 1)
    """
    check_free_bits(kind, nats)
    if kind == "per_dimension":
        return kl_per_dim.mean(0).clamp(min=nats).sum()
    if kind == "per_image":
        return kl_per_dim.clamp(min=nats).sum(1).mean()
    return kl_per_dim.sum(1).mean().clamp(min=nats)


def iwae_log_likelihood(
    x: Tensor,
    posterior: Normal,
    log_prob_x_given_z: Callable[[Tensor, Tensor], Tensor],
    prior: PriorDistribution,
    k: int,
    chunk: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The k-sample lower bound on log p(x) in nats, (B,) (Burda et al. 2016, eq. 8).

    Exactly k samples are drawn, at most `chunk` of them at a time, from `generator` or torch's
    default one. Autocast is off inside.

    Args:
        x: images (B, C, H, W).
        posterior: q(z|x), (B, d).
        log_prob_x_given_z: images (S * B, C, H, W) and latents (S * B, d) to nats (S * B,).
        prior: p(z), with log_prob (N, d) -> (N,).

    Raises:
        ConfigError: k or chunk below 1.
    """
    whole("model.iwae_samples", k, 1)
    whole("model.iwae_chunk", chunk, 1)
    mean, scale = posterior.loc, posterior.scale
    total = mean.new_full((len(x),), -math.inf)
    with torch.autocast(x.device.type, enabled=False):
        for done in range(0, k, chunk):
            s = min(chunk, k - done)
            noise = torch.randn(
                (s, *mean.shape), dtype=mean.dtype, device=mean.device, generator=generator
            )
            z = mean + scale * noise
            images = x.expand(s, *x.shape).flatten(0, 1)
            log_p = log_prob_x_given_z(images, z.flatten(0, 1)) + prior.log_prob(z.flatten(0, 1))
            log_weights = log_p.unflatten(0, (s, -1)) - posterior.log_prob(z).sum(2)
            total = torch.logaddexp(total, log_weights.logsumexp(0))
    return total - math.log(k)
