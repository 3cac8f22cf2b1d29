"""Encoders (B, C, H, W) -> (B, 2d) and decoders (B, d) -> (B, out, H, W) of a VAE.

The two halves of an encoder's output are the mean and the log-variance of q(z|x). What a decoder's
channels mean is the likelihood's business. With `hidden: []` the fully connected pair is the linear
VAE whose optimum is known in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from genlab.errors import ConfigError
from genlab.nets.blocks import activation, check_positive, residual_blocks
from genlab.protocols import ImageSpec


def _linear_stack(sizes: Sequence[int], act: str) -> list[nn.Module]:
    """Linear layers with an activation between (not after) them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), activation(act)]
    return layers[:-1]


class MLPEncoder(nn.Sequential):
    """Fully connected: D -> hidden -> 2d.

    Args:
        hidden: widths of the hidden layers; none makes it linear.
        act: the activation between layers.
        dropout: share of the pixels that training hides, in [0, 1); it keeps the encoder, which
            overfits first (Cremer et al. 2018), from knowing its images by heart.
    """

    def __init__(
        self,
        spec: ImageSpec,
        latent_dim: int,
        hidden: Sequence[int] = (400,),
        act: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        check_positive("model.net.encoder.hidden", hidden)
        if not 0 <= dropout < 1:
            raise ConfigError(f"model.net.encoder.dropout={dropout}: a share in [0, 1) is needed")
        hide = [nn.Dropout(dropout)] if dropout > 0 else []
        layers = _linear_stack([spec.dims, *hidden, 2 * latent_dim], act)
        super().__init__(nn.Flatten(), *hide, *layers)


class MLPDecoder(nn.Sequential):
    """Fully connected: d -> hidden -> out * H * W."""

    def __init__(
        self,
        spec: ImageSpec,
        latent_dim: int,
        out_channels: int,
        hidden: Sequence[int] = (400,),
        act: str = "relu",
    ) -> None:
        check_positive("model.net.decoder.hidden", hidden)
        shape = (out_channels, spec.height, spec.width)
        size = out_channels * spec.height * spec.width
        super().__init__(*_linear_stack([latent_dim, *hidden, size], act), nn.Unflatten(1, shape))


def _sizes(spec: ImageSpec, levels: int) -> list[tuple[int, int]]:
    """Height and width at each level: halved, rounded up."""
    sizes = [(spec.height, spec.width)]
    for _ in range(levels):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def _check_levels(key: str, channels: Sequence[int], blocks: int) -> None:
    check_positive(f"{key}.channels", channels)
    if not channels:
        raise ConfigError(f"{key}.channels=[]: at least one level is needed")
    if blocks < 0:
        raise ConfigError(f"{key}.blocks={blocks}: 0 or more is needed")


class ConvEncoder(nn.Sequential):
    """Convolutions of stride 2, one a level, each followed by residual blocks; any image size.

    Args:
        channels: width of each level; the side halves (rounded up) at each.
        blocks: residual blocks a level; 0 gives the plain convolutional encoder.
    """

    def __init__(
        self,
        spec: ImageSpec,
        latent_dim: int,
        channels: Sequence[int] = (32, 64),
        blocks: int = 1,
        act: str = "silu",
    ) -> None:
        _check_levels("model.net.encoder", channels, blocks)
        layers: list[nn.Module] = []
        for before, after in pairwise([spec.channels, *channels]):
            layers.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
            layers += residual_blocks(after, blocks, act)
        height, width = _sizes(spec, len(channels))[-1]
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
        _check_levels("model.net.decoder", channels, blocks)
        sizes = _sizes(spec, len(channels))[::-1]
        height, width = sizes[0]
        layers: list[nn.Module] = [
            nn.Linear(latent_dim, channels[0] * height * width),
            nn.Unflatten(1, (channels[0], height, width)),
        ]
        for level, (before, after) in enumerate(pairwise([*channels, out_channels])):
            layers += residual_blocks(before, blocks, act)
            small, large = sizes[level], sizes[level + 1]
            # 2n - 1 pixels come out of n; the odd or even size of the level decides what is added
            extra = (large[0] - 2 * small[0] + 1, large[1] - 2 * small[1] + 1)
            layers.append(
                nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=extra)
            )
        super().__init__(*layers)
