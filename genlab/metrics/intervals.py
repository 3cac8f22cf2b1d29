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


def share(hits: npt.NDArray[np.bool_]) -> Estimate:
    """Return the share of independent hits (N,), with the interval of Wilson (1927)."""
    n, p, z = len(hits), float(hits.mean()), 1.96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Estimate(p, max(0.0, middle - half), min(1.0, middle + half), n)


def mean(values: Sequence[float] | npt.NDArray[np.float64]) -> Estimate:
    """Return the mean of independent values (N,), with the interval of a normal mean."""
    x = np.asarray(values, dtype=np.float64)
    half = 1.96 * float(x.std(ddof=1)) / math.sqrt(len(x))
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
