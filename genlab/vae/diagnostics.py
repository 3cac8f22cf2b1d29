"""Diagnostics of the latents of a trained posterior, over a whole data set.

`means` and `log_vars` (N, d) are the parameters of q(z|x) of every image; z (N, d) holds one sample
of each.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from genlab.vae.bounds import gaussian_kl

# Elements of one block of the N x N matrix of log-densities: 32 MB in float64.
_BLOCK = 4_000_000


def kl_per_dim(means: Tensor, log_vars: Tensor) -> Tensor:
    """Compute the mean over images of KL(q(z_d|x) || N(0, 1)), (d,), in nats."""
    return gaussian_kl(means.double(), log_vars.double()).mean(0)


def active_units(means: Tensor, threshold: float = 0.01) -> int:
    """Count the latents with Var_x E_q[z_d] > threshold (Burda et al. 2016, sec. 5).

    The variance takes two passes in float64, so that a large mean does not cancel a small variance.
    """
    means = means.double()
    return int(((means - means.mean(0)).square().mean(0) > threshold).sum())


def kl_active_units(kl_per_dim: Tensor, threshold: float = 0.1) -> int:
    """Count the latents with KL_d > threshold nats (NVAE, Vahdat & Kautz 2020).

    This definition differs from `active_units`.
    """
    return int((kl_per_dim > threshold).sum())


class Information(NamedTuple):
    """The two parts of the KL in nats (Hoffman & Johnson 2016, ELBO surgery).

    kl = mutual_information + aggregate_kl.

    Attributes:
        mutual_information: I_q(x; z) for the N given images; the estimate cannot exceed `cap`.
        aggregate_kl: KL(q(z) || N(0, I)); too large where the cap makes the other part too small.
        cap: ln N.
    """

    mutual_information: float
    aggregate_kl: float
    cap: float


def information(means: Tensor, log_vars: Tensor, z: Tensor) -> Information:
    """Split the rate by means of q(z) = (1/N) sum_n q(z|x_n), the exact mixture over all images.

    The prior is the standard normal. The cost is O(N^2 d) in float64, one block at a time.
    """
    centre = means.double().mean(0)
    means, log_vars, z = means.double() - centre, log_vars.double(), z.double() - centre
    n = len(means)
    precision = (-log_vars).exp()
    peak = -0.5 * (log_vars + math.log(2 * math.pi)).sum(1)
    linear = (means * precision).T
    offset = peak - 0.5 * (means.square() * precision).sum(1)
    own = peak - 0.5 * ((z - means).square() * precision).sum(1)
    log_q = torch.empty_like(own)
    rows = max(1, _BLOCK // n)
    for start in range(0, n, rows):
        block = z[start : start + rows]
        log_density = block @ linear - 0.5 * (block.square() @ precision.T) + offset
        # With a tiny variance the expanded square loses its digits. So each density is limited to
        # its peak, and that of the component that z came from is set to its exact value.
        log_density = torch.minimum(log_density, peak)
        index = torch.arange(len(block), device=block.device)
        log_density[index, start + index] = own[start : start + rows]
        log_q[start : start + rows] = log_density.logsumexp(1)
    mutual_information = float((own - log_q).mean()) + math.log(n)
    kl = float(kl_per_dim(means + centre, log_vars).sum())
    return Information(mutual_information, kl - mutual_information, math.log(n))


def fitted_aggregate(means: Tensor, log_vars: Tensor) -> MultivariateNormal:
    """Fit a Gaussian to the mean and covariance of q(z), in float64, to sample latents from.

    At KL weight 0 the loss does not pull q(z) towards N(0, I), so latents from N(0, I) may be far
    from any that the decoder was trained on.
    """
    means, n = means.double(), len(means)
    centred = means - means.mean(0)
    covariance = centred.T @ centred / n + torch.diag(log_vars.double().exp().mean(0))
    return MultivariateNormal(means.mean(0), covariance)


def verdict(active: int, latent_dim: int) -> str:
    """Summarise the latents for a table: "collapsed", "12 of 20 active", "all 20 active"."""
    if active == 0:
        return "collapsed"
    return (
        f"all {latent_dim} active" if active == latent_dim else f"{active} of {latent_dim} active"
    )
