"""The U-Net of denoising diffusion (Ho et al. 2020; Dhariwal and Nichol 2021), on the log-SNR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import whole
from genlab.nets.blocks import (
    activation,
    check_dropout,
    check_levels,
    group_norm,
    groups_for,
)
from genlab.nets.embeddings import ClassEmbedding, LogSNREmbedding
from genlab.protocols import ImageSpec

_SHORT = 256
#: 2^n pi x is a float32 up to this n.
_LARGEST_EXPONENT = 100
Convolution = TypeVar("Convolution", nn.Conv2d, nn.Linear)


class UNet(nn.Module):
    """A U-Net from images (B, C, H, W) and log-SNRs (B,) to (B, out_channels, H, W).

    Each level has `blocks` residual blocks in the downward path and one more in the upward path,
    where each block also gets the output of the mirrored layer. The side halves or doubles between
    levels. The lowest level always ends with a residual block, attention and a residual block,
    for any value of `attention`. A side that is not a multiple of 2^(levels - 1) is padded with
    zeros to the next multiple, half before and the rest after the image; the output is cropped.

    The last layer of every residual block, of every attention and of the network is initialised to
    zero, so at first the blocks are identities (or their shortcut) and the output is 0. The
    embedding is computed in the dtype of its weights, float32, also under autocast.

    Args:
        spec: shape and kind of the images.
        out_channels: channels of the output; the parameterization defines their meaning.
        classes: number of classes; 0 for a network that ignores labels.
        channels: width of the first level.
        multipliers: width of each level, in units of `channels`.
        blocks: residual blocks per level.
        attention: sides of the padded image (the longer of the two, in pixels) at which
            self-attention follows every residual block.
        heads: heads of each attention.
        dropout: dropout probability in each residual block, in [0, 1).
        scale_shift: whether the embedding scales and shifts the normalised values of a block
            (AdaGN, Dhariwal and Nichol 2021, eq. 7), or is added before the normalisation (DDPM).
        act: the activation.
        fourier: exponents n of the extra inputs sin and cos of 2^n pi x (Kingma et al. 2021, VDM,
            appendix C). With 7 and 8 the network can resolve differences of one of 256 levels or
            less, on which the bound at high log-SNRs depends.

    Raises:
        ValueError: if a size is below 1, an exponent outside [0, 100], the dropout outside [0, 1),
            a width with attention not a multiple of the heads, or no level has a side for
            attention.
    """

    def __init__(
        self,
        spec: ImageSpec,
        out_channels: int,
        classes: int = 0,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attention: Sequence[int] = (),
        heads: int = 1,
        dropout: float = 0.0,
        scale_shift: bool = True,
        act: str = "silu",
        fourier: Sequence[int] = (),
    ) -> None:
        super().__init__()
        for i, exponent in enumerate(fourier):
            whole(f"fourier[{i}]", exponent, 0, _LARGEST_EXPONENT)
        whole("channels", channels, 1)
        whole("blocks", blocks, 1)
        whole("heads", heads, 1)
        check_levels("multipliers", multipliers)
        check_dropout(dropout)
        self.padding = centred_padding(spec, len(multipliers))
        sides = level_sides(spec, len(multipliers), attention)

        def block(before: int, after: int, attend: bool) -> Block:
            residual = ModulatedBlock(before, after, dropout, scale_shift, act)
            self.modulation_sizes.append(residual.modulated_norm.modulation_size)
            return Block(residual, Attention(after, heads) if attend else None)

        self.modulation_sizes: list[int] = []
        self.log_snr_embedding = LogSNREmbedding(channels, 4 * channels)
        self.class_embedding = ClassEmbedding(classes, 4 * channels) if classes > 0 else None
        self.act = activation(act)
        self.fourier = tuple(fourier)
        seen = spec.channels * (1 + 2 * len(self.fourier))
        self.first = nn.Conv2d(seen, channels, 3, padding=1)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width, skips = channels, [channels]
        for level, (multiplier, side) in enumerate(zip(multipliers, sides, strict=True)):
            if level > 0:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
            for _ in range(blocks):
                self.down.append(block(width, channels * multiplier, side in attention))
                width = channels * multiplier
                skips.append(width)
        self.middle = nn.ModuleList([block(width, width, True), block(width, width, False)])
        for level in reversed(range(len(multipliers))):
            for _ in range(blocks + 1):
                after = channels * multipliers[level]
                self.up.append(block(width + skips.pop(), after, sides[level] in attention))
                width = after
            if level > 0:
                self.up.append(UpsampleConv(width))

        # one matrix product for all blocks instead of one small product each
        self.modulation = nn.Linear(4 * channels, sum(self.modulation_sizes))
        self.last_norm = group_norm(width)
        self.last = zeroed(nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor, log_snr: Tensor, labels: Tensor | None = None) -> Tensor:
        """Evaluate at x_t (B, C, H, W), log-SNRs (B,) and labels (B,), -1 or None for no class."""
        # the device "meta", used to count operations, has no autocast
        device = "cpu" if x.device.type == "meta" else x.device.type
        with torch.autocast(device, enabled=False):
            embedding = self.log_snr_embedding(log_snr)
            if self.class_embedding is not None:
                embedding = embedding + self.class_embedding(labels, log_snr)
            modulation = self.modulation(self.act(embedding))
        modulations = iter(modulation.split(self.modulation_sizes, 1))

        if self.fourier:
            angles = [x * (2**n * math.pi) for n in self.fourier]
            x = torch.cat(
                [x, *(wave(angle) for angle in angles for wave in (torch.sin, torch.cos))], 1
            )
        h = self.first(F.pad(x, self.padding))
        # on a CPU, channels_last makes convolutions up to twice as fast, but normalisation of bf16
        # eight times slower; the following layers keep the layout
        if h.device.type == "cpu" and h.dtype != torch.bfloat16:
            h = h.contiguous(memory_format=torch.channels_last)
        skips = [h]
        for layer in self.down:
            h = layer(h, next(modulations)) if isinstance(layer, Block) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, next(modulations))
        for layer in self.up:
            if isinstance(layer, Block):
                h = layer(torch.cat([h, skips.pop()], 1), next(modulations))
            else:
                h = layer(h)
        out = self.last(self.act(self.last_norm(h)))
        return F.pad(out, [-p for p in self.padding])


class Block(nn.Module):
    """A residual block, optionally followed by attention."""

    def __init__(self, residual: ModulatedBlock, attention: Attention | None) -> None:
        super().__init__()
        self.residual, self.attention = residual, attention

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        h: Tensor = self.residual(x, modulation)
        return h if self.attention is None else self.attention(h)


class ModulatedBlock(nn.Module):
    """A residual block whose second norm is modulated by the embedding.

    shortcut(x) + conv(dropout(act(modulated_norm(conv(act(norm(x))))))).
    """

    def __init__(
        self, before: int, after: int, dropout: float, scale_shift: bool, act: str
    ) -> None:
        super().__init__()
        self.norm = group_norm(before)
        self.conv = nn.Conv2d(before, after, 3, padding=1)
        self.modulated_norm = ScaleShiftNorm(after) if scale_shift else AdditiveNorm(after)
        self.dropout = nn.Dropout(dropout)
        self.last = zeroed(nn.Conv2d(after, after, 3, padding=1))
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)
        self.act = activation(act)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        h = self.modulated_norm(self.conv(self.act(self.norm(x))), modulation)
        h = self.last(self.dropout(self.act(h)))
        return h.add_(self.shortcut(x))


class ScaleShiftNorm(nn.Module):
    """(1 + scale) GroupNorm(h) + shift; scale and shift per image and channel are (B, 2C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.groups = groups_for(channels)
        self.modulation_size = 2 * channels

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        if h.device.type == "cpu" and h.is_contiguous():
            # as one image of B * C channels with one weight each: one pass over memory instead of 3
            scale, shift = (part.flatten() for part in modulation.chunk(2, 1))
            flat = h.view(1, -1, *h.shape[2:])
            return F.group_norm(flat, len(h) * self.groups, 1 + scale, shift).view(h.shape)
        # on a GPU autocast normalises in float32
        normalised = F.group_norm(h, self.groups)
        scale, shift = modulation.to(normalised.dtype)[:, :, None, None].chunk(2, 1)
        return (normalised * (1 + scale)).add_(shift)


class AdditiveNorm(nn.GroupNorm):
    """GroupNorm(h + shift), with a shift per image and channel (B, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__(groups_for(channels), channels)
        self.modulation_size = channels

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(h + modulation[:, :, None, None].to(h.dtype))


class Attention(nn.Module):
    """Residual self-attention over the pixels of x (B, C, H, W).

    x + out(softmax(q k^T / sqrt(d)) v), where q, k and v are linear in GroupNorm(x).

    Raises:
        ValueError: if the channels are not a multiple of the heads.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads != 0:
            raise ValueError(
                f"heads={heads}: a level with attention has {channels} channels, which "
                "the heads must divide"
            )
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)
        # (B, HW, 3C) to three of (B, heads, HW, C / heads)
        q, k, v = self.qkv(pixels).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = attend(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(seen).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute softmax(q k^T / sqrt(d)) v for queries, keys and values (B, heads, L, d)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] < _SHORT:
        # on a CPU, the backward pass for few pixels is four times slower in bf16 than in float32
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v)


