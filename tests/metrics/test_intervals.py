"""Intervals cover what they say, by simulation with distributions that are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from genlab.metrics import distances
from genlab.metrics.intervals import (
    GROUPS,
    Estimate,
    LeaveOneOut,
    groups_of,
    mean,
    median,
    share,
    share_of_balls,
    student,
    variance_of_empty,
)
from genlab.metrics.rows import Rows


def test_groups_are_of_equal_size_and_always_the_same() -> None:
    groups = groups_of(1010)
    assert np.bincount(groups).tolist() == [51] * 10 + [50] * 10
    assert (groups == groups_of(1010)).all()
    # not by position: real images may be sorted by their classes
    assert len(set(groups[:50].tolist())) > GROUPS / 2


def test_leaving_out_groups_gives_the_variance_of_a_mean() -> None:
    x = np.random.default_rng(1).normal(size=2000)
    groups = groups_of(len(x))
    without = np.array([x[groups != g].mean() for g in range(GROUPS)])
    found = LeaveOneOut(float(x.mean()), without)
    by_groups = np.array([x[groups == g].mean() for g in range(GROUPS)])
    half = 2.093 * by_groups.std(ddof=1) / GROUPS**0.5
    assert found.estimate(len(x)).half == pytest.approx(half, rel=1e-9)
    assert found.extrapolated(len(x)).value == pytest.approx(x.mean(), abs=1e-12)  # no bias


def test_extrapolation_removes_a_bias_of_order_one_over_n() -> None:
    """The plug-in variance is biased by -sigma^2 / n, exactly."""
    x = np.random.default_rng(2).normal(size=400)
    groups = groups_of(len(x))
    without = np.array([x[groups != g].var() for g in range(GROUPS)])
    found = LeaveOneOut(float(x.var()), without).extrapolated(len(x))
    assert found.value == pytest.approx(x.var(ddof=1), rel=1e-3)  # of a bias of 2.5e-3

    def biased(n: float) -> float:
        return 7.0 + 3.0 / n

    rest = np.full(GROUPS, biased(400 - 400 / GROUPS))
    found = LeaveOneOut(biased(400), rest).extrapolated(400)
    assert found.value == pytest.approx(7.0, rel=1e-12)


def test_a_share_of_all_or_none_is_not_certain() -> None:
    """Wilson's interval of n of n hits begins at n / (n + z^2)."""
    assert share(np.ones(100, dtype=bool)).low == pytest.approx(100 / (100 + 1.96**2))
    assert share(np.zeros(100, dtype=bool)).high == pytest.approx(1.96**2 / (100 + 1.96**2))


def test_mean_has_the_textbook_interval() -> None:
    found = mean([1.0, 2.0, 3.0, 4.0])
    assert found.value == 2.5
    assert found.half == pytest.approx(1.96 * np.std([1, 2, 3, 4], ddof=1) / 2)


def test_student_s_t_is_that_of_scipy() -> None:
    for freedom in (3, 7, 14, 19, 100):
        assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-2)


def test_empty_balls_have_the_variance_of_a_simulation() -> None:
    """Balls on a circle that overlap, and a known number of samples in each."""
    random = np.random.default_rng(6)
    centres, radius, n = random.random(120), 0.006, 150
    shares, variances = [], []
    for _ in range(3000):
        x = random.random(n)
        apart = np.abs(x[:, None] - centres)
        inside = np.minimum(apart, 1 - apart) <= radius
        held, marks = inside.sum(0), (random.random((n, 1)) * inside).sum(0)
        shares.append(share_of_balls(held, marks, n).value)
        variances.append(variance_of_empty(held, marks, n)[0])
    assert np.mean(variances) == pytest.approx(np.var(shares), rel=0.25)


SIMULATED = {
    "wider and shifted": (0.3, 1.2),
    "narrower and far": (1.0, 0.7),
}


@pytest.mark.parametrize(("shift", "scale"), SIMULATED.values(), ids=SIMULATED)
def test_95_percent_of_frechet_intervals_hold_the_true_distance(shift: float, scale: float) -> None:
    """Samples of N(shift, scale^2 I) against fixed real ones: the truth has a closed form."""
    d, n, times = 6, 200, 600
    random = np.random.default_rng(3)
    y = Rows.of(random.normal(size=(300, d)))
    real, _ = distances.moments(y)
    root = distances.square_root(real.covariance)
    truth = ((real.mean - shift) ** 2).sum() + d * scale**2 + np.trace(real.covariance)
    truth -= 2 * scale * np.trace(root)
    groups, held = groups_of(n), 0
    for _ in range(times):
        x = Rows.of(random.normal(size=(n, d)) * scale + shift)
        found = distances.frechet_distance(x, y, groups).extrapolated(n)
        held += found.low <= truth <= found.high
    assert 0.93 <= held / times <= 0.97


@pytest.mark.slow
def test_95_percent_of_the_other_intervals_hold_the_expected_value() -> None:
    """The expected value is that of many draws of as many samples.

    `benchmarks/intervals.py` does it with more distributions and sizes.
    """
    d, n, times = 5, 150, 200
    random = np.random.default_rng(4)
    y = Rows.of(random.normal(size=(200, d)))
    groups = groups_of(n)
    found: dict[str, list[Estimate]] = {}
    for _ in range(times):
        x = Rows.of(random.normal(size=(n, d)) * 1.2 + 0.2)
        drawn = distances.manifolds(x, y)._asdict()
        kernels = [distances.polynomial, distances.minus_distance]
        kid, energy = distances.discrepancies(x, y, groups, kernels)
        drawn |= {"kid": kid.estimate(n), "energy": energy.estimate(n)}
        for name, estimate in drawn.items():
            found.setdefault(name, []).append(estimate)
    for name, estimates in found.items():
        expected = np.mean([e.value for e in estimates])
        held = np.mean([e.low <= expected <= e.high for e in estimates])
        assert held >= 0.93, name
        assert held <= 0.975, name


def test_the_interval_of_a_median_holds_for_any_distribution() -> None:
    random = np.random.default_rng(3)
    for n, ranks in ((6, (0, 5)), (9, (1, 7)), (20, (5, 14))):
        x = random.exponential(size=n)
        found = median(x)
        assert (found.low, found.high) == tuple(np.sort(x)[list(ranks)])
        assert found.value == np.median(x)
        draws = random.exponential(size=(4000, n))
        known = [median(row) for row in draws]
        covered = np.mean([one.low <= np.log(2) <= one.high for one in known])
        assert covered > 0.945
