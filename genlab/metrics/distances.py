"""Distances between two sets of images, by their features; float64 throughout.

x are features of samples and y those of real images, as `Rows`, so that memory does not grow with
their number. Intervals are about the drawing of the samples; the real images are taken as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genlab.metrics.intervals import Estimate, LeaveOneOut, mean, share
from genlab.metrics.rows import Matrix, Rows

Groups = npt.NDArray[np.int64]
#: Number of the nearest neighbour whose distance is the radius around an image.
NEIGHBOUR = 5
#: Nearest neighbours that are kept, so that `NEIGHBOUR` are left without a group.
_KEPT = 4 * NEIGHBOUR


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Estimate 2 E|x - y| - E|x - x'| - E|y - y'| of images (N, C, H, W), |.| the Euclidean norm.

    The distance is zero if and only if both distributions are equal (Székely and Rizzo 2013). The
    estimate is unbiased, so it can be negative if they are equal.
    """
    x, y = x.flatten(1).double(), y.flatten(1).double()

    def within(z: Tensor) -> Tensor:
        return torch.cdist(z, z).sum() / (len(z) * (len(z) - 1))

    return float(2 * torch.cdist(x, y).mean() - within(x) - within(y))


@dataclass(frozen=True)
class Moments:
    """Number, sum and sum of the outer products of rows, less a fixed `shift` that keeps digits."""

    count: float
    total: Matrix
    products: Matrix
    shift: Matrix

    def __sub__(self, other: Moments) -> Moments:
        return Moments(
            self.count - other.count,
            self.total - other.total,
            self.products - other.products,
            self.shift,
        )

    @property
    def mean(self) -> Matrix:
        """The mean, (d,)."""
        return np.asarray(self.total / self.count + self.shift)

    @property
    def covariance(self) -> Matrix:
        """The unbiased covariance, (d, d)."""
        outer = np.outer(self.total, self.total) / self.count
        return np.asarray((self.products - outer) / (self.count - 1))


def moments(x: Rows, groups: Groups | None = None) -> tuple[Moments, list[Moments]]:
    """Sum up the moments of rows, all of them and those of each group, in one pass."""
    number = 0 if groups is None else int(groups.max()) + 1
    d = x.dims
    shift = np.zeros(d)
    counts, totals = np.zeros(number or 1), np.zeros((number or 1, d))
    products = np.zeros((number or 1, d, d))
    for place, block in x.blocks():
        if place.start == 0:
            shift = block.mean(0)
        block = block - shift
        for g in range(number or 1):
            rows = block if groups is None else block[groups[place] == g]
            counts[g] += len(rows)
            totals[g] += rows.sum(0)
            products[g] += rows.T @ rows
    whole = Moments(float(counts.sum()), totals.sum(0), products.sum(0), shift)
    parts = zip(counts, totals, products, strict=True)
    return whole, [Moments(float(c), t, p, shift) for c, t, p in parts] if number else []


def frechet(a: Moments, b: Moments, root_b: Matrix | None = None) -> float:
    """Compute |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), the squared Fréchet distance.

    It is the FID (Heusel et al. 2017) in the features of Inception. The trace of the root is that
    of (R S_a R)^(1/2) with R = S_b^(1/2), which is symmetric.

    Args:
        root_b: R, if it is known.
    """
    root = square_root(b.covariance) if root_b is None else root_b
    covariance = a.covariance
    eigenvalues = np.linalg.eigvalsh(root @ covariance @ root)
    apart = float(((a.mean - b.mean) ** 2).sum())
    roots = float(np.sqrt(eigenvalues.clip(min=0)).sum())
    return apart + float(np.trace(covariance) + (root * root).sum()) - 2 * roots


