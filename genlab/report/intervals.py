"""The mean of a few seeds, and its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

# Student's t at 97.5 % for 1, 2, ... degrees of freedom; for more, 2.0 is close enough.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
_T_AT_MANY = 2.0


class Interval(NamedTuple):
    """Mean, standard deviation and 95 % interval of the mean; for one value low = mean = high."""

    mean: float
    deviation: float
    low: float
    high: float


def mean_interval(values: Sequence[float]) -> Interval:
    """Compute the interval of the mean of independent normal values, by Student's t."""
    mean, n = fmean(values), len(values)
    deviation = stdev(values) if n > 1 else 0.0
    t = _T[n - 2] if 2 <= n <= len(_T) + 1 else _T_AT_MANY
    half = t * deviation / math.sqrt(n)
    return Interval(mean, deviation, mean - half, mean + half)
