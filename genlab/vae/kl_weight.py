"""What a KL weight means: quoted weights of other conventions, made canonical.

Canonical is loss = reconstruction + beta * kl, both summed over dimensions, in nats per image, the
reconstruction with its normalising constant. A dialect is a * error + w * b * KL, where a and b say
how each term is reduced. Of an unnormalised squared error only theta = beta sigma^2 can be known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genlab.checks import number
from genlab.errors import ConfigError
from genlab.protocols import ImageSpec
from genlab.vae.likelihoods import Bernoulli, Likelihood

_CHOICES = {
    "error": ("squared", "cross_entropy"),
    "reconstruction": ("sum", "half_sum", "mean"),
    "kl": ("sum", "mean"),
}


@dataclass(frozen=True)
class KLDialect:
    """The convention in which a weight is quoted; every reduction must be stated.

    Attributes:
        error: which error the weight was quoted for.
        reconstruction: that error over the D dimensions of an image; half_sum is SSE / 2.
        kl: the KL over the d latents.

    Raises:
        ConfigError: a reduction missing or unknown, or half of a cross-entropy.
    """

    error: Literal["squared", "cross_entropy"] | None = None
    reconstruction: Literal["sum", "half_sum", "mean"] | None = None
    kl: Literal["sum", "mean"] | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                said = "not stated" if value is None else f"{value!r}"
                raise ConfigError(
                    f"model.kl_dialect.{name} is {said}: choose one of {', '.join(choices)}"
                )
        if self.error == "cross_entropy" and self.reconstruction == "half_sum":
            raise ConfigError(
                "model.kl_dialect.reconstruction='half_sum' belongs to a squared error: choose sum "
                "or mean for a cross-entropy"
            )

    def beta(self, kl_weight: float, dims: int, latent_dim: int) -> float:
        """The canonical weight, with sigma = 1 where the error is squared: w b / a, or w b / 2a."""
        reductions = {"sum": 1.0, "half_sum": 0.5, "mean": 1 / dims}
        a = reductions[str(self.reconstruction)] * (2 if self.error == "squared" else 1)
        b = 1 / latent_dim if self.kl == "mean" else 1.0
        return kl_weight * b / a

    def __str__(self) -> str:
        error = "squared error" if self.error == "squared" else "cross-entropy"
        reduction = str(self.reconstruction).replace("_", " ")
        return f"the {reduction} of the {error} + weight * the {self.kl} of the KL"


@dataclass(frozen=True)
class KLWeight:
    """A KL weight as it was quoted and as it is used.

    Attributes:
        quoted: `model.kl_weight`.
        beta_effective: the canonical weight, which multiplies the KL in the loss.
        theta: beta sigma^2, the water level of a squared error; None without a fixed sigma.
        sentence: what the weight means, in one line.
    """

    quoted: float
    beta_effective: float
    theta: float | None
    sentence: str


def effective(
    kl_weight: float,
    dialect: KLDialect | None,
    likelihood: Likelihood,
    spec: ImageSpec,
    latent_dim: int,
) -> KLWeight:
    """The canonical weight for this likelihood and these shapes.

    Raises:
        ConfigError: a negative, infinite or non-numeric weight, or a dialect of another error than
            the likelihood's.
    """
    quoted = number("model.kl_weight", kl_weight, at_least=0)
    sigma = likelihood.squared_error_scale()
    if dialect is None:
        beta, origin = quoted, "canonical"
    elif dialect.error == "squared":
        if sigma is None:
            raise ConfigError(
                "model.kl_dialect.error='squared' needs a Gaussian of fixed scale and "
                f"model.likelihood is {type(likelihood).__name__}: use model/likelihood=gaussian"
            )
        beta = dialect.beta(quoted, spec.dims, latent_dim) / sigma**2
        origin = f"quoted for {dialect}"
    else:
        if not isinstance(likelihood, Bernoulli):
            raise ConfigError(
                "model.kl_dialect.error='cross_entropy' needs the Bernoulli likelihood and "
                f"model.likelihood is {type(likelihood).__name__}: use model/likelihood=bernoulli"
            )
        beta = dialect.beta(quoted, spec.dims, latent_dim)
        origin = f"quoted for {dialect}"
    theta = None if sigma is None else beta * sigma**2
    sentence = f"kl_weight={quoted:g} ({origin}): loss = reconstruction + {beta:g} * kl, nats/image"
    if theta is not None:
        sentence += f"; theta = beta sigma^2 = {theta:g}"
    return KLWeight(quoted, beta, theta, sentence)
