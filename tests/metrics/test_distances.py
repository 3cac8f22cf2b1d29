"""Distances against closed forms, other implementations, and sets whose answer is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import prdc
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from genlab.metrics import distances, rows
from genlab.metrics.distances import (
    discrepancies,
    energy_distance,
    frechet,
    frechet_distance,
    histogram_distance,
    manifolds,
    minus_distance,
    moments,
    nearest_distance,
    polynomial,
)
from genlab.metrics.intervals import LeaveOneOut, groups_of, thirds_of
from genlab.metrics.rows import Rows

Matrix = npt.NDArray[np.float64]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, the last of them short."""
    monkeypatch.setattr(rows, "BLOCK", 70)
    monkeypatch.setattr(distances, "_TILE", 30)


def normal(n: int, d: int, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> Matrix:
    return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


def exact(mean: Matrix, covariance: Matrix) -> distances.Moments:
    """The moments of a distribution that has them exactly."""
    n = 1e9
    zero = np.zeros(len(mean))
    return distances.Moments(n, zero, covariance * (n - 1), mean)


def test_frechet_distance_of_known_gaussians() -> None:
    """Commuting covariances: |m - m'|^2 + sum (sqrt(l) - sqrt(l'))^2, in any basis."""
    d = 12
    random = np.random.default_rng(0)
    basis, _ = np.linalg.qr(random.normal(size=(d, d)))
    first, second = random.uniform(0.1, 3, size=(2, d))
    first[-1] = 0.0  # a direction in which one of them does not vary
    m = random.normal(size=(2, d))
    a, b = exact(m[0], (basis * first) @ basis.T), exact(m[1], (basis * second) @ basis.T)
    expected = ((m[0] - m[1]) ** 2).sum() + ((first**0.5 - second**0.5) ** 2).sum()
    assert frechet(a, b) == pytest.approx(expected, abs=1e-6)
    assert frechet(b, a) == pytest.approx(expected, abs=1e-6)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)


class _Flat(nn.Module):
    num_features = 10

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_frechet_distance_is_that_of_torchmetrics() -> None:
    x, y = normal(300, 10, 1, 1.3), normal(250, 10, 2, shift=0.4)
    other = FrechetInceptionDistance(
        feature=_Flat(), normalize=True, input_img_size=(1, 1, 10)
    ).set_dtype(torch.float64)
    for values, is_real in ((x, False), (y, True)):
        other.update(torch.from_numpy(values).view(-1, 1, 1, 10), real=is_real)
    mine = frechet_distance(Rows.of(x), Rows.of(y), groups_of(300)).whole
    assert mine == pytest.approx(float(other.compute()), abs=1e-6)


def test_moments_keep_their_digits_far_from_the_origin() -> None:
    x = normal(200, 5, shift=1e6)
    whole, _ = moments(Rows.of(x))
    np.testing.assert_allclose(whole.covariance, np.cov(x.T), rtol=1e-8)
    np.testing.assert_allclose(whole.mean, x.mean(0), rtol=1e-12)


@pytest.mark.parametrize("kernel", [polynomial, minus_distance])
def test_discrepancy_is_that_of_the_whole_matrices(
    kernel: distances.Kernel,
) -> None:
    x, y = normal(160, 6, 1, 1.2), normal(150, 6, 2)
    mine = discrepancies(Rows.of(x), Rows.of(y), groups_of(160), [kernel])[0].whole
    if kernel is polynomial:
        xx, yy, xy = (torch.from_numpy((a @ b.T / 6 + 1) ** 3) for a, b in ((x, x), (y, y), (x, y)))
        n, m = len(x), len(y)
        whole = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
        expected = float(whole - 2 * xy.mean())
        same = poly_mmd(torch.from_numpy(x[:150]), torch.from_numpy(y))
        (equal,) = discrepancies(Rows.of(x[:150]), Rows.of(y), groups_of(150), [kernel])
        assert equal.whole == pytest.approx(
            float(same), abs=1e-9
        )  # torchmetrics: of equal sizes only
    else:
        expected = energy_distance(torch.from_numpy(x), torch.from_numpy(y))
    assert mine == pytest.approx(expected, abs=1e-6)


def test_kid_of_equal_distributions_is_zero_on_average() -> None:
    """The mean over 200 draws is within three standard errors of 0."""
    random = np.random.default_rng(5)
    groups = groups_of(80)
    found = [
        one.whole
        for _ in range(200)
        for one in discrepancies(
            *(Rows.of(random.normal(size=(80, 6))) for _ in "xy"), groups, [polynomial]
        )
    ]
    assert abs(np.mean(found)) < 3 * np.std(found) / 200**0.5


def test_manifolds_are_those_of_prdc() -> None:
    x, y = normal(310, 8, 1, 1.1, 0.2), normal(260, 8, 2)
    expected = prdc.compute_prdc(real_features=y, fake_features=x, nearest_k=5)
    found = manifolds(Rows.of(x), Rows.of(y))
    for name, estimate in found._asdict().items():
        assert estimate.value == pytest.approx(expected[name], abs=1e-4), name


@pytest.mark.parametrize("left_out", [0, 7])
def test_leaving_out_a_group_is_measuring_without_it(left_out: int) -> None:
    """Every statistic of a group left out is that of the other samples, to the last digits."""
    x, y = normal(300, 6, 1, 1.1), normal(200, 6, 2)
    groups = groups_of(300)
    stays = groups != left_out
    labels = [(z[:, 0] > 0).astype(np.int64) + (z[:, 1] > 1) for z in (x, y)]

    def whole(of: npt.NDArray[np.bool_]) -> tuple[list[LeaveOneOut], Matrix]:
        some = groups_of(int(of.sum())) if not of.all() else groups
        part = Rows.of(x[of])
        found = [
            frechet_distance(part, Rows.of(y), some),
            *discrepancies(part, Rows.of(y), some, [polynomial, minus_distance]),
            histogram_distance(labels[0][of], labels[1], some),
        ]
        return found, np.array([one.whole for one in found])

    all_of_them, _ = whole(np.ones(300, dtype=bool))
    without = np.array([one.without[left_out] for one in all_of_them])
    np.testing.assert_allclose(without, whole(stays)[1], rtol=1e-9, atol=1e-12)


