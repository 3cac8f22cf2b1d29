"""The evidence lower bound by its terms, and the importance-weighted bound.

All values are in nats per image. The terms are unweighted: the caller applies the KL weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from genlab.errors import whole
from genlab.seeding import Noise

if TYPE_CHECKING:
    from genlab.vae.likelihoods import Likelihood
    from genlab.vae.priors import Encode, Prior, PriorDistribution


class ElboTerms(NamedTuple):
    """The two terms of -ELBO = reconstruction + kl, in nats per image.

    Attributes:
        reconstruction: (B,), -log p(x|z) at one sample of z.
        kl: (B,), KL(q(z|x) || p(z)).
        kl_per_dim: (B, d) if the KL has a closed form, None if it is a Monte Carlo estimate.
    """

    reconstruction: Tensor
    kl: Tensor
    kl_per_dim: Tensor | None


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """Compute KL(N(mean, exp(log_var)) || N(0, 1)) per element: (m^2 + s^2 - 1 - ln s^2) / 2."""
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
    """Compute the terms of the bound (Kingma & Welling 2014, eq. 10).

    Args:
        x: images (B, C, H, W).
        output: the decoder's output for z, (B, output_channels, H, W).
        z: a reparameterised sample of `posterior`, (B, d).
        encode: maps images to q(z|x); needed by priors that use the encoder (VampPrior).
    """
    reconstruction = -likelihood.log_prob(output, x)
    kl_per_dim = prior.kl_per_dim(posterior)
    if kl_per_dim is not None:
        return ElboTerms(reconstruction, kl_per_dim.sum(1), kl_per_dim)
    kl = posterior.log_prob(z).sum(1) - prior.distribution(encode).log_prob(z)
    return ElboTerms(reconstruction, kl, None)


def iwae_log_likelihood(
    x: Tensor,
    posterior: Normal,
    log_prob_x_given_z: Callable[[Tensor, Tensor], Tensor],
    prior: PriorDistribution,
    k: int,
    chunk: int,
    noise: Noise,
) -> Tensor:
    """Estimate the k-sample lower bound on log p(x) in nats, (B,) (Burda et al. 2016, eq. 8).

    Draws exactly k samples, at most `chunk` at a time, with autocast disabled.

    Args:
        x: images (B, C, H, W).
        posterior: q(z|x), (B, d).
        log_prob_x_given_z: maps images (S * B, C, H, W) and latents (S * B, d) to nats (S * B,).
        prior: p(z), with log_prob (N, d) -> (N,).

    Raises:
        ValueError: if k or chunk is below 1.
    """
    whole("iwae_samples", k, 1)
    whole("iwae_chunk", chunk, 1)
    mean, scale = posterior.loc, posterior.scale
    total = mean.new_full((len(x),), -math.inf)
    with torch.autocast(x.device.type, enabled=False):
        for done in range(0, k, chunk):
            s = min(chunk, k - done)
            z = mean + scale * noise.normal(s, mean.shape[1]).transpose(0, 1)
            images = x.expand(s, *x.shape).flatten(0, 1)
            log_p = log_prob_x_given_z(images, z.flatten(0, 1)) + prior.log_prob(z.flatten(0, 1))
            log_weights = log_p.unflatten(0, (s, -1)) - posterior.log_prob(z).sum(2)
            total = torch.logaddexp(total, log_weights.logsumexp(0))
    return total - math.log(k)
