"""Claims about two classes of models: intervals of what was measured, and verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from genlab.report.differences import holm
from genlab.report.intervals import CONFIDENCE, t_probability, t_quantile

#: Values by seed.
Seeds = Mapping[str, float]
Verdict = Literal["supported", "contradicted", "undecided"]
#: The quantile of a normal distribution that a 95 % interval reaches to.
_Z = 1.959964
#: The logarithm of the largest ratio that is told.
_FARTHEST = math.log(1e100)


@dataclass(frozen=True)
class Claim:
    """A claim about two classes of models, and what was measured of it.

    Attributes:
        claim: in words.
        measure: what is compared.
        budget: under which both were trained; empty where it makes no difference.
        expected: the sign of the difference that the claim expects.
        value: the first minus the second; for a ratio the first over the second.
        low, high: ends of its 95 % interval, for this claim alone.
        p: two-sided p-value of no difference.
        basis: the runs that it comes from, in words.
        is_ratio: whether `value` is a ratio.
    """

    claim: str
    measure: str
    budget: str
    expected: Literal[1, -1]
    value: float
    low: float
    high: float
    p: float
    basis: str = ""
    is_ratio: bool = False

    @property
    def verdict(self) -> Verdict:
        """The verdict at 5 %; of an adjusted p-value, at 5 % for all claims together."""
        neutral = 1.0 if self.is_ratio else 0.0
        if self.p > 1 - CONFIDENCE or self.value == neutral:
            return "undecided"
        return "supported" if (self.value > neutral) == (self.expected > 0) else "contradicted"


def judged(claims: Sequence[Claim]) -> list[Claim]:
    """Return the claims with p-values that hold for all of them together (Holm 1979)."""
    adjusted = holm([claim.p for claim in claims])
    return [replace(claim, p=p) for claim, p in zip(claims, adjusted, strict=True)]


def of_means(one: Seeds, other: Seeds, is_ratio: bool = False) -> dict[str, Any] | None:
    """Compare the means of two classes over their seeds, as fields of a `Claim`.

    Runs of different classes have nothing but the order of the images in common, so that the test
    is Welch's (1947), with its degrees of freedom rounded down. Ratios are of geometric means.

    Returns:
        None where one of them has fewer than two seeds.
    """
    x, y = ([math.log(v) if is_ratio else v for v in seeds.values()] for seeds in (one, other))
    if min(len(x), len(y)) < 2:
        return None
    mean = statistics.fmean(x) - statistics.fmean(y)
    parts = [statistics.variance(values) / len(values) for values in (x, y)]
    error = math.sqrt(sum(parts))
    if error == 0:
        half, p = 0.0, 1.0 if mean == 0 else 0.0
    else:
        lengths = (len(x), len(y))
        shares = [part / sum(parts) for part in parts]  # whose squares are floats
        spent = sum(share**2 / (n - 1) for share, n in zip(shares, lengths, strict=True))
        freedom = max(1, int(1 / spent + 1e-9))
        half = t_quantile(0.5 + CONFIDENCE / 2, freedom) * error
        p = t_probability(mean / error, freedom)
    found = (mean, mean - half, mean + half)
    value, low, high = map(_ratio, found) if is_ratio else found
    basis = f"{len(x)} and {len(y)} seeds"
    return {"value": value, "low": low, "high": high, "p": p, "basis": basis, "is_ratio": is_ratio}


def _ratio(logarithm: float) -> float:
    """Return the ratio of a logarithm, between 1e-100 and 1e100 where it is beyond."""
    return math.exp(max(-_FARTHEST, min(_FARTHEST, logarithm)))


def of_shares(one: tuple[int, int], other: tuple[int, int]) -> dict[str, Any]:
    """Compare two shares, each as (successes, runs), as fields of a `Claim`.

    The p-value is that of Fisher's exact test, the interval that of Newcombe (1998, method 10).
    """
    (a, n), (b, m) = one, other
    p, q = a / n, b / m
    (p_low, p_high), (q_low, q_high) = wilson(a, n), wilson(b, m)
    difference = p - q
    low = difference - math.hypot(p - p_low, q_high - q)
    high = difference + math.hypot(p_high - p, q - q_low)
    basis = f"{a} of {n}, {b} of {m} runs"
    return {"value": difference, "low": low, "high": high, "p": fisher(a, n, b, m), "basis": basis}


def wilson(successes: int, runs: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927)."""
    p, z = successes / runs, _Z
    middle = (p + z * z / (2 * runs)) / (1 + z * z / runs)
    half = z / (1 + z * z / runs) * math.sqrt(p * (1 - p) / runs + z * z / (4 * runs * runs))
    return max(0.0, middle - half), min(1.0, middle + half)


def fisher(a: int, n: int, b: int, m: int) -> float:
    """Return the two-sided p-value of Fisher's exact test of a of n against b of m successes."""
    total = a + b

    def ways(k: int) -> int:
        return math.comb(n, k) * math.comb(m, total - k)

    all_ways = [ways(k) for k in range(max(0, total - m), min(n, total) + 1)]
    return sum(w for w in all_ways if w <= ways(a)) / sum(all_ways)


def best_rates(values: Mapping[float, Mapping[str, float | None]]) -> dict[str, float]:
    """Choose for each seed the learning rate that is best for the others.

    The value of a seed at its rate is then no part of the choice: the best of several noisy means
    would look better than it is.

    Args:
        values: of each rate, by seed; lower is better, None is a run without a result.

    Returns:
        The rate by seed: of those with the fewest runs without a result, the one of the lowest
        mean. Of a seed that has no value there, too.
    """
    seeds = dict.fromkeys(seed for by_seed in values.values() for seed in by_seed)

    def cost(rate: float, left_out: str) -> tuple[int, float]:
        others = [value for seed, value in values[rate].items() if seed != left_out]
        known = [value for value in others if value is not None]
        return len(seeds) - 1 - len(known), statistics.fmean(known) if known else math.inf

    return {seed: min(values, key=lambda rate: cost(rate, seed)) for seed in seeds}


def spreads(values: Mapping[float, Mapping[str, float]]) -> dict[str, float]:
    """Measure how far the runs of each seed are from the median run, over all rates.

    That is the mean of |log(value / median)| over the rates, the quantity of the test of Brown and
    Forsythe (1974), on a scale on which classes of different quality can be compared.

    Args:
        values: of each rate, by seed; above 0.
    """
    middle = math.log(statistics.median(v for by_seed in values.values() for v in by_seed.values()))
    found: dict[str, list[float]] = {}
    for by_seed in values.values():
        for seed, value in by_seed.items():
            found.setdefault(seed, []).append(abs(math.log(value) - middle))
    return {seed: statistics.fmean(distances) for seed, distances in found.items()}