def square_root(matrix: Matrix) -> Matrix:
    """Compute the root of a symmetric matrix, whose negative eigenvalues are rounding."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(values.clip(min=0))) @ vectors.T)


def frechet_distance(x: Rows, y: Rows, groups: Groups, is_paired: bool = False) -> LeaveOneOut:
    """Compute the Fréchet distance, also without each group of the samples.

    Args:
        is_paired: whether row i of x was made from row i of y, which is left out with it.
    """
    whole_x, parts_x = moments(x, groups)
    whole_y, parts_y = moments(y, groups if is_paired else None)
    root = square_root(whole_y.covariance)
    without = [
        frechet(whole_x - part, whole_y - parts_y[g])
        if is_paired
        else frechet(whole_x - part, whole_y, root)
        for g, part in enumerate(parts_x)
    ]
    return LeaveOneOut(frechet(whole_x, whole_y, root), np.array(without))


#: Function from squared distances or products of rows, and d, to the values of a kernel.
Kernel = Callable[[Matrix, Matrix], Matrix]


def polynomial(a: Matrix, b: Matrix) -> Matrix:
    """Compute the kernel (a·b / d + 1)^3 of KID (Bińkowski et al. 2018)."""
    found = a @ b.T
    found /= a.shape[1]
    found += 1
    return np.asarray(found * found * found)  # `** 3` takes ten times as long


def minus_distance(a: Matrix, b: Matrix) -> Matrix:
    """Compute the kernel -|a - b|, whose discrepancy is the energy distance."""
    found = _squared(a, b)
    np.sqrt(found, out=found)
    return np.negative(found, out=found)


def discrepancy(x: Rows, y: Rows, groups: Groups, kernel: Kernel) -> LeaveOneOut:
    """Estimate the squared maximum mean discrepancy without bias (Gretton et al. 2012, eq. 3).

    E k(x, x') + E k(y, y') - 2 E k(x, y), over pairs of different rows; it can be negative if both
    distributions are equal. Also without each group of the samples.
    """
    number = int(groups.max()) + 1
    counts = np.bincount(groups, minlength=number).astype(np.float64)
    n, m = float(len(x)), float(len(y))
    within, across = np.zeros((number, number)), np.zeros(number)
    itself = np.zeros(number)
    for place, a in x.blocks():
        of_a = _indicator(groups[place], number)
        for other, b in x.blocks():
            if other.start < place.start:
                continue
            k = kernel(a, b)
            if other.start == place.start:
                itself += np.diag(k) @ of_a
                within += of_a.T @ k @ of_a
            else:
                sums = of_a.T @ k @ _indicator(groups[other], number)
                within += sums + sums.T
        for _, b in y.blocks():
            across += kernel(a, b).sum(1) @ of_a
    real = 0.0
    for place, a in y.blocks():
        for other, b in y.blocks():
            if other.start >= place.start:
                k = kernel(a, b)
                real += float(k.sum() - np.diag(k).sum() if other == place else 2 * k.sum())
    real /= m * (m - 1)

    def value(count: float, pairs: float, mixed: float) -> float:
        return pairs / (count * (count - 1)) + real - 2 * mixed / (count * m)

    pairs, mixed = float(within.sum() - itself.sum()), float(across.sum())
    without = [
        value(
            n - counts[g],
            pairs - 2 * within[g].sum() + within[g, g] + itself[g],
            mixed - across[g],
        )
        for g in range(number)
    ]
    return LeaveOneOut(value(n, pairs, mixed), np.array(without))


class Manifolds(NamedTuple):
    """Positions of the samples and the real images in the neighbourhoods of each other.

    The neighbourhood of an image is the ball around it that reaches to its k-th nearest neighbour
    in its own set.

    Attributes:
        precision: share of the samples in a neighbourhood of a real image; recall: share of the
            real images in a neighbourhood of a sample (Kynkäänniemi et al. 2019).
        density: neighbourhoods of real images that a sample lies in, over k; coverage: share of
            the neighbourhoods of real images that hold a sample (Naeem et al. 2020).
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def manifolds(x: Rows, y: Rows, groups: Groups, k: int = NEIGHBOUR) -> Manifolds:
    """Compute precision, recall, density and coverage with k neighbours.

    Raises:
        ValueError: a set has no more than k images.
    """
    if min(len(x), len(y)) <= k:
        raise ValueError(f"k={k}: more than {k} samples and {k} real images are needed")
    number = int(groups.max()) + 1
    real = _nearest(y, k)[0][:, k - 1]
    radii = _radii_without(x, groups, number, k)
    inside = np.zeros(len(x), dtype=np.int64)
    held = np.zeros((len(y), number), dtype=np.bool_)
    reached = np.zeros((len(y), number + 1), dtype=np.bool_)
    for place, a in x.blocks():
        members = [groups[place] == g for g in range(number)]
        for other, b in y.blocks():
            squared = _squared(a, b)
            is_in = squared <= real[None, other]
            inside[place] += is_in.sum(1)
            for g, member in enumerate(members):
                held[other, g] |= is_in[member].any(0)
            for g in range(number + 1):
                reached[other, g] |= (squared <= radii[place, g, None]).any(0)
    times = held.sum(1)
    covered = LeaveOneOut(
        float((times > 0).mean()),
        np.array([((times - held[:, g]) > 0).mean() for g in range(number)]),
    )
    recalled = LeaveOneOut(float(reached[:, number].mean()), reached[:, :number].mean(0))
    return Manifolds(
        precision=share(inside > 0),
        recall=recalled.estimate(len(x), (0.0, 1.0)),
        density=mean(inside / k),
        coverage=covered.estimate(len(x), (0.0, 1.0)),
    )


