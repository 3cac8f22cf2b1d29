"""Paired differences between settings over their common seeds, with all comparisons accounted for.

Runs of one seed share their data order and their noise, so that the difference of two settings has
less spread than either of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from genlab.report.intervals import CONFIDENCE, mean_interval, t_probability, t_quantile

#: Of more settings, no pair is compared.
MOST_SETTINGS = 50
#: More seeds than these are not counted.
MOST_SEEDS = 1000
# The chance that so many seeds find a difference as large as the one that was seen.
_POWER = 0.8


@dataclass(frozen=True)
class Difference:
    """The difference of two settings, first minus second, over the seeds that both have.

    Attributes:
        first, second: positions of the settings.
        n: number of common seeds, 2 or more.
        mean: of the differences.
        deviation: standard deviation of the differences.
        low, high: ends of the 95 % interval of this mean, for this pair alone (Student's t).
        p: two-sided p-value of the paired t-test, adjusted for all pairs (Holm 1979).
        comparisons: number of pairs that it is adjusted for.
    """

    first: int
    second: int
    n: int
    mean: float
    deviation: float
    low: float
    high: float
    p: float
    comparisons: int

    @property
    def is_decided(self) -> bool:
        """Return whether the settings differ, at 5 % for all comparisons together."""
        return self.p <= 1 - CONFIDENCE

    @property
    def more_seeds(self) -> int | None:
        """Count the further seeds that find a difference of this size with a chance of 80 %.

        It is 0 if the settings differ already, and None if more than `MOST_SEEDS` are needed.
        """
        if self.is_decided:
            return 0
        return _more_seeds(self.mean, self.deviation, self.n, self.comparisons)


def differences(settings: Sequence[Mapping[str, float]]) -> list[Difference]:
    """Compare each two settings that have two or more seeds in common.

    The probability that any two of several equal settings are called different is at most 5 %, if
    the differences of their seeds are normal.

    Args:
        settings: for each the values by seed.
    """
    if len(settings) > MOST_SETTINGS:
        return []
    found = []
    for (i, one), (j, other) in itertools.combinations(enumerate(settings), 2):
        values = [value - other[seed] for seed, value in one.items() if seed in other]
        if len(values) > 1:
            found.append((i, j, values))
    known = [mean_interval(values) for *_, values in found]
    tests = [
        _p_value(one.mean, one.deviation, len(v)) for one, (*_, v) in zip(known, found, strict=True)
    ]
    return [
        Difference(i, j, len(values), *interval, p, len(found))
        for (i, j, values), interval, p in zip(found, known, holm(tests), strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that 5 % holds for all tests together, whatever their dependence.

    The step-down procedure of Holm (1979, A simple sequentially rejective multiple test procedure).
    """
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted


def _p_value(mean: float, deviation: float, n: int) -> float:
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    return t_probability(mean / deviation * math.sqrt(n), n - 1)


def _more_seeds(mean: float, deviation: float, n: int, comparisons: int) -> int | None:
    """Count the seeds that are missing to find this difference among so many comparisons."""
    level = 1 - (1 - CONFIDENCE) / comparisons / 2

    def is_enough(seeds: int) -> bool:
        factor = t_quantile(level, seeds - 1) + t_quantile(_POWER, seeds - 1)
        return abs(mean) * math.sqrt(seeds) >= factor * deviation

    if mean == 0:
        return None
    low, high = n, n + 1
    while not is_enough(high):
        low, high = high, 2 * high
        if low >= MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high - n if high - n <= MOST_SEEDS else None
