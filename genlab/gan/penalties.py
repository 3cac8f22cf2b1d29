"""Penalties on the gradient of the discriminator's score with respect to an image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from genlab.errors import number, whole
from genlab.seeding import Noise
from genlab.tensors import like_images, sum_except_batch

#: Function from images (B, C, H, W) to scores (B,).
Score = Callable[[Tensor], Tensor]


def squared_gradient(score: Score, x: Tensor) -> Tensor:
    """Compute ||d score(x) / dx||^2 of each image, (B,), which can be differentiated again."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(score(x).sum(), x, create_graph=True)
    return sum_except_batch(gradient.square())


class GradientPenalty(ABC):
    """A term of the discriminator's loss, computed at every `every`-th step.

    At those steps it counts `every` times, so that its mean is the same (Karras et al. 2020b,
    appendix B: lazy regularisation).

    Args:
        every: number of steps from one to the next; 1 or more.
    """

    def __init__(self, every: int = 1) -> None:
        self.every = whole("every", every, 1)

    def is_due(self, step: int | None) -> bool:
        """Return whether the penalty is computed at an optimizer step; always for None."""
        return step is None or (step + 1) % self.every == 0

    @abstractmethod
    def __call__(self, score: Score, real: Tensor, fake: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Compute the weighted penalties by name, each (B,), for images (B, C, H, W)."""

    @property
    @abstractmethod
    def is_zero(self) -> bool:
        """True if its weights leave nothing of it."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The penalty and its weights, for a caption."""


class ZeroCentred(GradientPenalty):
    """R1 = r1 / 2 ||grad D(x)||^2 at real images, and R2 the same at drawn ones.

    With either of them training converges locally (Mescheder et al. 2018, eq. 9 and 10).

    Args:
        r1, r2: the weights; 0 leaves the term out.
        every: see `GradientPenalty`.

    Raises:
        ValueError: a weight is below 0.
    """

    def __init__(self, r1: float = 1.0, r2: float = 0.0, every: int = 1) -> None:
        super().__init__(every)
        self.r1, self.r2 = number("r1", r1, at_least=0), number("r2", r2, at_least=0)

    def __call__(self, score: Score, real: Tensor, fake: Tensor, noise: Noise) -> dict[str, Tensor]:
        terms = (("r1", self.r1, real), ("r2", self.r2, fake))
        return {n: w / 2 * squared_gradient(score, x) for n, w, x in terms if w > 0}

    @property
    def is_zero(self) -> bool:
        return self.r1 == self.r2 == 0

    @property
    def label(self) -> str:
        weights = {"R1": self.r1, "R2": self.r2}
        return ", ".join(f"{name} {weight:g}" for name, weight in weights.items() if weight > 0)


class OneCentred(GradientPenalty):
    """weight (||grad D(x)|| - 1)^2 between a real and a drawn image (Gulrajani et al. 2017, eq. 3).

    It keeps the discriminator of the Wasserstein loss about 1-Lipschitz.

    Args:
        weight: the paper's lambda; 0 or more.
        every: see `GradientPenalty`.

    Raises:
        ValueError: the weight is below 0.
    """

    def __init__(self, weight: float = 10.0, every: int = 1) -> None:
        super().__init__(every)
        self.weight = number("weight", weight, at_least=0)

    def __call__(self, score: Score, real: Tensor, fake: Tensor, noise: Noise) -> dict[str, Tensor]:
        u = like_images(noise.uniform(), real).to(real.dtype)
        norm = (squared_gradient(score, u * real + (1 - u) * fake) + 1e-12).sqrt()
        return {"gradient_penalty": self.weight * (norm - 1).square()}

    @property
    def is_zero(self) -> bool:
        return self.weight == 0

    @property
    def label(self) -> str:
        return f"gradient penalty {self.weight:g}"
