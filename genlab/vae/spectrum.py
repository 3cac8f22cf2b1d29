"""Means, variances and covariance eigenvalues of a data set, computed block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genlab.distributions import MIN_LOG_SCALE, DiscretizedLogistic
from genlab.errors import DataError
from genlab.seeding import numpy_generator

# Elements of a block of images in float32 (16 MB), and the limit of multiply-adds for a covariance
# (about two seconds of one CPU thread).
_BLOCK, _WORK = 4_000_000, 1e11
# A pixel with p(1 - p) below this is treated as constant.
_CONSTANT = 1e-4


class Spectrum(NamedTuple):
    """The second-order statistics of a data set of images with D dimensions.

    Attributes:
        mean: (D,), float64.
        eigenvalues: (D,), of the (whitened) covariance, largest first, float64.
        images: number of images that the covariance was computed from.
    """

    mean: Tensor
    eigenvalues: Tensor
    images: int


def binary_entropy(p: Tensor) -> Tensor:
    """Compute -p ln p - (1 - p) ln(1 - p) per element, in nats; 0 at p = 0 and p = 1."""
    return -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p))


class PixelStatistics:
    """The statistics of a data set that the forecasts need, each computed once, at its first use.

    Args:
        pixels: (N, C, H, W); uint8 is divided by 255, real numbers are used as they are.
        levels: as in `ImageSpec`. With 2, a pixel is the probability of a 1, and the bit is drawn.

    Raises:
        DataError: if there are no images.
    """

    def __init__(self, pixels: npt.NDArray[Any], levels: int | None = 256) -> None:
        if len(pixels) == 0:
            raise DataError("the forecast needs at least one image, and the data set has none")
        self.pixels, self.levels = pixels.reshape(len(pixels), -1), levels

    @property
    def dims(self) -> int:
        return int(self.pixels.shape[1])

    def blocks(self, stride: int = 1) -> Iterator[Tensor]:
        """Yield every stride-th image as float32 (b, D), block by block."""
        pixels = self.pixels[::stride]
        size = max(1, _BLOCK // self.dims)
        for start in range(0, len(pixels), size):
            block = np.array(pixels[start : start + size], dtype=np.float32)
            if self.pixels.dtype == np.uint8:
                block /= 255
            if self.levels == 2:
                draw = numpy_generator(0, "forecast", start).random(block.shape, np.float32)
                block = (draw < block).astype(np.float32)
            yield torch.from_numpy(block)

    @cached_property
    def mean(self) -> Tensor:
        """Mean of each pixel, (D,), float64."""
        total = torch.zeros(self.dims, dtype=torch.float64)
        for block in self.blocks():
            total += block.sum(0, dtype=torch.float64)
        return total / len(self.pixels)

    @cached_property
    def variance(self) -> Tensor:
        """Variance of each pixel, (D,), float64."""
        mean, total = self.mean, torch.zeros(self.dims, dtype=torch.float64)
        for block in self.blocks():
            total += (block - mean.float()).square().sum(0, dtype=torch.float64)
        return total / len(self.pixels)

    @cached_property
    def bernoulli_entropy(self) -> float:
        """Mean over images of the summed entropies of Bernoulli(pixel), nats."""
        total = 0.0
        for block in self.blocks():
            total += float(binary_entropy(block).sum(dtype=torch.float64))
        return total / len(self.pixels)

    @cached_property
    def logistic_nats(self) -> float:
        """Mean -log p per image of discretized logistics with each pixel's mean and std, nats."""
        log_scale = (self.variance.sqrt() * math.sqrt(3) / math.pi).log().float()
        smallest = MIN_LOG_SCALE - math.log(2.0)
        pixels = DiscretizedLogistic(self.mean.float(), log_scale.clamp(min=smallest))
        total = 0.0
        for block in self.blocks():
            total -= float(pixels.log_prob(block).sum(dtype=torch.float64))
        return total / len(self.pixels)

    @cached_property
    def spectrum(self) -> Spectrum:
        """Mean and covariance eigenvalues of the pixels."""
        return self._spectrum(torch.ones(self.dims, dtype=torch.float64))

    @cached_property
    def bernoulli_spectrum(self) -> Spectrum:
        """The spectrum of (x - p) / sqrt(p (1 - p)), p the mean; constant pixels are left out."""
        variance = self.mean * (1 - self.mean)
        kept = variance > _CONSTANT
        return self._spectrum(torch.where(kept, variance.clamp(min=_CONSTANT).rsqrt(), 0.0))

    def _spectrum(self, scale: Tensor) -> Spectrum:
        dims = self.dims
        wanted = max(int(_WORK / dims**2), 2048)
        stride = -(-len(self.pixels) // wanted)
        n = len(self.pixels[::stride])
        mean, scale = self.mean.float(), scale.float()
        if n >= dims:
            moment = torch.zeros(dims, dims)
            for block in self.blocks(stride):
                centred = (block - mean) * scale
                moment.addmm_(centred.T, centred, alpha=1 / n)
        else:
            # With fewer images than dimensions, the Gram matrix has the same non-zero eigenvalues.
            images, filled = torch.empty(n, dims), 0
            for block in self.blocks(stride):
                images[filled : filled + len(block)] = (block - mean) * scale
                filled += len(block)
            moment = images @ images.T / n
        eigenvalues = torch.zeros(dims, dtype=torch.float64)
        found = torch.linalg.eigvalsh(moment.double()).flip(0).clamp(min=0)
        eigenvalues[: len(found)] = found
        return Spectrum(self.mean, eigenvalues, n)


def spectrum(pixels: npt.NDArray[Any], levels: int | None = 256) -> Spectrum:
    """Compute mean and covariance eigenvalues of images (N, C, H, W); see `PixelStatistics`."""
    return PixelStatistics(pixels, levels).spectrum
