"""Metrics of a GAN, which has no likelihood: the nearness of its samples, and their diversity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

#: Images are averaged to at most so many pixels a side before their covariance is taken.
_SIDE = 8
#: Share of the variance of the data in the principal directions that are counted.
_VARIANCE = 0.95


def energy_score(samples: Tensor, x: Tensor) -> Tensor:
    """Compute E|X - x| - E|X - X'| / 2 of each image (B,), |.| the Euclidean norm.

    A strictly proper scoring rule (Gneiting and Raftery 2007, eq. 22): its mean over images is
    lowest if the samples have the distribution of the images, and is then half of the mean distance
    of two images. It exceeds that by half of the energy distance.

    Args:
        samples: m >= 2 for each image, (B, m, C, H, W).
        x: images (B, C, H, W).
    """
    samples = samples.flatten(2).double()
    m = samples.shape[1]
    to_image = (samples - x.flatten(1)[:, None].double()).norm(dim=2).mean(1)
    between = torch.cdist(samples, samples).sum((1, 2)) / (m * (m - 1))
    return to_image - between / 2


class Diversity(Metric):
    """The share of the principal directions of the data in which the samples vary as much.

    Given the labels of the images, each sample being of the class of its image, the variation
    within the classes counts alone: that of a generator that ignores its noise is then 0, however
    many classes it knows.

    With S the covariance of the samples in coordinates in which that of the data is the identity,
    the mean of min(1, eigenvalue of S). A generator that draws k different images reaches at most
    (k - 1) / d for d directions, and one that draws what the data are reaches about 1. The
    coordinates are pixels, averaged over squares, along the directions that hold 95 % of the
    variance.

    Args:
        within_classes: whether to use the labels.
    """

    full_state_update = False
    samples: list[Tensor]
    images: list[Tensor]
    groups: list[Tensor]

    def __init__(self, within_classes: bool = False) -> None:
        super().__init__()
        self.within_classes = within_classes
        for name in ("samples", "images", "groups"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, sample: Tensor, target: Tensor, labels: Tensor | None = None) -> None:
        """Add samples and images, both (B, C, H, W), and the classes (B,) of both."""
        if labels is None or not self.within_classes:
            labels = torch.zeros(len(target), dtype=torch.long, device=target.device)
        self.groups.append(labels)
        height, width = (min(side, _SIDE) for side in target.shape[2:])
        for rows, x in ((self.samples, sample), (self.images, target)):
            rows.append(F.adaptive_avg_pool2d(x.float(), (height, width)).flatten(1))

    def compute(self) -> dict[str, Tensor]:
        """Compute `diversity`; no value where the images are all alike."""
        groups = dim_zero_cat(self.groups)
        of_samples, of_images = (_covariance(x, groups) for x in (self.samples, self.images))
        values, vectors = torch.linalg.eigh(of_images)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        if values.sum() <= 0:
            return {}
        shares = values.cumsum(0) / values.sum()
        d = int((shares < _VARIANCE).sum()) + 1
        whitening = vectors[:, :d] / values[:d].sqrt()
        eigenvalues = torch.linalg.eigvalsh(whitening.T @ of_samples @ whitening)
        return {"diversity": eigenvalues.clamp(0, 1).mean()}


def _covariance(rows: list[Tensor], groups: Tensor) -> Tensor:
    """Compute the covariance (F, F) of rows (N, F) around the mean of their group.

    The order of the rows does not change a bit of it.
    """
    x = dim_zero_cat(rows).double()
    order = x.sum(1).argsort(stable=True)
    x, groups = x[order], groups[order]
    for group in groups.unique():
        x[groups == group] -= x[groups == group].mean(0)
    return x.T @ x / len(x)
