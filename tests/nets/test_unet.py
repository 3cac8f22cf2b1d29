"""The U-Net computes the published equations, for any image size, log-SNR and class."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from genlab.config.build import build
from genlab.config.check import resolve
from genlab.config.compose import compose
from genlab.nets.diffusers_unet import DiffusersUNet
from genlab.nets.embeddings import LogSNREmbedding, position
from genlab.nets.unet import (
    AdditiveNorm,
    Attention,
    ScaleShiftNorm,
    UNet,
    UpsampleConv,
    centred_padding,
)
from genlab.protocols import ImageSpec

GREY, COLOUR = ImageSpec(1, 28, 28), ImageSpec(3, 32, 32)


def small(spec: ImageSpec = GREY, **changes: Any) -> UNet:
    torch.manual_seed(0)
    keys = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "heads": 2}
    return UNet(spec, **{"out_channels": spec.channels, **keys, **changes})


def shaken(net: nn.Module, size: float = 0.2) -> nn.Module:
    """Move the weights away from the zeros that they start with."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += size * torch.randn_like(parameter)
    return net


def inputs(spec: ImageSpec = GREY, batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *spec.shape, generator=generator)
    return x, torch.linspace(-6, 9, batch, dtype=torch.float64)


def from_file(name: str, spec: ImageSpec, **given: Any) -> nn.Module:
    node = resolve(compose([f"+model/net@net={name}"]))["net"]
    with torch.device("meta"):
        return build(node, "net")(spec=spec, **given)


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_the_cifar10_network_has_the_published_number_of_parameters() -> None:
    # 35.7 million (Ho et al. 2020); to the last one in the weights that diffusers converted
    assert count(from_file("unet_cifar10", COLOUR, out_channels=3)) == 35_746_307


@pytest.mark.parametrize(
    ("name", "spec", "millions"),
    [("unet_tiny", GREY, 0.30), ("unet_small", ImageSpec(1, 32, 32), 1.19)],
)
def test_sizes_by_config(name: str, spec: ImageSpec, millions: float) -> None:
    assert count(from_file(name, spec, out_channels=1)) == pytest.approx(1e6 * millions, rel=0.01)


@pytest.mark.parametrize("size", [(28, 28), (29, 31), (32, 32), (33, 28), (45, 64), (64, 64)])
@pytest.mark.parametrize(("channels", "out_channels"), [(1, 1), (3, 6)])
def test_any_size_keeps_its_size_and_starts_at_zero(
    size: tuple[int, int], channels: int, out_channels: int
) -> None:
    spec = ImageSpec(channels, *size)
    x, log_snr = inputs(spec, 2)
    out = small(spec, out_channels=out_channels, multipliers=[1, 1, 2])(x, log_snr)
    assert out.shape == (2, out_channels, *size)
    assert out.abs().max() == 0


def test_blocks_start_as_identities() -> None:
    net = small()
    middle = net.middle[0]
    x = torch.randn(2, 16, 14, 14)
    modulation = torch.randn(2, middle.residual.modulated_norm.modulation_size)
    torch.testing.assert_close(middle(x, modulation), x, rtol=0, atol=0)


