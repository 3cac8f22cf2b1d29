"""Distances between two sets of images, by their features; float64 throughout.

x are features of samples and y those of real images, as `Rows`, so that memory does not grow with
their number. Intervals are about the drawing of the samples; the real images are taken as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genlab.metrics.intervals import (
    Estimate,
    LeaveOneOut,
    mean,
    share,
    share_of_balls,
    share_of_neighbours,
    thirds_of,
)
from genlab.metrics.rows import Matrix, Rows
from genlab.seeding import numpy_generator

Groups = npt.NDArray[np.int64]
#: Number of the nearest neighbour whose distance is the radius around an image.
NEIGHBOUR = 5
#: Times k, the nearest neighbours that are kept, so that k are left without a third of the samples.
_KEPT = 4
#: Rows that are compared with a block at once: few, so that their values stay in the processor.
_TILE = 128


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


#: Function from products a·b, squares |a|^2 and |b|^2, and d, to the values of a kernel.
Kernel = Callable[[Matrix, Matrix, Matrix, int], Matrix]


def polynomial(products: Matrix, a: Matrix, b: Matrix, d: int) -> Matrix:
    """Compute the kernel (a·b / d + 1)^3 of KID (Bińkowski et al. 2018)."""
    base = products / d
    base += 1
    found = base * base  # `** 3` takes ten times as long
    found *= base
    return np.asarray(found)


def minus_distance(products: Matrix, a: Matrix, b: Matrix, d: int) -> Matrix:
    """Compute the kernel -|a - b|, whose discrepancy is the energy distance."""
    found = _completed(products * -2, a, b)
    np.sqrt(found, out=found)
    return np.negative(found, out=found)


def discrepancies(x: Rows, y: Rows, groups: Groups, kernels: Sequence[Kernel]) -> list[LeaveOneOut]:
    """Estimate squared maximum mean discrepancies without bias (Gretton et al. 2012, eq. 3).

    E k(x, x') + E k(y, y') - 2 E k(x, y), over pairs of different rows; it can be negative if both
    distributions are equal. Also without each group of the samples. One for each kernel.
    """
    number, d = int(groups.max()) + 1, x.dims
    counts = np.bincount(groups, minlength=number).astype(np.float64)
    n, m = float(len(x)), float(len(y))
    within = np.zeros((len(kernels), number, number))
    across, itself = np.zeros((2, len(kernels), number))
    real = np.zeros(len(kernels))
    for place, a, other, b in _pairs(x, x, is_half=True):
        of_a, of_b = (_indicator(groups[rows], number) for rows in (place, other))
        products, squares = a @ b.T, (_squares(a), _squares(b))
        for i, kernel in enumerate(kernels):
            k = kernel(products, *squares, d)
            sums = of_a.T @ k @ of_b
            if other.start <= place.start:
                within[i] += sums
                itself[i] += k[np.arange(len(a)), _columns(place, other)] @ of_a
            else:
                within[i] += sums + sums.T
    for place, a, _, b in _pairs(x, y):
        products, squares = a @ b.T, (_squares(a), _squares(b))
        for i, kernel in enumerate(kernels):
            across[i] += kernel(products, *squares, d).sum(1) @ _indicator(groups[place], number)
    for place, a, other, b in _pairs(y, y, is_half=True):
        products, squares = a @ b.T, (_squares(a), _squares(b))
        for i, kernel in enumerate(kernels):
            k = kernel(products, *squares, d)
            if other.start <= place.start:
                real[i] += k.sum() - k[np.arange(len(a)), _columns(place, other)].sum()
            else:
                real[i] += 2 * k.sum()

    def value(i: int, count: float, pairs: float, mixed: float) -> float:
        return pairs / (count * (count - 1)) + real[i] / (m * (m - 1)) - 2 * mixed / (count * m)

    found = []
    for i in range(len(kernels)):
        pairs, mixed = float(within[i].sum() - itself[i].sum()), float(across[i].sum())
        without = [
            value(
                i,
                n - counts[g],
                pairs - 2 * within[i, g].sum() + within[i, g, g] + itself[i, g],
                mixed - across[i, g],
            )
            for g in range(number)
        ]
        found.append(LeaveOneOut(value(i, n, pairs, mixed), np.array(without)))
    return found


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


def manifolds(x: Rows, y: Rows, k: int = NEIGHBOUR) -> Manifolds:
    """Compute precision, recall, density and coverage with k neighbours.

    Raises:
        ValueError: a set has no more than k images.
    """
    if min(len(x), len(y)) <= k:
        raise ValueError(f"k={k}: more than {k} samples and {k} real images are needed")
    radii_of_real = [_neighbours(place, block, y, k)[0][:, -1] for place, block in y.blocks()]
    real, thirds = np.concatenate(radii_of_real), thirds_of(len(x))
    marks = numpy_generator(0, "marks").random(len(x))
    inside, (held, near) = np.zeros(len(x), dtype=np.int64), np.zeros((2, len(y)), dtype=np.int64)
    marks_held, marks_near = np.zeros((2, len(y)))
    reached = np.zeros((len(y), 3 * thirds.shape[1] + 1), dtype=np.bool_)
    for place, block in x.blocks():
        radii = _radii_without(place, block, x, thirds, k)
        for other, b in y.blocks():
            found = reached[other]
            for part, a in _tiles(block):
                squared = _squared(a, b)
                rows, columns = _where(squared <= real[other])
                inside[place][part] += np.bincount(rows, minlength=len(a))
                held[other] += np.bincount(columns, minlength=len(b))
                marks_held[other] += np.bincount(columns, marks[place][part][rows], len(b))
                mine, open_ = radii[part], ~found.all(1) | (near[other] < 2)
                rows, columns = _where((squared <= mine.max(1)[:, None]) & open_)
                values = squared[rows, columns]
                for kind in range(found.shape[1]):
                    found[columns[values <= mine[rows, kind]], kind] = True
                is_near = values <= mine[rows, -1]
                rows, columns = rows[is_near], columns[is_near]
                near[other] += np.bincount(columns, minlength=len(b))
                marks_near[other] += np.bincount(columns, marks[place][part][rows], len(b))
    without = reached[:, :-1].mean(0).reshape(-1, 3)
    return Manifolds(
        precision=share(inside > 0),
        recall=share_of_neighbours(without, near, marks_near, len(x)),
        density=mean(inside / k),
        coverage=share_of_balls(held, marks_held, len(x)),
    )


def nearest_distance(x: Rows, y: Rows) -> Matrix:
    """Compute the distance of each row of x to the nearest row of y, (N,)."""
    found = np.full(len(x), np.inf)
    for place, a, _, b in _pairs(x, y):
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


def _pairs(
    x: Rows, y: Rows, is_half: bool = False
) -> Iterator[tuple[slice, Matrix, slice, Matrix]]:
    """Yield a few rows of x with a block of y, and the places of both, until all pairs were there.

    Args:
        is_half: y is x, and of two blocks each pair comes once, in the order of the blocks.
    """
    for place, block in x.blocks():
        for other, b in y.blocks():
            if not is_half or other.start >= place.start:
                for part, a in _tiles(block):
                    yield slice(place.start + part.start, place.start + part.stop), a, other, b


def _tiles(block: Matrix) -> Iterator[tuple[slice, Matrix]]:
    """Yield a few rows of a block after others, and their place in it."""
    for start in range(0, len(block), _TILE):
        stop = min(start + _TILE, len(block))
        yield slice(start, stop), block[start:stop]


def _columns(place: slice, other: slice) -> npt.NDArray[np.int64]:
    """Return the columns of the block at `other` that are the rows at `place`."""
    return np.arange(place.start - other.start, place.stop - other.start)


def _squares(rows: Matrix) -> Matrix:
    return np.asarray(np.einsum("ij,ij->i", rows, rows))


def _squared(a: Matrix, b: Matrix) -> Matrix:
    """Compute |a_i - b_j|^2, never below 0, and 0 for equal rows but for rounding."""
    return _completed((-2 * a) @ b.T, _squares(a), _squares(b))


def _completed(found: Matrix, a: Matrix, b: Matrix) -> Matrix:
    """Add squares to -2 a·b, in place: |a - b|^2."""
    found += a[:, None]
    found += b
    return np.asarray(np.maximum(found, 0, out=found))


def _where(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return rows and columns of what is true; `np.nonzero` takes three times as long."""
    rows, columns = np.divmod(np.flatnonzero(mask), mask.shape[1])
    return rows, columns


