"""U-Nets of genlab as a `diffusers.UNet2DModel`, with the same weights and the same output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from genlab.nets.diffusers_unet import DiffusersUNet
from genlab.nets.embeddings import position
from genlab.nets.unet import Attention, Block, ScaleShiftNorm, UNet
from genlab.protocols import ImageSpec


def unet2d(net: nn.Module, spec: ImageSpec) -> Any:
    """Build the `UNet2DModel` that computes what a network computes between padding and cropping.

    Its timestep is the position of the log-SNR in [0, 1000] (`embeddings.position`), its class
    label the class, or the number of classes for none.

    Args:
        net: a `UNet` or a `DiffusersUNet`.
        spec: shape and kind of the images.

    Raises:
        ValueError: if diffusers has no such network; the message says what in it differs.
        ImportError: if diffusers is not installed.
    """
    if isinstance(net, DiffusersUNet):
        return net.net
    if not isinstance(net, UNet):
        raise ValueError(f"a {type(net).__name__} has no counterpart in diffusers; a UNet has")
    from diffusers.models.unets.unet_2d import UNet2DModel

    built = UNet2DModel(**_settings(net, spec))
    built.load_state_dict(_weights(net))
    return built.eval()


def indexed(net: Any, log_snrs: Tensor) -> Any:
    """Build the `UNet2DModel` whose timestep i is the log-SNR `log_snrs[i]`, an integer from 0 on.

    The schedulers of diffusers give such timesteps. The sines and cosines of each log-SNR
    become a row of a table, with which diffusers calls the embedding of time "learned".

    Args:
        net: a `UNet2DModel` on positions of log-SNRs, as `unet2d` builds it.
        log_snrs: (T,).
    """
    from diffusers.models.unets.unet_2d import UNet2DModel

    own = {key: value for key, value in net.config.items() if not key.startswith("_")}
    own |= {"time_embedding_type": "learned", "num_train_timesteps": len(log_snrs)}
    built = UNet2DModel(**own)
    with torch.no_grad():
        table = net.time_proj(position(log_snrs).float())
    built.load_state_dict({**net.state_dict(), "time_proj.weight": table})
    return built.eval()


def _settings(net: UNet, spec: ImageSpec) -> dict[str, Any]:
    """Return the arguments of the `UNet2DModel` of the same architecture.

    Raises:
        ValueError: if there is none.
    """
    levels = _levels(net.down)
    widths = [blocks[-1].residual.conv.out_channels for blocks, _ in levels]
    attends = [blocks[0].attention is not None for blocks, _ in levels]
    residual = levels[0][0][0].residual
    if net.fourier:
        raise ValueError(
            f"fourier={list(net.fourier)}: a network of diffusers has no such inputs; only one "
            "with fourier=[] has a counterpart"
        )
    if not isinstance(net.act, nn.SiLU):
        raise ValueError(
            f"act={type(net.act).__name__}: the last layers of a network of diffusers have silu"
        )
    if widths[0] != net.first.out_channels:
        raise ValueError(
            f"multipliers[0]={widths[0] // net.first.out_channels}: the first level of a network "
            "of diffusers is as wide as its first layer, which is multipliers[0]=1"
        )
    if net.first.out_channels % 2 or net.first.out_channels < 4:
        raise ValueError(
            f"channels={net.first.out_channels}: a network of diffusers has as many sines and "
            "cosines of the time as channels, an even number of at least 4"
        )
    groups = sorted(set(_groups(net)))
    if len(groups) > 1:
        raise ValueError(
            f"channels={net.first.out_channels}: at this width the normalisations have "
            f"{', '.join(map(str, groups))} groups, and a network of diffusers has one number for "
            "all; with a multiple of 128 channels they have 32"
        )
    heads = [part for part in net.modules() if isinstance(part, Attention)]
    sizes = {part.out.out_features // part.heads for part in heads}
    single = all(part.heads == 1 for part in heads)
    if len(sizes) > 1 and not single:
        raise ValueError(
            f"heads={heads[0].heads}: their widths are {', '.join(map(str, sorted(sizes)))}, and a "
            "network of diffusers has one width for all; heads=1 has a counterpart"
        )
    left, right, top, bottom = net.padding
    classes = net.class_embedding
    return {
        "sample_size": (spec.height + top + bottom, spec.width + left + right),
        "in_channels": net.first.in_channels,
        "out_channels": net.last.out_channels,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "block_out_channels": tuple(widths),
        "layers_per_block": len(levels[0][0]),
        "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
        "attention_head_dim": None if single else sizes.pop(),
        "norm_num_groups": groups[0],
        "attn_norm_num_groups": groups[0],
        "dropout": residual.dropout.p,
        "resnet_time_scale_shift": (
            "scale_shift" if isinstance(residual.modulated_norm, ScaleShiftNorm) else "default"
        ),
        "num_class_embeds": None if classes is None else classes.num_embeddings,
    }


def _groups(net: UNet) -> Iterator[int]:
    for part in net.modules():
        if isinstance(part, nn.GroupNorm):
            yield part.num_groups
        elif isinstance(part, ScaleShiftNorm):
            yield part.groups


def _levels(layers: Iterable[nn.Module]) -> list[tuple[list[Block], nn.Module | None]]:
    """Split a path at the layers that change the side: each level's blocks, and that layer."""
    levels: list[tuple[list[Block], nn.Module | None]] = []
    for is_block, part in groupby(layers, lambda layer: isinstance(layer, Block)):
        if is_block:
            levels.append((list(part), None))  # type: ignore[arg-type]
        else:
            levels[-1] = (levels[-1][0], next(part))
    return levels