def nearest_distance(x: Rows, y: Rows) -> Matrix:
    """Compute the distance of each row of x to the nearest row of y, (N,)."""
    found = np.full(len(x), np.inf)
    for place, a in x.blocks():
        for _, b in y.blocks():
            np.minimum(found[place], _squared(a, b).min(1), out=found[place])
    return np.sqrt(found)


def histogram_distance(
    x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], groups: Groups
) -> LeaveOneOut:
    """Compute half the sum of |p_x - p_y| over the shares of the classes: total variation."""
    number = int(max(x.max(), y.max())) + 1
    real = np.bincount(y, minlength=number) / len(y)
    counts = np.zeros((int(groups.max()) + 1, number))
    np.add.at(counts, (groups, x), 1)

    def value(count: Matrix) -> float:
        return float(np.abs(count / count.sum() - real).sum() / 2)

    whole = counts.sum(0)
    return LeaveOneOut(value(whole), np.array([value(whole - part) for part in counts]))


def _squared(a: Matrix, b: Matrix) -> Matrix:
    """Compute |a_i - b_j|^2, never below 0, and 0 for equal rows but for rounding."""
    found = a @ b.T
    found *= -2
    found += (a * a).sum(1)[:, None]
    found += (b * b).sum(1)[None]
    return np.asarray(np.maximum(found, 0, out=found))


def _indicator(groups: Groups, number: int) -> Matrix:
    return np.asarray(groups[:, None] == np.arange(number), dtype=np.float64)


def _nearest(x: Rows, count: int) -> tuple[Matrix, npt.NDArray[np.int64]]:
    """Find the nearest other rows of each row: squared distances that rise, and numbers, (N, c)."""
    count = min(count, len(x) - 1)
    distances, numbers = np.empty((len(x), count)), np.empty((len(x), count), dtype=np.int64)
    for place, a in x.blocks():
        best, best_of = np.full((len(a), 0), np.inf), np.zeros((len(a), 0), dtype=np.int64)
        for other, b in x.blocks():
            squared = _squared(a, b)
            if other.start == place.start:
                np.fill_diagonal(squared, np.inf)
            kept = min(count + 1, squared.shape[1]) - 1
            chosen = np.argpartition(squared, kept, axis=1)[:, : kept + 1]
            best = np.concatenate([best, np.take_along_axis(squared, chosen, 1)], 1)
            best_of = np.concatenate([best_of, chosen + other.start], 1)
            order = np.argsort(best, axis=1, kind="stable")[:, :count]
            best = np.take_along_axis(best, order, 1)
            best_of = np.take_along_axis(best_of, order, 1)
        distances[place], numbers[place] = best[:, :count], best_of[:, :count]
    return distances, numbers


def _radii_without(x: Rows, groups: Groups, number: int, k: int) -> Matrix:
    """Compute squared radii (N, G + 1) without each group, and with all; -1 for left out rows."""
    distances, numbers = _nearest(x, _KEPT if k == NEIGHBOUR else 4 * k)
    radii = np.empty((len(x), number + 1))
    radii[:, number] = distances[:, k - 1]
    of_neighbours = groups[numbers]
    for g in range(number):
        stays = of_neighbours != g
        # the place of the k-th neighbour that stays; the last that is known if too few do
        place = np.argmax(np.cumsum(stays, 1) == k, axis=1)
        place[stays.sum(1) < k] = distances.shape[1] - 1
        radii[:, g] = np.take_along_axis(distances, place[:, None], 1)[:, 0]
        radii[groups == g, g] = -1.0
    return radii