def test_an_image_is_treated_alike_in_any_place_and_any_batch() -> None:
    net = shaken(small(classes=4)).eval()
    x, log_snr = inputs(batch=5)
    labels = torch.tensor([0, 3, -1, 2, 1])
    whole = net(x, log_snr, labels)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        net(x[order], log_snr[order], labels[order]), whole[order], rtol=0, atol=1e-5
    )
    alone = torch.cat([net(x[i : i + 1], log_snr[i : i + 1], labels[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-5)


def test_padding_is_zeros_around_the_image_and_a_crop() -> None:
    assert centred_padding(ImageSpec(1, 29, 28), 4) == [2, 2, 1, 2]
    odd = shaken(small(GREY, multipliers=[1, 1, 1, 2]))
    even = small(ImageSpec(1, 32, 32), multipliers=[1, 1, 1, 2])
    even.load_state_dict(odd.state_dict())
    x, log_snr = inputs()
    cropped = even(F.pad(x, (2, 2, 2, 2)), log_snr)[:, :, 2:-2, 2:-2]
    torch.testing.assert_close(odd(x, log_snr), cropped, rtol=0, atol=1e-6)


def test_attention_is_softmax_of_scaled_products() -> None:
    torch.manual_seed(0)
    heads, channels = 3, 12
    layer = shaken(Attention(channels, heads).double())
    x = torch.randn(2, channels, 4, 5, dtype=torch.float64)
    flat = layer.norm(x).flatten(2)
    weights = layer.qkv.weight.view(3, heads, channels // heads, channels)
    bias = layer.qkv.bias.view(3, heads, channels // heads, 1)
    q, k, v = (
        torch.einsum("hdc,bcl->bhdl", w, flat) + b for w, b in zip(weights, bias, strict=True)
    )
    scores = torch.einsum("bhdi,bhdj->bhij", q, k) / (channels // heads) ** 0.5
    seen = torch.einsum("bhij,bhdj->bhdi", scores.softmax(3), v).flatten(1, 2)
    out = torch.einsum("oc,bcl->bol", layer.out.weight, seen) + layer.out.bias[:, None]
    torch.testing.assert_close(layer(x), x + out.view_as(x), rtol=0, atol=1e-12)


def test_short_sequences_in_bf16_differ_from_float32_by_rounding_alone() -> None:
    torch.manual_seed(0)
    layer = shaken(Attention(8, 1))
    x = torch.randn(2, 8, 7, 7)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    torch.testing.assert_close(low.float(), layer(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_modulated_norms_are_their_formulas_in_either_layout(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    h = torch.randn(3, 12, 5, 6, dtype=torch.float64).to(memory_format=layout)
    modulation = torch.randn(3, 24, dtype=torch.float64)
    scale, shift = modulation[:, :12, None, None], modulation[:, 12:, None, None]
    groups = h.reshape(3, 3, -1)
    variance = groups.var(2, correction=0, keepdim=True)
    normal = (groups - groups.mean(2, keepdim=True)) / (variance + 1e-5).sqrt()
    expected = (1 + scale) * normal.view_as(h) + shift
    torch.testing.assert_close(ScaleShiftNorm(12)(h, modulation), expected, rtol=0, atol=1e-12)
    additive = AdditiveNorm(12).double()
    expected = F.group_norm(h + shift, 3)
    torch.testing.assert_close(additive(h, modulation[:, 12:]), expected, rtol=0, atol=1e-12)


def test_upsampling_is_nearest_neighbours_and_then_a_convolution() -> None:
    layer = UpsampleConv(6).double()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    doubled = F.interpolate(x, scale_factor=2.0, mode="nearest")
    expected = F.conv2d(doubled, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_the_embedding_is_float32_under_autocast_and_tells_log_snrs_apart() -> None:
    net = shaken(small())
    seen: list[Tensor] = []
    net.modulation.register_forward_hook(lambda module, given, out: seen.append(out))
    # 1 and 1.001 are one number in bfloat16
    log_snr = torch.tensor([1.0, 1.001, 5.0], dtype=torch.float64)
    x = torch.zeros(3, 1, 28, 28)
    with torch.autocast("cpu", torch.bfloat16):
        net(x, log_snr)
    net(x, log_snr)
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)
    apart = (seen[0][:, None] - seen[0]).abs().amax(2)
    assert (apart[~torch.eye(3, dtype=torch.bool)] > 1e-3).all()


def test_log_snrs_are_clamped_to_a_range_of_a_thousand_positions() -> None:
    log_snr = torch.tensor([torch.inf, 20, 0, -20, -90, -torch.inf], dtype=torch.float64)
    assert position(log_snr).tolist() == [0, 0, 500, 1000, 1000, 1000]
    embedded = LogSNREmbedding(8, 16)(log_snr)
    torch.testing.assert_close(embedded[[0, 3, 3]], embedded[[1, 4, 5]], rtol=0, atol=0)


def test_no_label_is_a_class_of_its_own() -> None:
    net = shaken(small(classes=3))
    x, log_snr = inputs()
    without = net(x, log_snr)
    minus_one = net(x, log_snr, torch.full((3,), -1))
    torch.testing.assert_close(minus_one, without, rtol=0, atol=0)
    for label in range(3):
        assert (net(x, log_snr, torch.full((3,), label)) - without).abs().max() > 1e-3
    unconditional = shaken(small())
    given = unconditional(x, log_snr, torch.full((3,), -1))
    torch.testing.assert_close(given, unconditional(x, log_snr), rtol=0, atol=0)


@pytest.mark.parametrize("scale_shift", [True, False])
def test_every_parameter_learns_once_it_is_away_from_the_start(scale_shift: bool) -> None:
    net = shaken(small(classes=3, attention=[14], scale_shift=scale_shift, dropout=0.1))
    x, log_snr = inputs()
    net(x, log_snr, torch.tensor([0, 1, 2])).square().sum().backward()
    net(x, log_snr).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_operations_are_counted_without_data() -> None:
    net = small(classes=2, attention=[14]).to("meta")
    x, log_snr = inputs()
    with FlopCounterMode(display=False) as counter:
        net(x.to("meta"), log_snr.to("meta")).sum().backward()
    assert counter.get_total_flops() > 1e6


def test_it_compiles_into_one_graph() -> None:
    net = shaken(small(classes=2, attention=[14]))
    x, log_snr = inputs()
    labels = torch.tensor([0, -1, 1])
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x, log_snr, labels), net(x, log_snr, labels))


def test_doubles_stay_doubles() -> None:
    net = shaken(small().double())
    x, log_snr = inputs()
    assert net(x.double(), log_snr).dtype == torch.float64


@pytest.mark.parametrize("classes", [0, 5])
def test_the_adapter_is_unet2dmodel_called_directly(classes: int) -> None:
    torch.manual_seed(0)
    keys = {"channels": [8, 16], "attention": [15], "head_channels": 8}
    adapter = DiffusersUNet(ImageSpec(1, 29, 29), 2, classes, **keys).eval()
    theirs = UNet2DModel(
        sample_size=30,
        in_channels=1,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=2,
        attention_head_dim=8,
        num_class_embeds=classes + 1 if classes else None,
    ).eval()
    theirs.load_state_dict(adapter.net.state_dict())
    x, log_snr = inputs(ImageSpec(1, 29, 29))
    padded, timesteps = F.pad(x, (0, 1, 0, 1)), 25 * (20 - log_snr)
    labels = torch.tensor([4, -1, 0])
    index = torch.tensor([4, 5, 0]) if classes else None
    direct = theirs(padded, timesteps, index).sample[:, :, :-1, :-1]
    torch.testing.assert_close(adapter(x, log_snr, labels), direct, rtol=0, atol=1e-6)
    without = adapter(x, log_snr)
    torch.testing.assert_close(adapter(x, log_snr, torch.full((3,), -1)), without, rtol=0, atol=0)


def test_the_adapter_without_diffusers_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("diffusers"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=r"pip install genlab\[diffusers\]"):
        DiffusersUNet(GREY, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 0}, "^channels=0"),
        ({"blocks": 0}, "^blocks=0"),
        ({"heads": 0}, "^heads=0"),
        ({"heads": 3}, "^heads=3.* 16 channels"),
        ({"multipliers": []}, r"^multipliers=\[\]"),
        ({"multipliers": [1, 0]}, r"^multipliers=\[1, 0\]"),
        ({"dropout": 1.0}, "^dropout=1.0"),
        ({"dropout": -0.1}, "^dropout=-0.1"),
        ({"attention": [16]}, r"^attention=\[16\].*28, 14"),
        ({"act": "sine"}, "^act='sine'"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**change)


def test_the_adapter_refuses_what_makes_no_sense() -> None:
    for change, message in (
        ({"channels": []}, "^channels"),
        ({"head_channels": 48}, "^head_channels=48"),
        ({"attention": [5]}, r"^attention=\[5\]"),
        ({"dropout": 2.0}, "^dropout=2.0"),
    ):
        with pytest.raises(ValueError, match=message):
            DiffusersUNet(GREY, 1, **change)
