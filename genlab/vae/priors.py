"""Priors p(z). To add one, write a subclass here and a YAML file in `conf/model/prior/`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from genlab.errors import number, whole
from genlab.protocols import ImageSpec
from genlab.seeding import Noise
from genlab.vae.bounds import gaussian_kl
from genlab.vae.posterior import DiagonalGaussian

Encode = Callable[[Tensor], Normal]


class PriorDistribution(Protocol):
    """The interface of p(z) that the bounds need."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Compute log p(z) of latents (N, d), (N,), in nats."""
        ...


class Prior(nn.Module, ABC):
    """A prior over latents (d,) for images like `spec`."""

    kl_is_analytic: ClassVar[bool]

    @abstractmethod
    def distribution(self, encode: Encode | None = None) -> PriorDistribution:
        """Return the current p(z); `encode` maps images to q(z|x), for priors that use it."""

    @abstractmethod
    def sample(self, noise: Noise, encode: Encode) -> Tensor:
        """Draw z (n, d), one for each image of `noise`."""

    def kl_per_dim(self, posterior: Normal) -> Tensor | None:
        """Compute KL(q(z|x) || p(z)) in closed form, (B, d); None if there is no closed form."""
        return None


class StandardNormal(Prior):
    """The standard normal prior N(0, I)."""

    kl_is_analytic = True
    zeros: Tensor

    def __init__(self, spec: ImageSpec, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("zeros", torch.zeros(latent_dim), persistent=False)

    def distribution(self, encode: Encode | None = None) -> PriorDistribution:
        unit = Normal(self.zeros, torch.ones_like(self.zeros), validate_args=False)
        return Independent(unit, 1, validate_args=False)

    def sample(self, noise: Noise, encode: Encode) -> Tensor:
        return noise.normal(len(self.zeros))

    def kl_per_dim(self, posterior: Normal) -> Tensor:
        if isinstance(posterior, DiagonalGaussian):
            return gaussian_kl(posterior.loc, posterior.log_var)
        return gaussian_kl(posterior.loc, 2 * posterior.scale.log())


class VampPrior(Prior):
    """The mixture (1/K) sum_k q(z|u_k) over K learned pseudo-inputs (Tomczak & Welling 2018).

    Args:
        components: K.
        initial_std: standard deviation of the pseudo-inputs before training, in logits of pixels
            (in pixels if those are real numbers).
    """

    kl_is_analytic = False
    log_weights: Tensor

    def __init__(
        self, spec: ImageSpec, latent_dim: int, components: int = 500, initial_std: float = 1.0
    ) -> None:
        super().__init__()
        whole("components", components, 1)
        number("initial_std", initial_std, at_least=0)
        self.bounded = spec.levels is not None
        self.raw = nn.Parameter(initial_std * torch.randn(components, *spec.shape))
        weights = torch.full((components,), -math.log(components))
        self.register_buffer("log_weights", weights, persistent=False)

    @property
    def pseudo_inputs(self) -> Tensor:
        """The K pseudo-inputs u_k, (K, C, H, W), in the range of the data."""
        return self.raw.sigmoid() if self.bounded else self.raw

    def distribution(self, encode: Encode | None = None) -> PriorDistribution:
        if encode is None:
            raise TypeError("the VampPrior is made of the encoder: pass encode")
        q = encode(self.pseudo_inputs)
        return MixtureSameFamily(
            Categorical(logits=self.log_weights, validate_args=False),
            Independent(q, 1, validate_args=False),
            validate_args=False,
        )

    def sample(self, noise: Noise, encode: Encode) -> Tensor:
        chosen = (noise.uniform() * len(self.raw)).long()
        q = encode(self.pseudo_inputs[chosen])
        z: Tensor = q.loc + q.scale * noise.normal(q.loc.shape[1])
        return z
