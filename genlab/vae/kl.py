"""The KL term of the loss: weight, convention, schedule and free bits.

The canonical loss is reconstruction + beta * kl, both summed over dimensions, in nats per image,
and the reconstruction includes its normalising constant. Other conventions have the form
a * error + w * b * KL, where a and b depend on how each term is reduced. A weight that was quoted
for an unnormalised squared error determines only theta = beta sigma^2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from genlab.errors import number
from genlab.protocols import ImageSpec
from genlab.vae.kl_schedules import Constant, KLSchedule
from genlab.vae.likelihoods import Bernoulli, Likelihood

FREE_BITS = ("none", "per_dimension", "per_image", "total")

_CHOICES = {
    "error": ("squared", "cross_entropy"),
    "reconstruction": ("sum", "half_sum", "mean"),
    "kl": ("sum", "mean"),
}


@dataclass(frozen=True)
class KLConvention:
    """The convention in which a weight is quoted; every reduction must be stated.

    Attributes:
        error: the error that the weight was quoted for.
        reconstruction: the reduction of that error over the D dimensions; half_sum is SSE / 2.
        kl: the reduction of the KL over the d latents.

    Raises:
        ValueError: if a reduction is missing or unknown, or is half_sum for a cross-entropy.
    """

    error: Literal["squared", "cross_entropy"] | None = None
    reconstruction: Literal["sum", "half_sum", "mean"] | None = None
    kl: Literal["sum", "mean"] | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                given = "not stated" if value is None else f"{value!r}"
                raise ValueError(f"{name} is {given}: choose one of {', '.join(choices)}")
        if self.error == "cross_entropy" and self.reconstruction == "half_sum":
            raise ValueError(
                "reconstruction='half_sum' belongs to a squared error: choose sum "
                "or mean for a cross-entropy"
            )

    def beta(self, kl_weight: float, dims: int, latent_dim: int) -> float:
        """Compute the canonical weight: w b / a, or w b / 2a for a squared error with sigma = 1."""
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
    """A KL weight, as quoted and as used in the loss.

    Attributes:
        quoted: `model.kl_weight`.
        beta_effective: the canonical weight, the factor of the KL in the loss.
        theta: beta sigma^2, the water level of a squared error; None without a fixed sigma.
        sentence: what the weight means, in one line.
    """

    quoted: float
    beta_effective: float
    theta: float | None
    sentence: str


def effective(
    kl_weight: float,
    convention: KLConvention | None,
    likelihood: Likelihood,
    spec: ImageSpec,
    latent_dim: int,
) -> KLWeight:
    """Compute the canonical weight for this likelihood and these shapes.

    Raises:
        ValueError: if the weight is negative, infinite or not a number, or the convention is for
            another error than that of the likelihood.
    """
    quoted = number("kl_weight", kl_weight, at_least=0)
    sigma = likelihood.squared_error_scale()
    if convention is None:
        beta, origin = quoted, "canonical"
    elif convention.error == "squared":
        if sigma is None:
            raise ValueError(
                "kl_convention.error='squared' needs a Gaussian of fixed scale and "
                f"the likelihood is {type(likelihood).__name__}: use model/likelihood=gaussian"
            )
        beta = convention.beta(quoted, spec.dims, latent_dim) / sigma**2
        origin = f"quoted for {convention}"
    else:
        if not isinstance(likelihood, Bernoulli):
            raise ValueError(
                "kl_convention.error='cross_entropy' needs the Bernoulli likelihood and "
                f"the likelihood is {type(likelihood).__name__}: use model/likelihood=bernoulli"
            )
        beta = convention.beta(quoted, spec.dims, latent_dim)
        origin = f"quoted for {convention}"
    theta = None if sigma is None else beta * sigma**2
    sentence = f"kl_weight={quoted:g} ({origin}): loss = reconstruction + {beta:g} * kl, nats/image"
    if theta is not None:
        sentence += f"; theta = beta sigma^2 = {theta:g}"
    return KLWeight(quoted, beta, theta, sentence)


@dataclass(frozen=True)
class FreeBits:
    """The amount of KL that is not penalised, in one of three variants of free bits.

    Attributes:
        kind: "none"; "per_dimension", sum_d max(nats, mean_B KL_d) (Kingma et al. 2016, eq. 15);
            "per_image", mean_B sum_d max(nats, KL_d); or "total", max(nats, mean_B sum_d KL_d).
        nats: the free amount, per dimension or in total.

    Raises:
        ValueError: for an unknown kind, or nats below 0.
    """

    kind: Literal["none", "per_dimension", "per_image", "total"] = "none"
    nats: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in FREE_BITS:
            raise ValueError(f"kind={self.kind!r}: choose one of {', '.join(FREE_BITS)}")
        number("nats", self.nats, at_least=0)

    @property
    def needs_parts(self) -> bool:
        """True if the KL of each latent must be known."""
        return self.kind in ("per_dimension", "per_image")

    def rows(self, kl: Tensor, kl_per_dim: Tensor | None) -> Tensor:
        """Compute the values (B, k) to average over images; `combine` takes their mean.

        Args:
            kl: (B,).
            kl_per_dim: (B, d); None where the KL is a Monte Carlo estimate.

        Raises:
            ValueError: if the KL of each latent is needed and not known.
        """
        if not self.needs_parts:
            return kl[:, None]
        if kl_per_dim is None:
            raise ValueError(f"kind={self.kind}: this prior's KL has no parts by dimension")
        if self.kind == "per_image":
            return kl_per_dim.clamp(min=self.nats).sum(1, keepdim=True)
        return kl_per_dim

    def combine(self, mean: Tensor) -> Tensor:
        """Compute the KL term of the loss, a scalar, from the mean (k,) of `rows` over images."""
        has_floor = self.kind in ("per_dimension", "total")
        return mean.clamp(min=self.nats).sum() if has_floor else mean.sum()


@dataclass(frozen=True)
class KLPenalty:
    """The KL term of the loss: weight * KL, or weight * |KL - capacity|, in nats per image.

    Attributes:
        weight: the weight, as quoted and as used.
        schedule: the multiplier of the weight, and the capacity, at each step.
        free_bits: the amount of KL that is not penalised.
    """

    weight: KLWeight
    schedule: KLSchedule = field(default_factory=Constant)
    free_bits: FreeBits = field(default_factory=FreeBits)

    def rows(self, kl: Tensor, kl_per_dim: Tensor | None) -> Tensor:
        """Compute the values (B, k) to average over images; see `FreeBits.rows`."""
        return self.free_bits.rows(kl, kl_per_dim)

    def __call__(self, mean_rows: Tensor, step: int | None) -> Tensor:
        """Compute the penalty, a scalar.

        Args:
            mean_rows: (k,), the mean of `rows` over images.
            step: the optimizer step; None for the final values of the schedule.
        """
        kl = self.free_bits.combine(mean_rows)
        capacity = self.schedule.final_capacity if step is None else self.schedule.capacity(step)
        scale = self.schedule.final_weight if step is None else self.schedule.weight(step)
        excess = kl if capacity is None else (kl - capacity).abs()
        return self.weight.beta_effective * scale * excess

    def at(self, step: int | None) -> dict[str, float]:
        """Return the quoted `kl_weight` and `beta_effective` at a step; None: final values."""
        scale = self.schedule.final_weight if step is None else self.schedule.weight(step)
        return {
            "kl_weight": self.weight.quoted * scale,
            "beta_effective": self.weight.beta_effective * scale,
        }
