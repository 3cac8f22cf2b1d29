"""The losses of discriminator and generator, as functions of the scores of real and drawn images.

Each loss gives values (B,) from scores (B,); the i-th real and the i-th drawn image are a pair,
which only the relativistic loss uses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor


class AdversarialLoss(ABC):
    """The losses of the discriminator and of the generator, which each of them minimises.

    Attributes:
        name: for captions.
        is_relative: whether the generator's loss depends on the scores of real images.
        needs_penalty: whether the discriminator lowers its loss for ever by larger scores alone,
            as long as nothing holds back its gradient.
    """

    name: ClassVar[str]
    is_relative: ClassVar[bool] = False
    needs_penalty: ClassVar[bool] = False

    @abstractmethod
    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Compute the discriminator's loss (B,) from both scores (B,)."""

    @abstractmethod
    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Compute the generator's loss (B,) from both scores (B,)."""


class NonSaturating(AdversarialLoss):
    """Classification, and a generator that raises log D(G(z)) (Goodfellow et al. 2014, sec. 3).

    At the discriminator's optimum a score is log p_data(x) / p_model(x), and its loss is
    2 log 2 - 2 JSD(p_data, p_model).
    """

    name = "non-saturating"

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(-real) + F.softplus(fake)

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(-fake)


class Hinge(AdversarialLoss):
    """Scores beyond a margin of 1 cost nothing (Lim and Ye 2017, eq. 7)."""

    name = "hinge"

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.relu(1 - real) + F.relu(1 + fake)

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return -fake


class Wasserstein(AdversarialLoss):
    """The difference of the mean scores (Arjovsky et al. 2017, eq. 3).

    It estimates the Wasserstein distance only where a penalty keeps the discriminator Lipschitz.
    """

    name = "Wasserstein"
    needs_penalty = True

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return fake - real

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return -fake


class RelativisticPaired(AdversarialLoss):
    """Classification of which image of a pair is real (Jolicoeur-Martineau 2019, eq. 6 and 7).

    With R1 and R2 penalties it converges locally (Huang et al. 2024).
    """

    name = "relativistic"
    is_relative = True

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(fake - real)

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(real - fake)
