"""Generators (B, d) -> (B, C, H, W) and discriminators (B, C, H, W) -> (B,) of a GAN.

Both know the class of an image, if they are told of classes. Neither uses batch normalisation: the
output for an image depends on that image alone, so that a gradient penalty is defined for each
image, and a batch may be divided over processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import whole
from genlab.nets.blocks import check_levels, residual_blocks
from genlab.nets.vae import sizes_by_level
from genlab.protocols import ImageSpec


class ConvGenerator(nn.Module):
    """Latents and class -> the smallest map, then blocks and upsampling up to the exact image size.

    The class is embedded and concatenated with z: a one-hot vector before a linear layer is an
    embedding. The upsampling repeats pixels, and a convolution follows it, which leaves no
    checkerboard as transposed convolutions do (Odena et al. 2016).

    Args:
        channels: width of each level, from the smallest map to the largest; the side doubles after
            each.
        blocks: residual blocks per level.
        classes: number of classes; 0 for an unconditional generator.
    """

    def __init__(
        self,
        spec: ImageSpec,
        latent_dim: int,
        classes: int = 0,
        channels: Sequence[int] = (64, 32),
        blocks: int = 1,
        act: str = "silu",
    ) -> None:
        super().__init__()
        check_levels("channels", channels)
        whole("blocks", blocks, 0)
        self.classes = classes
        sizes = sizes_by_level(spec, len(channels))[::-1]
        first = (channels[0], *sizes[0])
        layers: list[nn.Module] = [
            nn.Linear(latent_dim + classes, channels[0] * sizes[0][0] * sizes[0][1]),
            nn.Unflatten(1, first),
        ]
        for size, (before, after) in zip(
            sizes[1:], pairwise([*channels, spec.channels]), strict=True
        ):
            layers += residual_blocks(before, blocks, act)
            layers += [nn.Upsample(size), nn.Conv2d(before, after, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map latents (B, d) and classes (B,) to images, whose range is all real numbers."""
        if self.classes:
            assert labels is not None
            z = torch.cat([z, F.one_hot(labels, self.classes).to(z.dtype)], 1)
        images: Tensor = self.layers(z)
        return images


class ConvDiscriminator(nn.Module):
    """Convolutions of stride 2 and blocks to a vector of features, and a score linear in them.

    With classes y the score is <w + e(y), features> + b (Miyato and Koyama 2018, eq. 3: the
    projection discriminator).

    Args:
        channels: width of each level; each halves the side, rounded up.
        blocks: residual blocks per level.
        features: size of the vector.
        classes: number of classes; 0 for an unconditional discriminator.
    """

    def __init__(
        self,
        spec: ImageSpec,
        classes: int = 0,
        channels: Sequence[int] = (32, 64),
        blocks: int = 1,
        features: int = 40,
        act: str = "silu",
    ) -> None:
        super().__init__()
        check_levels("channels", channels)
        whole("blocks", blocks, 0)
        whole("features", features, 1)
        layers: list[nn.Module] = []
        for before, after in pairwise([spec.channels, *channels]):
            layers.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
            layers += residual_blocks(after, blocks, act)
        height, width = sizes_by_level(spec, len(channels))[-1]
        layers += [nn.Flatten(), nn.Linear(channels[-1] * height * width, features)]
        self.layers = nn.Sequential(*layers)
        self.score = nn.Linear(features, 1)
        self.embedding = nn.Embedding(classes, features) if classes else None

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map images in [-1, 1] and classes (B,) to scores (B,), large for real images."""
        features = self.layers(x)
        score: Tensor = self.score(features)[:, 0]
        if self.embedding is None:
            return score
        assert labels is not None
        return score + (self.embedding(labels) * features).sum(1)
