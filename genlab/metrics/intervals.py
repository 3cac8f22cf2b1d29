"""Intervals of a statistic of samples, by leaving out one of a few groups of them at a time.

The jackknife of Quenouille (1956) and Tukey (1958), over groups: with `without[g]` the statistic
without group g of G,

    variance = (G - 1) / G * sum_g (without[g] - mean)^2,
    bias     = (G - 1) * (mean - whole), which for a bias c/n is the value at n -> infinity of the
               line through the statistics of n and of n - n/G samples (Chong and Forsyth 2020).

Unlike a bootstrap, no sample is drawn twice: a double would have no distance to its nearest
neighbour, and a covariance of fewer different images is another covariance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genlab.seeding import numpy_generator

#: G, and Student's t at 97.5 % with G - 1 degrees of freedom.
GROUPS, T = 20, 2.0930
#: Ways to divide samples into thirds, for a statistic of nearest neighbours.
DIVISIONS = 7
_Z = 1.96


def student(freedom: float) -> float:
    """Return Student's t at 97.5 %, for 3 or more degrees of freedom (Abramowitz 1964, 26.7.5)."""
    z, v = 1.959964, max(3.0, freedom)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3


@dataclass(frozen=True)
class Estimate:
    """A statistic of samples, and its 95 % interval.

    Attributes:
        value: of all samples.
        low, high: the interval.
        samples: number of samples.
    """

    value: float
    low: float
    high: float
    samples: int

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class LeaveOneOut:
    """A statistic of all samples, and of all but each group.

    Attributes:
        whole: of all samples.
        without: of all but those of group g, (G,).
    """

    whole: float
    without: npt.NDArray[np.float64]

    def estimate(
        self, samples: int, within: tuple[float, float] = (-math.inf, math.inf)
    ) -> Estimate:
        """Return the statistic and its interval, which lies within these limits."""
        half = T * self._error
        low, high = max(within[0], self.whole - half), min(within[1], self.whole + half)
        return Estimate(self.whole, low, high, samples)

    def extrapolated(self, samples: int) -> Estimate:
        """Return the statistic without its bias of order 1/n, and the interval of that."""
        bias = (len(self.without) - 1) * (float(self.without.mean()) - self.whole)
        value, half = self.whole - bias, T * self._error
        return Estimate(value, value - half, value + half, samples)

    @property
    def _error(self) -> float:
        n = len(self.without)
        return math.sqrt((n - 1) / n * float(((self.without - self.without.mean()) ** 2).sum()))


def groups_of(samples: int) -> npt.NDArray[np.int64]:
    """Deal samples out to groups of equal size at random, (N,), always in the same way."""
    order = numpy_generator(0, "groups").permutation(samples)
    return np.asarray(order % min(GROUPS, samples), dtype=np.int64)


def thirds_of(samples: int) -> npt.NDArray[np.int8]:
    """Deal samples out to thirds in `DIVISIONS` ways, (N, D), always the same ones."""
    orders = [numpy_generator(0, "thirds", i).permutation(samples) for i in range(DIVISIONS)]
    return np.stack([order % 3 for order in orders], axis=1).astype(np.int8)


def share(hits: npt.NDArray[np.bool_]) -> Estimate:
    """Return the share of independent hits (N,), with the interval of Wilson (1927)."""
    n, p = len(hits), float(hits.mean())
    return Estimate(p, *_wilson(p, n, _Z), n)


def share_of_neighbours(
    without: npt.NDArray[np.float64],
    held: npt.NDArray[np.int64],
    marks: npt.NDArray[np.float64],
    samples: int,
) -> Estimate:
    """Return a share of images that is told by the nearest neighbours among samples.

    Leaving out single samples or small groups overestimates the variance of such a statistic two to
    four times (Efron and Stein 1981), and halves underestimate it, since it depends on the number
    of samples; thirds are close.

    Args:
        without: shares of all but one third, (D, 3).
        held: number of samples that reach each image, (M,).
        marks: sum of random numbers of these samples: where a few samples reach many images alone,
            the variance is known less well.
    """
    spread = without - without.mean(1, keepdims=True)
    variance = 2 / 3 * float((spread**2).sum(1).mean())
    p = float((held > 0).mean())
    _, alone = np.unique(marks[held == 1], return_counts=True)
    inverse = 1 / (2 * len(without)) + 1 / _freedom(alone.astype(np.float64) ** 2)
    n = _effective(p, variance, len(held))
    return Estimate(p, *_wilson(p, n, student(1 / inverse)), samples)


