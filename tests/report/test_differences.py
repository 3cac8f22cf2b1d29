"""Intervals and paired comparisons over seeds keep the error that they promise."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from compared_runs import vae, write
from scipy import stats

from genlab.report import answer, collect
from genlab.report.differences import MOST_SETTINGS, differences, holm
from genlab.report.intervals import mean_interval, t_probability, t_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 101])
def test_students_t_agrees_with_scipy(freedom: int) -> None:
    for t in (0.0, 0.3, 1.0, 2.5, 12.0):
        assert t_probability(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), abs=1e-12)
    for probability in (0.6, 0.8, 0.975, 0.9999):
        expected = stats.t.ppf(probability, freedom)
        assert t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_intervals_cover_the_mean_in_95_of_100_sweeps(seeds: int) -> None:
    draws = np.random.default_rng(seeds).normal(700.0, 3.0, (4000, seeds))
    covered = 0
    for values in draws.tolist():
        known = mean_interval(values)
        covered += known.low <= 700.0 <= known.high
    assert 0.93 <= covered / len(draws) <= 0.97


@pytest.mark.parametrize(("settings", "seeds"), [(2, 2), (4, 3), (6, 5)])
def test_equal_settings_are_called_different_in_at_most_5_of_100_sweeps(
    settings: int, seeds: int
) -> None:
    random = np.random.default_rng(settings)
    sweeps = 2000
    wrong = 0
    for _ in range(sweeps):
        # what a seed does to all settings, and what is left
        values = random.normal(0, 5, seeds) + random.normal(0, 1, (settings, seeds))
        by_seed = [dict(zip(map(str, range(seeds)), row, strict=True)) for row in values.tolist()]
        wrong += any(found.is_decided for found in differences(by_seed))
    # 5 % and three standard errors of so many sweeps
    assert wrong / sweeps <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / sweeps)


def test_pairing_finds_what_the_spread_of_seeds_would_hide() -> None:
    random = np.random.default_rng(0)
    seeds = random.normal(700, 20, 5)
    one, other = seeds + random.normal(0, 0.1, 5), seeds + 1 + random.normal(0, 0.1, 5)
    (found,) = differences([dict(enumerate(one)), dict(enumerate(other))])  # type: ignore[list-item]
    assert found.is_decided and found.low <= -1 <= found.high
    assert stats.ttest_rel(one, other).pvalue == pytest.approx(found.p)
    assert not stats.ttest_ind(one, other).pvalue < 0.5


def test_holm_is_that_of_the_paper() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7, 0.9]) == [1.0, 1.0]


def test_only_common_seeds_are_compared() -> None:
    assert differences([{"0": 1.0, "1": 2.0}, {"2": 1.0, "3": 2.0}, {"0": 4.0}]) == []
    (found,) = differences([{"0": 1.0, "1": 2.0, "2": 9.0}, {"1": 2.5, "0": 1.0}])
    assert (found.n, found.mean, found.comparisons) == (2, -0.25, 1)


def test_the_seeds_that_are_missing_settle_it_in_80_of_100_sweeps() -> None:
    # differences 0, 0.5, 1, ..., of mean 1: undecided among three comparisons
    random = np.random.default_rng(1)
    values = random.normal(1.0, 2.0, 4)
    settings = [dict.fromkeys("0123", 0.0), dict(zip("0123", values.tolist(), strict=True))]
    (found,) = differences(settings)
    assert not found.is_decided and found.more_seeds is not None
    total = found.n + found.more_seeds
    draws = random.normal(values.mean(), values.std(ddof=1), (2000, total))
    settled = np.mean(stats.ttest_1samp(draws, 0.0, axis=1).pvalue <= 0.05)
    assert 0.76 <= settled <= 0.9
    fewer = np.mean(stats.ttest_1samp(draws[:, : total - 2], 0.0, axis=1).pvalue <= 0.05)
    assert fewer < settled


def test_more_settings_than_are_compared_are_said(tmp_path: Path) -> None:
    for weight in range(MOST_SETTINGS + 1):
        for seed in (0, 1):
            config = vae(**{"model.kl_weight": float(weight), "seed": seed})
            write(tmp_path / f"run-{weight}-{seed}", config, 100.0 + weight + seed, "completed")
    told = answer(collect(tmp_path))
    assert "No two of these 51 settings are compared over their seeds" in told


def test_a_difference_of_nothing_is_never_settled() -> None:
    (found,) = differences([{"0": 1.0, "1": 2.0}, {"0": 2.0, "1": 1.0}])
    assert found.more_seeds is None and not found.is_decided
    (same,) = differences([{"0": 1.0, "1": 2.0}, {"0": 1.0, "1": 2.0}])
    assert same.p == 1 and same.more_seeds is None
