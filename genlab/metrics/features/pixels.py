"""Features that need no labels: the principal components of the pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import whole
from genlab.metrics.features.base import BATCH, TrainingImages
from genlab.protocols import ImageSpec
from genlab.seeding import numpy_generator
from genlab.tensors import to_unit_interval


class PixelComponents(nn.Module):
    """The first principal components of the pixels, fitted to training images.

    Args:
        dims: d, number of components; at most the pixels of an image.
        images: number of training images to which they are fitted.
        side: larger images are averaged to this height and width first.
    """

    name = "pixels"
    mean: Tensor
    components: Tensor

    def __init__(self, dims: int = 64, images: int = 10_000, side: int = 32) -> None:
        super().__init__()
        self.dims, self.images = whole("dims", dims, 1), whole("images", images, 2)
        self.side = whole("side", side, 1)
        self.recipe = f"dims={dims} images={images} side={side}"

    def prepare(self, spec: ImageSpec) -> None:
        """Make room for the components of images like `spec`.

        Raises:
            ValueError: there are fewer pixels than components.
        """
        self.size = (min(spec.height, self.side), min(spec.width, self.side))
        pixels = spec.channels * self.size[0] * self.size[1]
        if self.dims > pixels:
            raise ValueError(f"dims={self.dims}: images of {pixels} pixels have at most {pixels}")
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("components", torch.zeros(pixels, self.dims))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [0, 1] to components (N, d)."""
        return (self._flat(x) - self.mean) @ self.components

    def _flat(self, x: Tensor) -> Tensor:
        if x.shape[2:] != self.size:
            x = F.adaptive_avg_pool2d(x, self.size)
        return x.flatten(1)

    def fit(self, images: TrainingImages, advance: Callable[[int], None]) -> None:
        """Compute the eigenvectors of the covariance of the pixels, in float64."""
        pixels = images.pixels("train")
        chosen = numpy_generator(0, "components").permutation(len(pixels))[: self.images]
        parts = [
            self._flat(to_unit_interval(torch.from_numpy(pixels[np.sort(rows)]))).double()
            for rows in np.array_split(chosen, -(-len(chosen) // BATCH))
        ]
        x = torch.cat(parts)
        mean = x.mean(0)
        _, vectors = torch.linalg.eigh((x - mean).T @ (x - mean))
        vectors = vectors[:, -self.dims :].flip(1)
        # the sign of an eigenvector is arbitrary: its largest part is positive here
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        self.mean.copy_(mean)
        self.components.copy_(vectors * largest.sign())
        advance(100)
