"""Encoders (B, C, H, W) -> (B, 2d) and decoders (B, d) -> (B, out, H, W) of a VAE.

The two halves of an encoder's output are the mean and the log-variance of q(z|x). The likelihood
defines the meaning of a decoder's output. Latents that are a map (C, h, w) are flattened to d. With
`hidden: []` the fully connected encoder and decoder form the linear VAE, whose optimum is known in
closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from genlab.errors import whole
from genlab.nets.blocks import (
    activation,
    check_dropout,
    check_levels,
    check_positive,
    residual_blocks,
)
from genlab.protocols import ImageSpec


def _linear_stack(sizes: Sequence[int], act: str) -> list[nn.Module]:
    """Create linear layers with an activation between (not after) them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), activation(act)]
    return layers[:-1]


class MLPEncoder(nn.Sequential):
    """A fully connected encoder: D -> hidden -> 2d.

    Args:
        hidden: widths of the hidden layers; empty for a linear encoder.
        act: the activation between layers.
        dropout: share of the pixels that are hidden in training, in [0, 1); it reduces overfitting
            of the encoder, which overfits first (Cremer et al. 2018).
    """

    def __init__(
        self,
        spec: ImageSpec,
        latent_dim: int,
        hidden: Sequence[int] = (400,),
        act: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        check_positive("hidden", hidden)
        check_dropout(dropout)
        hide = [nn.Dropout(dropout)] if dropout > 0 else []
        layers = _linear_stack([spec.dims, *hidden, 2 * latent_dim], act)
        super().__init__(nn.Flatten(), *hide, *layers)


class MLPDecoder(nn.Sequential):
    """A fully connected decoder: d -> hidden -> out * H * W."""

    def __init__(
        self,
        spec: ImageSpec,
        latent_dim: int,
        out_channels: int,
        hidden: Sequence[int] = (400,),
        act: str = "relu",
    ) -> None:
        check_positive("hidden", hidden)
        shape = (out_channels, spec.height, spec.width)
        size = out_channels * spec.height * spec.width
        super().__init__(*_linear_stack([latent_dim, *hidden, size], act), nn.Unflatten(1, shape))


def sizes_by_level(spec: ImageSpec, levels: int) -> list[tuple[int, int]]:
    """Compute height and width at each level: halved, rounded up."""
    sizes = [(spec.height, spec.width)]
    for _ in range(levels):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def _down(spec: ImageSpec, channels: Sequence[int], blocks: int, act: str) -> list[nn.Module]:
    """Create the levels of an encoder, from the image to the smallest level."""
    check_levels("channels", channels)
    whole("blocks", blocks, 0)
    layers: list[nn.Module] = []
    for before, after in pairwise([spec.channels, *channels]):
        layers.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
        layers += residual_blocks(after, blocks, act)
    return layers


def _up(
    spec: ImageSpec, out_channels: int, channels: Sequence[int], blocks: int, act: str
) -> list[nn.Module]:
    """Create the levels of a decoder, from the smallest level to the image."""
    check_levels("channels", channels)
    whole("blocks", blocks, 0)
    sizes = sizes_by_level(spec, len(channels))[::-1]
    layers: list[nn.Module] = []
    for level, (before, after) in enumerate(pairwise([*channels, out_channels])):
        layers += residual_blocks(before, blocks, act)
        small, large = sizes[level], sizes[level + 1]
        # n pixels give 2n - 1; `extra` adds the rest, which depends on whether the size is odd
        extra = (large[0] - 2 * small[0] + 1, large[1] - 2 * small[1] + 1)
        layers.append(
            nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=extra)
        )
    return layers


class ConvEncoder(nn.Sequential):
    """One convolution of stride 2 per level, followed by residual blocks; for any image size.

    Args:
        channels: width of each level; each level halves the side, rounded up.
        blocks: residual blocks per level; 0 gives the plain convolutional encoder.
    """

    def __init__(
        self,
        spec: ImageSpec,
        latent_dim: int,
        channels: Sequence[int] = (32, 64),
        blocks: int = 1,
        act: str = "silu",
    ) -> None:
        layers = _down(spec, channels, blocks, act)
        height, width = sizes_by_level(spec, len(channels))[-1]
        flat = channels[-1] * height * width
        super().__init__(*layers, nn.Flatten(), nn.Linear(flat, 2 * latent_dim))


class ConvDecoder(nn.Sequential):
    """The mirror of `ConvEncoder`: transposed convolutions that restore each level's exact size."""

    def __init__(
        self,
        spec: ImageSpec,
        latent_dim: int,
        out_channels: int,
        channels: Sequence[int] = (64, 32),
        blocks: int = 1,
        act: str = "silu",
    ) -> None:
        check_levels("channels", channels)
        height, width = sizes_by_level(spec, len(channels))[-1]
        first = nn.Linear(latent_dim, channels[0] * height * width)
        layers = _up(spec, out_channels, channels, blocks, act)
        super().__init__(first, nn.Unflatten(1, (channels[0], height, width)), *layers)


def _map_shape(spec: ImageSpec, latent_dim: int, levels: int) -> tuple[int, int, int]:
    """Compute the shape (C, h, w) of a map of d latents.

    Raises:
        ValueError: if d is not a multiple of h * w.
    """
    height, width = sizes_by_level(spec, levels)[-1]
    if latent_dim % (height * width):
        raise ValueError(
            f"latent_dim={latent_dim}: the latents of this network are a map of {height} x {width} "
            f"pixels; give a multiple of {height * width}, or {4 * height * width} for 4 channels"
        )
    return latent_dim // (height * width), height, width


class MapEncoder(nn.Sequential):
    """`ConvEncoder` without its last layer: the latents are a map, 2^levels times smaller.

    The map has C = d / (h w) channels; a convolution makes it from the last level.

    Args:
        channels, blocks, act: as in `ConvEncoder`.

    Attributes:
        latent_shape: (C, h, w).
    """

    def __init__(
        self,
        spec: ImageSpec,
        latent_dim: int,
        channels: Sequence[int] = (32, 64),
        blocks: int = 1,
        act: str = "silu",
    ) -> None:
        layers = _down(spec, channels, blocks, act)
        shape = _map_shape(spec, latent_dim, len(channels))
        moments = nn.Conv2d(channels[-1], 2 * shape[0], 3, padding=1)
        super().__init__(*layers, moments, nn.Flatten())
        self.latent_shape = shape


class MapDecoder(nn.Sequential):
    """The mirror of `MapEncoder`: a convolution of the map, then the levels of `ConvDecoder`."""

    def __init__(
        self,
        spec: ImageSpec,
        latent_dim: int,
        out_channels: int,
        channels: Sequence[int] = (64, 32),
        blocks: int = 1,
        act: str = "silu",
    ) -> None:
        check_levels("channels", channels)
        shape = _map_shape(spec, latent_dim, len(channels))
        first = nn.Conv2d(shape[0], channels[0], 3, padding=1)
        layers = _up(spec, out_channels, channels, blocks, act)
        super().__init__(nn.Unflatten(1, shape), first, *layers)