def _indicator(groups: Groups, number: int) -> Matrix:
    return np.asarray(groups[:, None] == np.arange(number), dtype=np.float64)


def _neighbours(
    place: slice, block: Matrix, x: Rows, count: int
) -> tuple[Matrix, npt.NDArray[np.int64]]:
    """Find the nearest other rows of x for the rows of one of its blocks.

    Returns:
        squared distances that rise, and the numbers of the rows, both (n, c).
    """
    count = min(count, len(x) - 1)
    distances = np.full((len(block), count), np.inf)
    numbers = np.zeros((len(block), count), dtype=np.int64)
    for other, b in x.blocks():
        for part, a in _tiles(block):
            squared = _squared(a, b)
            if other.start == place.start:
                squared[np.arange(len(a)), np.arange(part.start, part.stop)] = np.inf
            limit = distances[part, -1]
            if np.isinf(limit).any():
                kept = min(count, len(b)) - 1
                limit = np.minimum(limit, np.partition(squared, kept, axis=1)[:, kept])
            rows, columns = _where(squared <= limit[:, None])
            times = np.bincount(rows, minlength=len(a))
            order = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times)
            width = count + int(times.max())
            best, best_of = np.full((len(a), width), np.inf), np.zeros((len(a), width), np.int64)
            best[:, :count], best_of[:, :count] = distances[part], numbers[part]
            best[rows, count + order] = squared[rows, columns]
            best_of[rows, count + order] = other.start + columns
            chosen = np.argsort(best, axis=1, kind="stable")[:, :count]
            distances[part] = np.take_along_axis(best, chosen, 1)
            numbers[part] = np.take_along_axis(best_of, chosen, 1)
    return distances, numbers


def _radii_without(
    place: slice, block: Matrix, x: Rows, thirds: npt.NDArray[np.int8], k: int
) -> Matrix:
    """Compute the squared radii of the rows of a block of x, (n, 3 D + 1).

    Without each third, which is -1 for the rows that are left out, and last with all.
    """
    distances, numbers = _neighbours(place, block, x, _KEPT * k)
    radii = np.empty((len(block), 3 * thirds.shape[1] + 1))
    radii[:, -1] = distances[:, k - 1]
    for division in range(thirds.shape[1]):
        of_neighbours = thirds[numbers, division]
        for third in range(3):
            stays = of_neighbours != third
            # the k-th neighbour that stays; the last that is known if too few do
            kth = np.argmax(np.cumsum(stays, 1) == k, axis=1)
            kth[stays.sum(1) < k] = distances.shape[1] - 1
            column = np.take_along_axis(distances, kth[:, None], 1)[:, 0]
            column[thirds[place, division] == third] = -1.0
            radii[:, 3 * division + third] = column
    return radii
