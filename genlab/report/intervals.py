"""Student's t: intervals of a mean over a few seeds, and its test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

#: Of an interval, and of "differ" in all comparisons of a table together.
CONFIDENCE = 0.95
#: The square of a number below this is a float.
_LARGEST = 1e100


class Interval(NamedTuple):
    """Mean, standard deviation and 95 % interval of the mean; for one value low = mean = high."""

    mean: float
    deviation: float
    low: float
    high: float


def squarable(value: object) -> float | None:
    """Return a number whose square is finite; None for anything else, as a stranger may write."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if -_LARGEST < value < _LARGEST else None


def mean_interval(values: Sequence[float]) -> Interval:
    """Compute the interval of the mean of independent normal values, by Student's t."""
    n = len(values)
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else 0.0
    half = t_quantile(0.5 + CONFIDENCE / 2, n - 1) * deviation / math.sqrt(n) if n > 1 else 0.0
    return Interval(mean, deviation, mean - half, mean + half)


def t_probability(t: float, freedom: int) -> float:
    """Compute P(|T| > t), the two-sided p-value of Student's t.

    It is a finite sum for whole degrees of freedom (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4).
    """
    angle = math.atan2(abs(t), math.sqrt(freedom))
    cosine = math.cos(angle)
    is_odd = freedom % 2 == 1
    term = cosine if is_odd else 1.0
    total = term if freedom > 1 or not is_odd else 0.0
    for k in range(3 if is_odd else 2, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    inside = math.sin(angle) * total
    if is_odd:
        inside = 2 / math.pi * (angle + inside)
    return max(0.0, 1.0 - inside)


@cache
def t_quantile(probability: float, freedom: int) -> float:
    """Compute the quantile of Student's t at a probability in (0.5, 1), by bisection."""
    low, high = 0.0, 1.0
    while 1 - t_probability(high, freedom) / 2 < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        is_below = 1 - t_probability(middle, freedom) / 2 < probability
        low, high = (middle, high) if is_below else (low, middle)
    return (low + high) / 2
