"""A U-Net as UNet2DModel has the same output, and one that diffusers does not have is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genlab.nets.diffusers_layout import indexed, unet2d
from genlab.nets.diffusers_unet import DiffusersUNet
from genlab.nets.embeddings import position
from genlab.nets.unet import UNet
from genlab.protocols import ImageSpec

SPEC = ImageSpec(3, 10, 7, classes=("a", "b", "c"))


def shaken(net: nn.Module) -> Any:
    """A network with weights of one seed, none of them the zeros that it starts with."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in net.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for weight in net.parameters():
            size = max(1, weight[0].numel()) ** -0.5 if weight.ndim else 1.0
            weight.add_(torch.randn_like(weight) * size)
    return net.eval()


@pytest.mark.parametrize(
    "net",
    [
        UNet(SPEC, 3, channels=128),
        UNet(SPEC, 6, 3, channels=128, multipliers=(1, 2), scale_shift=False, attention=(10,)),
        UNet(SPEC, 3, channels=128, multipliers=(1, 1), blocks=2, heads=4, attention=(5, 10)),
        UNet(SPEC, 3, 3, channels=256, multipliers=(1,), dropout=0.1),
        DiffusersUNet(SPEC, 3, 3, channels=(8, 16), attention=(5,), head_channels=8),
        DiffusersUNet(SPEC, 6, channels=(8,), head_channels=4, scale_shift=True),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_output_of_diffusers_is_that_of_the_network(net: Any) -> None:
    shaken(net)
    built = unet2d(net, SPEC)
    x, log_snr = torch.randn(4, *SPEC.shape), torch.tensor([-25.0, -3.0, 0.5, 12.0])
    labels = torch.tensor([0, -1, 2, 1]) if built.config.num_class_embeds else None
    index = None if labels is None else torch.tensor([0, 3, 2, 1])
    padded = F.pad(x, net.padding)
    assert padded.shape[2:] == built.config.sample_size
    with torch.no_grad():
        ours = net(x, log_snr, labels)
        outputs = {
            "positions": built(padded, position(log_snr), index),
            "numbers": indexed(built, log_snr.double())(padded, torch.arange(4), index),
        }
    largest = float(ours.abs().max())
    assert largest > 0.1
    for name, output in outputs.items():
        theirs = F.pad(output.sample, [-p for p in net.padding])
        assert float((theirs - ours).abs().max()) < 1e-5 * largest, name


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (UNet(SPEC, 3, channels=32), r"^channels=32: .* have 8, 16, 24, 32 groups"),
        (UNet(SPEC, 3, channels=128, fourier=(7, 8)), r"^fourier=\[7, 8\]"),
        (UNet(SPEC, 3, channels=128, act="gelu"), "^act=GELU"),
        (UNet(SPEC, 3, channels=128, multipliers=(2, 2)), r"^multipliers\[0\]=2"),
        (UNet(SPEC, 3, channels=3, multipliers=(1,)), "^channels=3: .* even number"),
        (
            UNet(SPEC, 3, channels=128, multipliers=(1, 2), heads=2, attention=(10,)),
            "^heads=2: their widths are 64, 128",
        ),
        (nn.Conv2d(3, 3, 1), "^a Conv2d has no counterpart"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_network_that_diffusers_does_not_have_is_refused(net: nn.Module, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        unet2d(net, SPEC)
