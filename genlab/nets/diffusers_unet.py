"""The U-Net of the `diffusers` library, an alternative to `genlab.nets.unet`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import whole
from genlab.nets.blocks import check_dropout, check_levels, groups_for
from genlab.nets.embeddings import class_index, position
from genlab.nets.unet import centred_padding, level_sides
from genlab.protocols import ImageSpec


class DiffusersUNet(nn.Module):
    """A `diffusers.UNet2DModel` on log-SNRs: (B, C, H, W) and (B,) to (B, out_channels, H, W).

    The timestep is the position of the log-SNR in [0, 1000] (`embeddings.position`). The class
    table has one more row, for labels -1 or None. Sides are padded and cropped as in `UNet`. Unlike
    `UNet`, its time embedding follows autocast, and its output is not initialised to zero.

    Args:
        spec: shape and kind of the images.
        out_channels: channels of the output.
        classes: number of classes; 0 for a network that ignores labels.
        channels: width of each level.
        blocks: residual blocks per level.
        attention: sides of the padded image (the longer of the two, in pixels) with self-attention;
            the lowest level always has it.
        head_channels: width of each attention head.
        dropout: dropout probability in each residual block, in [0, 1).
        scale_shift: whether the time embedding scales and shifts, or is added.

    Raises:
        ValueError: if `diffusers` is not installed, or a value is out of its range.
    """

    def __init__(
        self,
        spec: ImageSpec,
        out_channels: int,
        classes: int = 0,
        channels: Sequence[int] = (32, 64, 64),
        blocks: int = 1,
        attention: Sequence[int] = (),
        head_channels: int = 32,
        dropout: float = 0.0,
        scale_shift: bool = False,
    ) -> None:
        super().__init__()
        try:
            from diffusers.models.unets.unet_2d import UNet2DModel
        except ImportError as error:
            raise ValueError(
                "_target_=genlab.nets.diffusers_unet.DiffusersUNet needs the package "
                f"diffusers ({error}): pip install genlab[diffusers]"
            ) from error
        check_levels("channels", channels)
        whole("blocks", blocks, 1)
        whole("head_channels", head_channels, 1)
        check_dropout(dropout)
        sides = level_sides(spec, len(channels), attention)
        for width in {
            channels[-1],
            *(c for c, s in zip(channels, sides, strict=True) if s in attention),
        }:
            if width % head_channels != 0:
                raise ValueError(
                    f"head_channels={head_channels}: a level with attention has {width} "
                    "channels, which it must divide"
                )
        self.padding = centred_padding(spec, len(channels))
        self.classes = classes
        attends = [side in attention for side in sides]
        self.net = UNet2DModel(
            sample_size=(
                spec.height + self.padding[2] + self.padding[3],
                spec.width + self.padding[0] + self.padding[1],
            ),
            in_channels=spec.channels,
            out_channels=out_channels,
            block_out_channels=tuple(channels),
            layers_per_block=blocks,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
            attention_head_dim=head_channels,
            norm_num_groups=groups_for(math.gcd(*channels)),
            dropout=dropout,
            resnet_time_scale_shift="scale_shift" if scale_shift else "default",
            num_class_embeds=classes + 1 if classes > 0 else None,
        )

    def forward(self, x: Tensor, log_snr: Tensor, labels: Tensor | None = None) -> Tensor:
        """Evaluate at x_t (B, C, H, W), log-SNRs (B,) and labels (B,), -1 or None for no class."""
        index = class_index(labels, self.classes, log_snr) if self.classes > 0 else None
        padded = F.pad(x, self.padding)
        out: Tensor = self.net(padded, position(log_snr), index, return_dict=False)[0]
        return F.pad(out, [-p for p in self.padding])