class UpsampleConv(nn.Conv2d):
    """Nearest-neighbour upsampling and a 3 x 3 convolution: (B, C, H, W) to (B, C, 2H, 2W).

    It is computed as the equivalent transposed convolution of stride 2, whose 4 x 4 kernel holds
    the sums of the weights that apply to the same pixel: less than half the work.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        taps = F.pad(self.weight.flip(2, 3), (1, 1, 1, 1))
        taps = taps[:, :, 1:] + taps[:, :, :-1]
        taps = taps[..., 1:] + taps[..., :-1]
        return F.conv_transpose2d(x, taps.transpose(0, 1), self.bias, stride=2, padding=1)


def zeroed(layer: Convolution) -> Convolution:
    """Set the weights and biases of `layer` to 0 and return it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def centred_padding(spec: ImageSpec, levels: int) -> list[int]:
    """Compute the padding that makes both sides multiples of 2^(levels - 1).

    Returns:
        Pixels on the left, right, top and bottom.
    """
    multiple = 2 ** (levels - 1)
    width, height = -spec.width % multiple, -spec.height % multiple
    return [width // 2, width - width // 2, height // 2, height - height // 2]


def level_sides(spec: ImageSpec, levels: int, attention: Sequence[int]) -> list[int]:
    """Compute the longer side at each level, in pixels, after padding.

    Raises:
        ValueError: if `attention` is not empty and no level has one of its sides.
    """
    multiple = 2 ** (levels - 1)
    bottom = -(-max(spec.height, spec.width) // multiple)
    sides = [bottom * multiple // 2**level for level in range(levels)]
    if attention and not set(attention) & set(sides):
        raise ValueError(
            f"attention={list(attention)}: none of these is a side of this network on "
            f"{spec.height} x {spec.width} pixels; its levels have {', '.join(map(str, sides))}"
        )
    return sides