def _weights(net: UNet) -> dict[str, Tensor]:
    """Return the weights under the names of a `UNet2DModel`."""
    shares = iter(
        zip(
            net.modulation.weight.split(net.modulation_sizes),
            net.modulation.bias.split(net.modulation_sizes),
            strict=True,
        )
    )
    found = {
        **_of("conv_in", net.first),
        **_of("time_embedding.linear_1", net.log_snr_embedding.hidden),
        **_of("time_embedding.linear_2", net.log_snr_embedding.out),
        **({} if net.class_embedding is None else _of("class_embedding", net.class_embedding)),
        **_of("conv_norm_out", net.last_norm),
        **_of("conv_out", net.last),
    }

    def add(place: str, blocks: Iterable[nn.Module]) -> None:
        for i, block in enumerate(blocks):
            assert isinstance(block, Block)
            weight, bias = next(shares)
            resnet = f"{place}.resnets.{i}"
            found.update(_of_residual(resnet, block.residual))
            found.update(
                {f"{resnet}.time_emb_proj.weight": weight, f"{resnet}.time_emb_proj.bias": bias}
            )
            if block.attention is not None:
                found.update(_of_attention(f"{place}.attentions.{i}", block.attention))

    def add_path(direction: str, layers: Iterable[nn.Module]) -> None:
        for level, (blocks, resize) in enumerate(_levels(layers)):
            place = f"{direction}_blocks.{level}"
            add(place, blocks)
            if resize is not None:
                found.update(_of(f"{place}.{direction}samplers.0.conv", resize))

    # in the order of the network, which is that of the shares
    add_path("down", net.down)
    add("mid_block", net.middle)
    add_path("up", net.up)
    return found


def _of(name: str, layer: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.{part}": weight for part, weight in layer.state_dict().items()}


def _of_residual(name: str, block: Any) -> dict[str, Tensor]:
    norm = block.modulated_norm
    width = block.conv.out_channels
    like = block.conv.weight
    second = (
        {f"{name}.norm2.weight": like.new_ones(width), f"{name}.norm2.bias": like.new_zeros(width)}
        if isinstance(norm, ScaleShiftNorm)
        else _of(f"{name}.norm2", norm)
    )
    return {
        **_of(f"{name}.norm1", block.norm),
        **_of(f"{name}.conv1", block.conv),
        **second,
        **_of(f"{name}.conv2", block.last),
        **_of(f"{name}.conv_shortcut", block.shortcut),
    }


def _of_attention(name: str, attention: Attention) -> dict[str, Tensor]:
    parts = {**_of(f"{name}.group_norm", attention.norm), **_of(f"{name}.to_out.0", attention.out)}
    for kind, tensor in attention.qkv.state_dict().items():
        for letter, share in zip("qkv", tensor.chunk(3), strict=True):
            parts[f"{name}.to_{letter}.{kind}"] = share
    return parts
