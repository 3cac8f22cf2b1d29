"""The U-Net of denoising diffusion (Ho et al. 2020; Dhariwal and Nichol 2021), on the log-SNR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.checks import number, whole
from genlab.errors import ConfigError
from genlab.nets.blocks import activation, check_positive
from genlab.nets.embeddings import ClassEmbedding, LogSNREmbedding
from genlab.protocols import ImageSpec

_SHORT = 256
Convolution = TypeVar("Convolution", nn.Conv2d, nn.Linear)


class UNet(nn.Module):
    """Images (B, C, H, W) and log-SNRs (B,) to (B, out_channels, H, W).

    Each level has `blocks` residual blocks on the way down and one more on the way up, each of
    which also takes what the mirrored layer made; between levels the side halves or doubles; at the
    bottom stand a residual block, attention, a residual block, whatever `attention` says. A side
    that the halvings do not divide is padded with zeros to the next multiple, half of them before
    and the rest after the image, and the output is cropped back.

    The last convolution of every residual block, of every attention and of the network starts at
    zero, so the blocks begin as identities and the output as 0. The embedding is computed in the
    type of its weights, float32, also under autocast.

    Args:
        spec: the images.
        out_channels: of the output; what they mean is the parameterization's business.
        classes: number of classes; 0 for a network that takes no notice of labels.
        channels: width of the first level.
        multipliers: width of each level, in units of `channels`.
        blocks: residual blocks a level.
        attention: sides of the padded image (the longer of the two, in pixels) at which every
            residual block is followed by self-attention.
        heads: of each attention.
        dropout: in each residual block, in [0, 1).
        scale_shift: whether the embedding scales and shifts what a block has normalised (AdaGN,
            Dhariwal and Nichol 2021, eq. 7), or is added before the normalisation (DDPM).
        act: the activation.
        fourier: exponents n for which the network also sees sin and cos of 2^n pi x (Kingma et al.
            2021, VDM, appendix C): 7 and 8 show it differences of a level or less among 256, on
            which the bound at high log-SNRs depends.

    Raises:
        ConfigError: for sizes below 1, exponents below 0, a dropout outside [0, 1), heads that do
            not divide a width with attention, or sides for attention of which none occurs.
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
            whole(f"model.net.fourier[{i}]", exponent, 0)
        whole("model.net.channels", channels, 1)
        whole("model.net.blocks", blocks, 1)
        whole("model.net.heads", heads, 1)
        check_positive("model.net.multipliers", multipliers)
        if not multipliers:
            raise ConfigError("model.net.multipliers=[]: at least one level is needed")
        if number("model.net.dropout", dropout, at_least=0) >= 1:
            raise ConfigError(f"model.net.dropout={dropout}: a share in [0, 1) is needed")
        self.padding = centred_padding(spec, len(multipliers))
        sides = level_sides(spec, len(multipliers), attention)

        def block(before: int, after: int, attend: bool) -> Block:
            residual = ResidualBlock(before, after, dropout, scale_shift, act)
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

        # one product for all blocks instead of one small product each
        self.modulation = nn.Linear(4 * channels, sum(self.modulation_sizes))
        self.last_norm = nn.GroupNorm(groups_for(width), width)
        self.last = zeroed(nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor, log_snr: Tensor, labels: Tensor | None = None) -> Tensor:
        """x_t (B, C, H, W), log-SNRs (B,) and labels (B,), -1 or None for no class."""
        # "meta", on which operations are counted, knows no autocast of its own
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
        # a CPU convolves up to twice as fast with the channels of a pixel side by side, but takes
        # eight times as long to normalise bf16 so; what follows keeps the layout
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
    """A residual block, and attention after it if there is one."""

    def __init__(self, residual: ResidualBlock, attention: Attention | None) -> None:
        super().__init__()
        self.residual, self.attention = residual, attention

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        h: Tensor = self.residual(x, modulation)
        return h if self.attention is None else self.attention(h)


class ResidualBlock(nn.Module):
    """shortcut(x) + conv(dropout(act(norm(conv(act(norm(x))))))), the second norm modulated."""

    def __init__(
        self, before: int, after: int, dropout: float, scale_shift: bool, act: str
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups_for(before), before)
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
    """(1 + scale) GroupNorm(h) + shift, with a scale and a shift per image and channel (B, 2C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.groups = groups_for(channels)
        self.modulation_size = 2 * channels

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        if h.device.type == "cpu" and h.is_contiguous():
            # as one image of B * C channels, each with its own weight: one pass over memory, not 3
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
    """x + out(softmax(q k^T / sqrt(d)) v) over the pixels of GroupNorm(x) (B, C, H, W).

    Raises:
        ConfigError: if the heads do not divide the channels.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads != 0:
            raise ConfigError(
                f"model.net.heads={heads}: a level with attention has {channels} channels, which "
                "the heads must divide"
            )
        self.heads = heads
        self.norm = nn.GroupNorm(groups_for(channels), channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)
        # (B, HW, 3C) to three of (B, heads, HW, C / heads)
        q, k, v = self.qkv(pixels).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = attend(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(seen).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for queries, keys and values (B, heads, L, d)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] < _SHORT:
        # the backward pass over few pixels takes a CPU four times as long in bf16 as in float32
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v)


class UpsampleConv(nn.Conv2d):
    """Each pixel doubled, then a 3 x 3 convolution: (B, C, H, W) to (B, C, 2H, 2W).

    Computed as the equal transposed convolution of stride 2, whose 4 x 4 kernel holds the sums of
    the taps that meet the same pixel: less than half the work.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        taps = F.pad(self.weight.flip(2, 3), (1, 1, 1, 1))
        taps = taps[:, :, 1:] + taps[:, :, :-1]
        taps = taps[..., 1:] + taps[..., :-1]
        return F.conv_transpose2d(x, taps.transpose(0, 1), self.bias, stride=2, padding=1)


def zeroed(layer: Convolution) -> Convolution:
    """`layer` with weights and biases of 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def groups_for(channels: int) -> int:
    """The largest number of groups up to 32 that leaves at least four channels in each, or 1.

    With fewer, a channel's mean, and with it the bias before the norm, would not get through.
    """
    return max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels >= 4 * g))


def centred_padding(spec: ImageSpec, levels: int) -> list[int]:
    """left, right, top, bottom: pixels that make both sides multiples of 2^(levels - 1)."""
    multiple = 2 ** (levels - 1)
    width, height = -spec.width % multiple, -spec.height % multiple
    return [width // 2, width - width // 2, height // 2, height - height // 2]


def level_sides(spec: ImageSpec, levels: int, attention: Sequence[int]) -> list[int]:
    """The longer side at each level, in pixels, after padding.

    Raises:
        ConfigError: if there are sides for attention and none of them occurs.
    """
    multiple = 2 ** (levels - 1)
    bottom = -(-max(spec.height, spec.width) // multiple)
    sides = [bottom * multiple // 2**level for level in range(levels)]
    if attention and not set(attention) & set(sides):
        raise ConfigError(
            f"model.net.attention={list(attention)}: none of these is a side of this network on "
            f"{spec.height} x {spec.width} pixels; its levels have {', '.join(map(str, sides))}"
        )
    return sides