#: Of a ball with 1, 2 and 3 samples; 1, -1, 1, ... (Good and Toulmin 1956) varies too much, and
#: this smooth end (Efron and Thisted 1976) is within a tenth of it where balls hold 5 or fewer.
_SIGNS = np.array([0.0, 7 / 8, -1 / 2, 1 / 8])


def share_of_balls(
    held: npt.NDArray[np.int64], marks: npt.NDArray[np.float64], samples: int
) -> Estimate:
    """Return the share of balls that hold a sample; they may overlap, so hits depend on each other.

    Args:
        held: number of samples in each ball, (M,).
        marks: sum of random numbers of these samples, the same for balls with the same samples.
    """
    variance, freedom = variance_of_empty(held, marks, samples)
    p = float((held > 0).mean())
    n = _effective(p, variance, len(held))
    return Estimate(p, *_wilson(p, n, student(freedom)), samples)


def variance_of_empty(
    held: npt.NDArray[np.int64], marks: npt.NDArray[np.float64], samples: int
) -> tuple[float, float]:
    """Estimate the variance of the share of balls that are empty, and its degrees of freedom.

    With A, B and C samples in the one ball alone, in the other alone and in both, the covariance of
    being empty is E[1{A = B = 0} (1{C = 0} - (-1)^C)] if counts are Poisson, so that pairs of balls
    with the same samples give an unbiased variance. What a fixed number of samples takes off is
    the square of the number of balls with one sample over the number of samples. It is never below
    a third of what leaving out single samples gives. The arguments are those of `share_of_balls`.
    """
    few = (held > 0) & (held < len(_SIGNS))
    _, first, alike = np.unique(marks[few], return_index=True, return_counts=True)
    sizes, squares = held[few][first], alike.astype(np.float64) ** 2
    parts = _SIGNS[sizes] * squares
    ones = float(alike[sizes == 1].sum()) ** 2 / samples
    least = (float(squares[sizes == 1].sum()) - ones) / 3
    variance = max(float(parts.sum()) - ones, least) / len(held) ** 2
    return variance, _freedom(parts)


def _freedom(parts: npt.NDArray[np.float64]) -> float:
    """Return the degrees of freedom of a sum of parts, each there or not (Satterthwaite 1946)."""
    return max(1.0, 2 * float(parts.sum()) ** 2 / max(float((parts**2).sum()), 1e-9))


def _effective(share: float, variance: float, otherwise: int) -> float:
    """Return the number of independent hits whose share has this variance."""
    n = share * (1 - share) / variance if variance > 0 else 0.0
    return n or float(otherwise)


def _wilson(p: float, n: float, z: float) -> tuple[float, float]:
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def mean(values: Sequence[float] | npt.NDArray[np.float64]) -> Estimate:
    """Return the mean of independent values (N,), with the interval of a normal mean."""
    x = np.asarray(values, dtype=np.float64)
    half = _Z * float(x.std(ddof=1)) / math.sqrt(len(x))
    centre = float(x.mean())
    return Estimate(centre, centre - half, centre + half, len(x))


def median(values: Sequence[float] | npt.NDArray[np.float64]) -> Estimate:
    """Return the median of independent values (N,), and an interval of two of the values.

    The interval from the k-th lowest to the k-th highest misses the median of any distribution
    with probability 2 P(Binomial(N, 1/2) < k); k is the largest for which that is at most 5 %, or 1
    if there is none (below 6 values).
    """
    x = np.sort(np.asarray(values, dtype=np.float64))
    n = len(x)
    below = list(itertools.accumulate(math.comb(n, i) / 2**n for i in range(n)))
    k = max(1, sum(2 * share <= 0.05 for share in below))
    return Estimate(float(np.median(x)), float(x[k - 1]), float(x[n - k]), n)
