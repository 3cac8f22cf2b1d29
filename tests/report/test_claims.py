"""Verdicts of claims: how often they are wrong, and their intervals, on synthetic numbers."""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

import numpy as np
import pytest
from scipy import stats

from genlab.report.claims import (
    Claim,
    best_rates,
    fisher,
    judged,
    of_means,
    of_shares,
    spreads,
    wilson,
)


def seeds(values: list[float]) -> dict[str, float]:
    return {str(i): value for i, value in enumerate(values)}


def claim(expected: Any = 1, **fields: Any) -> Claim:
    return Claim("more", "of it", "images", expected, **fields)


def test_the_comparison_of_means_is_welchs() -> None:
    chance = np.random.default_rng(0)
    for n, m in ((5, 5), (3, 8)):
        x, y = chance.normal(1, 1, n), chance.normal(0, 3, m)
        found = of_means(seeds(list(x)), seeds(list(y)))
        other = stats.ttest_ind(x, y, equal_var=False)
        freedom = int(other.df)
        assert found is not None and found["value"] == pytest.approx(x.mean() - y.mean())
        assert found["p"] == pytest.approx(2 * stats.t.sf(abs(other.statistic), freedom), abs=1e-9)
        half = stats.t.ppf(0.975, freedom) * found["value"] / other.statistic
        ends = (found["value"] - abs(half), found["value"] + abs(half))
        assert (found["low"], found["high"]) == pytest.approx(ends)


def test_a_ratio_is_that_of_geometric_means_and_keeps_its_verdict_upside_down() -> None:
    x, y = seeds([4.0, 5.0, 6.0]), seeds([1.0, 1.1, 0.9])
    found, turned = of_means(x, y, is_ratio=True), of_means(y, x, is_ratio=True)
    assert found is not None and turned is not None
    means = [statistics.geometric_mean(v.values()) for v in (x, y)]
    assert found["value"] == pytest.approx(means[0] / means[1])
    assert turned["low"] == pytest.approx(1 / found["high"]) and turned["p"] == found["p"]
    assert claim(1, **found).verdict == claim(-1, **turned).verdict == "supported"
    assert claim(-1, **found).verdict == claim(1, **turned).verdict == "contradicted"


@pytest.mark.parametrize("scale", [1e-99, 1e99])
def test_the_largest_numbers_that_are_read_are_compared_as_others_are(scale: float) -> None:
    one, other = [1.0, 1.2, 0.9], [0.2, 0.1, 0.3, 0.4]
    plain, scaled = (
        of_means(seeds([s * v for v in one]), seeds([s * v for v in other])) for s in (1.0, scale)
    )
    assert plain is not None and scaled is not None
    assert scaled["p"] == pytest.approx(plain["p"])
    for name in ("value", "low", "high"):
        assert scaled[name] == pytest.approx(scale * plain[name])
    wild = of_means(seeds([1e-99, 1e99]), seeds([1e99, 1e-99]), is_ratio=True)
    assert wild is not None and wild["value"] == pytest.approx(1)
    assert (wild["low"], wild["high"]) == pytest.approx((1e-100, 1e100))


def test_values_without_spread_differ_surely_or_not_at_all() -> None:
    equal, other = of_means(seeds([2.0] * 3), seeds([2.0] * 3)), of_means(seeds([2.0] * 3), {})
    apart = of_means(seeds([2.0] * 3), seeds([3.0] * 3))
    assert other is None and equal is not None and apart is not None
    assert claim(**equal).verdict == "undecided" and equal["p"] == 1
    assert claim(-1, **apart).verdict == "supported" and apart["low"] == apart["high"] == -1


def test_equal_classes_are_told_apart_at_most_one_time_in_twenty() -> None:
    chance = random.Random(0)
    wrong, trials = 0, 1500
    for _ in range(trials):
        found = []
        for _ in range(6):
            x, y = ([chance.gauss(0, 1) for _ in range(5)] for _ in range(2))
            means = of_means(seeds(x), seeds(y))
            assert means is not None
            found.append(claim(**means))
        wrong += any(one.verdict != "undecided" for one in judged(found))
    assert wrong / trials < 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)


def test_the_interval_of_a_difference_covers_it() -> None:
    chance = np.random.default_rng(1)
    covered, trials = 0, 2000
    for _ in range(trials):
        found = of_means(seeds(list(chance.normal(2, 1, 5))), seeds(list(chance.normal(0, 2, 5))))
        assert found is not None
        covered += found["low"] <= 2 <= found["high"]
    assert 0.94 < covered / trials < 0.98


@pytest.mark.parametrize(("a", "n", "b", "m"), [(15, 15, 15, 15), (15, 15, 9, 15), (3, 5, 0, 9)])
def test_shares_are_compared_exactly(a: int, n: int, b: int, m: int) -> None:
    table = [[a, n - a], [b, m - b]]
    assert fisher(a, n, b, m) == pytest.approx(stats.fisher_exact(table).pvalue)
    known = stats.binomtest(a, n).proportion_ci(method="wilson")
    assert wilson(a, n) == pytest.approx((known.low, known.high), abs=1e-6)
    found = of_shares((a, n), (b, m))
    assert found["low"] <= found["value"] == a / n - b / m <= found["high"]
    assert found["low"] >= -1 and found["high"] <= 1


def test_newcombes_published_interval() -> None:
    # Newcombe (1998), table II, column (a), method 10: 56/70 - 48/80
    found = of_shares((56, 70), (48, 80))
    assert (found["low"], found["high"]) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_success_of_all_runs_of_both_decides_nothing() -> None:
    assert claim(**of_shares((15, 15), (15, 15))).verdict == "undecided"
    assert claim(**of_shares((15, 15), (5, 15))).verdict == "supported"
    assert claim(**of_shares((5, 15), (15, 15))).verdict == "contradicted"


def test_a_rate_is_chosen_without_the_seed_that_it_is_used_for() -> None:
    values: dict[float, dict[str, float | None]] = {
        0.1: {"0": 1.0, "1": 5.0, "2": 5.0},
        0.2: {"0": 4.0, "1": 4.0, "2": 4.0},
        0.3: {"0": 0.5, "1": None, "2": 0.5},
    }
    assert best_rates(values) == {"0": 0.2, "1": 0.3, "2": 0.1}


def test_the_choice_of_a_rate_does_not_flatter() -> None:
    chance, chosen, best = random.Random(0), [], []
    for _ in range(2000):
        values = {rate: {str(s): chance.gauss(0, 1) for s in range(4)} for rate in (0.1, 0.2, 0.3)}
        rates = best_rates(values)
        chosen.append(statistics.fmean(values[rate][seed] for seed, rate in rates.items()))
        best.append(min(statistics.fmean(v.values()) for v in values.values()))
    error = statistics.stdev(chosen) / math.sqrt(len(chosen))
    assert abs(statistics.fmean(chosen)) < 3 * error
    assert statistics.fmean(best) < -0.3


def test_spread_is_of_factors_so_that_a_scale_changes_nothing() -> None:
    values = {0.1: {"0": 1.0, "1": 2.0}, 0.2: {"0": 4.0, "1": 2.0}}
    found = spreads(values)
    assert found == pytest.approx({"0": math.log(2), "1": 0.0})
    scaled = {rate: {s: 7 * v for s, v in by_seed.items()} for rate, by_seed in values.items()}
    assert spreads(scaled) == pytest.approx(found)