def test_leaving_out_a_third_is_recalling_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(300, 6, 1, 1.1), normal(200, 6, 2)
    kept: list[Matrix] = []
    estimate = distances.share_of_neighbours
    monkeypatch.setattr(
        distances,
        "share_of_neighbours",
        lambda without, *others: (kept.append(without), estimate(without, *others))[1],
    )
    manifolds(Rows.of(x), Rows.of(y))
    (without,) = kept
    thirds = thirds_of(300)
    assert without.shape == (thirds.shape[1], 3)
    for division in (0, 5):
        for third in range(3):
            others = Rows.of(x[thirds[:, division] != third])
            assert without[division, third] == manifolds(others, Rows.of(y)).recall.value


def test_a_paired_distance_leaves_out_both_images_of_a_pair() -> None:
    y = normal(200, 5)
    x = 0.9 * y + normal(200, 5, 1, 0.1)
    groups = groups_of(200)
    found = frechet_distance(Rows.of(x), Rows.of(y), groups, is_paired=True)
    stays = groups != 3
    few = frechet_distance(Rows.of(x[stays]), Rows.of(y[stays]), groups_of(190))
    assert found.without[3] == pytest.approx(few.whole, rel=1e-9)


def test_nearest_distance_is_that_of_all_pairs() -> None:
    x, y = normal(90, 4, 1), normal(150, 4, 2)
    np.testing.assert_allclose(nearest_distance(Rows.of(x), Rows.of(y)), cdist(x, y).min(1))
    assert nearest_distance(Rows.of(y), Rows.of(y)).max() < 1e-6  # a memory of the images


def test_histogram_distance_is_the_total_variation() -> None:
    x, y = np.array([0] * 30 + [1] * 10), np.array([0] * 10 + [1] * 10 + [2] * 20)
    expected = (abs(0.75 - 0.25) + abs(0.25 - 0.25) + abs(0 - 0.5)) / 2
    assert histogram_distance(x, y, groups_of(40)).whole == pytest.approx(expected)


# --- what each number tells of samples whose fault is known

MODES, D, N = 10, 8, 600


def clusters(n: int, seed: int, modes: int = MODES, width: float = 0.3) -> Matrix:
    """Images of several classes, far apart in the space of the features."""
    centres = normal(MODES, D, 99, 3.0)
    random = np.random.default_rng(seed)
    return centres[random.integers(modes, size=n)] + width * random.normal(size=(n, D))


def judged(x: Matrix) -> distances.Manifolds:
    return manifolds(Rows.of(x), Rows.of(clusters(N, 1)))


def test_the_same_distribution_has_all_of_both() -> None:
    found = judged(clusters(N, 2))
    assert min(found.precision.value, found.recall.value, found.coverage.value) > 0.9


def test_a_collapsed_generator_is_precise_and_recalls_nothing() -> None:
    one = clusters(N, 1)[:1]
    found = judged(one + normal(N, D, 3, 1e-3))
    assert found.precision.value > 0.99
    assert found.recall.value < 0.02
    assert found.coverage.value < 0.02


def test_blur_loses_quality_only() -> None:
    """Samples around every centre, but too far from it."""
    found, good = judged(clusters(N, 2, width=0.8)), judged(clusters(N, 2))
    assert found.precision.value < 0.3
    assert found.density.value < 0.3
    assert found.recall.value > good.recall.value - 0.02


def test_half_the_classes_lose_coverage_only() -> None:
    found, good = judged(clusters(N, 2, modes=5)), judged(clusters(N, 2))
    assert found.precision.value > good.precision.value - 0.02
    assert found.recall.value == pytest.approx(0.5, abs=0.06)
    assert found.coverage.value == pytest.approx(0.5, abs=0.06)


def test_the_same_model_twice_ties() -> None:
    """Two sets of samples differ by no more than their intervals, at least 19 times of 20."""
    y = Rows.of(clusters(400, 1))
    ties = 0
    for i in range(20):
        a, b = (
            frechet_distance(Rows.of(clusters(400, s)), y, groups_of(400)).extrapolated(400)
            for s in (100 + i, 200 + i)
        )
        ties += abs(a.value - b.value) <= (a.half**2 + b.half**2) ** 0.5
    assert ties >= 19


def test_few_and_many_samples_agree_after_extrapolation() -> None:
    """n = 1,000 and n = 10,000: the plain distances differ by far more than the intervals."""
    d = 32
    y = Rows.of(normal(5000, d, 1))
    found = {
        n: frechet_distance(Rows.of(normal(n, d, 2, 1.2)), y, groups_of(n)) for n in (1000, 10_000)
    }
    few, many = (found[n].extrapolated(n) for n in found)
    assert few.low <= many.value <= few.high
    assert abs(few.value - many.value) < (few.half**2 + many.half**2) ** 0.5
    assert found[1000].whole - found[10_000].whole > few.half


def test_too_few_images_for_a_neighbourhood_are_refused() -> None:
    with pytest.raises(ValueError, match="k=5: more than 5 samples"):
        manifolds(Rows.of(normal(5, 2)), Rows.of(normal(50, 2)))
