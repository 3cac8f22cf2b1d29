"""Profiles of power-function averages, and their combination into another one.

A power-function average of weights theta(1), theta(2), ... at step t has the profile

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),   0 <= tau <= t,

whose integral over [s - 1, s] is the share of theta(s) (Karras et al. 2024, section 3). Its length
is told by its relative width, the standard deviation of tau divided by t: at 0.1 the weights in it
are on average 1/(gamma + 2), a tenth of the training, old, whatever the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: The relative width of gamma = 0, the plain mean of all steps: a wider average would forget late
#: steps before early ones.
WIDEST = 1 / math.sqrt(12)
#: A narrower average has a gamma above 1e4, and is that of the last step for most purposes.
NARROWEST = 1e-4


def width_of(gamma: float) -> float:
    """Return the relative width of an exponent of at least 0: that of a Beta(gamma + 1, 1)."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(width: float) -> float:
    """Return the exponent of a relative width w, the largest root of a cubic.

    It solves (gamma + 2)^2 (gamma + 3) = (gamma + 1) / w^2.

    Raises:
        ValueError: the width is not between `NARROWEST` and `WIDEST`.
    """
    if not NARROWEST <= width < WIDEST:
        raise ValueError(
            f"{width:g}: a relative width is at least {NARROWEST:g} and below {WIDEST:.4f}, that "
            "of the mean of all steps"
        )
    inverse = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    gamma = max(root.real for root in roots if abs(root.imag) < 1e-6 * abs(root))
    return max(0.0, float(gamma))


@dataclass(frozen=True)
class Profile:
    """The profile of an average at a step.

    Attributes:
        steps: t, the number of steps that are averaged; 1 or more.
        gamma: the exponent; 0 or more.
    """

    steps: int
    gamma: float

    def inner_product(self, other: Profile) -> float:
        """Integrate the product of two profiles over all tau."""
        early, late = sorted((self, other), key=lambda profile: profile.steps)
        exponents = (early.gamma + 1) * (late.gamma + 1) / (early.gamma + late.gamma + 1)
        return exponents * (early.steps / late.steps) ** late.gamma / late.steps


@dataclass(frozen=True)
class Combination:
    """Shares with which averages that were kept add up to another one.

    Attributes:
        shares: of each, with the sum 1.
        error: norm of the difference to the profile in question, divided by that profile's norm.
    """

    shares: tuple[float, ...]
    error: float


def combination(kept: Sequence[Profile], wanted: Profile) -> Combination:
    """Find the shares whose combined profile is nearest to another, in the least squares.

    The shares sum to 1, so that weights which do not move are averaged exactly. Nearest in the
    square is best where weights do a random walk around their path (appendix C there, where the
    sum is free).
    """
    norms = np.array([math.sqrt(profile.inner_product(profile)) for profile in kept])
    products = np.array([[a.inner_product(b) for b in kept] for a in kept])
    wanted_products = np.array([profile.inner_product(wanted) for profile in kept])
    # of profiles of norm 1, whose matrix is better conditioned, and the constraint's multiplier
    gram = products / np.outer(norms, norms)
    system = np.block([[gram, 1 / norms[:, None]], [1 / norms[None], np.zeros((1, 1))]])
    right = np.append(wanted_products / norms, 1.0)
    solution = np.linalg.lstsq(system, right, rcond=None)[0][:-1]
    norm = wanted.inner_product(wanted)
    square = solution @ gram @ solution - 2 * solution @ right[:-1] + norm
    shares = tuple(float(share) for share in solution / norms)
    return Combination(shares, math.sqrt(max(0.0, square) / norm))
