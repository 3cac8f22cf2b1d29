"""The networks of a GAN: any image, any class, each image for itself, as large as the others'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from genlab.config.build import build
from genlab.config.check import resolve
from genlab.config.compose import compose
from genlab.nets.gan import ConvDiscriminator, ConvGenerator
from genlab.nets.vae import ConvDecoder, ConvEncoder
from genlab.protocols import HasNetworks, ImageSpec
from genlab.training.run_config import build_model, check_model

GREY = ImageSpec(1, 28, 28)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 1, 1), (1, 7, 13), (2, 5, 64)])
@pytest.mark.parametrize("classes", [0, 3])
def test_every_size_is_drawn_and_scored(shape: tuple[int, int, int], classes: int) -> None:
    spec, labels = ImageSpec(*shape), torch.tensor([0, 2]) if classes else None
    sizes: dict[str, Any] = {"channels": (4, 8, 4), "classes": classes}
    images = ConvGenerator(spec, 6, **sizes)(torch.randn(2, 6), labels)
    assert images.shape == (2, *shape)
    assert ConvDiscriminator(spec, **sizes)(images, labels).shape == (2,)


@pytest.mark.parametrize("blocks", [0, 1])
def test_an_image_does_not_depend_on_the_others_of_its_batch(blocks: int) -> None:
    z, labels = torch.randn(5, 6), torch.arange(5) % 3
    generator = ConvGenerator(GREY, 6, 3, channels=(8, 8), blocks=blocks)
    discriminator = ConvDiscriminator(GREY, 3, channels=(8, 8), blocks=blocks)
    images = generator(z, labels)
    torch.testing.assert_close(generator(z[2:], labels[2:]), images[2:])
    scores = discriminator(images, labels)
    torch.testing.assert_close(discriminator(images[2:], labels[2:]), scores[2:])
    assert not list(generator.buffers()) and not list(discriminator.buffers())


def test_a_score_with_classes_is_a_projection() -> None:
    """Differences between classes are linear in the features (Miyato and Koyama 2018)."""
    discriminator = ConvDiscriminator(GREY, 3, channels=(4,), features=6)
    assert discriminator.embedding is not None
    x = torch.randn(7, *GREY.shape)
    features = discriminator.layers(x)
    one, other = (discriminator(x, torch.full((7,), label)) for label in (0, 2))
    e = discriminator.embedding.weight
    torch.testing.assert_close(one - other, features @ (e[0] - e[2]))


def test_a_class_shifts_the_first_layer_of_the_generator() -> None:
    generator, z = ConvGenerator(GREY, 6, 3, channels=(4,)), torch.randn(5, 6)
    first = generator.layers[0]
    assert isinstance(first, nn.Linear) and first.in_features == 6 + 3
    drawn = [generator(z, torch.full((5,), label)) for label in range(3)]
    assert all((a - drawn[0]).abs().max() > 1e-4 for a in drawn[1:])


@pytest.mark.parametrize(
    ("cls", "change", "message"),
    [
        (ConvGenerator, {"channels": ()}, r"^channels=\[\]: at least one level"),
        (ConvGenerator, {"blocks": -1}, r"^blocks=-1: "),
        (ConvDiscriminator, {"channels": (4, 0)}, r"^channels=\[4, 0\]: sizes start at 1"),
        (ConvDiscriminator, {"features": 0}, r"^features=0: "),
    ],
)
def test_a_size_that_is_none_is_refused(cls: Any, change: dict[str, Any], message: str) -> None:
    given = {"latent_dim": 4} if cls is ConvGenerator else {}
    with pytest.raises(ValueError, match=message):
        cls(GREY, **given, **change)


def sizes(*overrides: str) -> dict[str, int]:
    model = build_model(check_model(resolve(compose(overrides))["model"]), GREY)
    assert isinstance(model, HasNetworks)
    return {name: count(network) for name, network in model.networks().items()}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_gan_tiny_is_as_large_as_the_decoder_of_the_vae_and_the_tiny_u_net() -> None:
    ours, decoder = sizes("model=gan", "model/net=gan_tiny"), sizes("model=vae")["decoder"]
    (unet,) = sizes("model=ddpm", "model/net=unet_tiny").values()
    assert ours["generator"] == pytest.approx(decoder, rel=0.1)
    assert ours["generator"] == pytest.approx(unet, rel=0.1)
    assert ours["discriminator"] == pytest.approx(unet, rel=0.1)


def test_gan_conv_is_as_large_as_the_convolutional_vae() -> None:
    ours = sizes("model=gan", "model/net=gan_conv", "model.latent_dim=20")
    theirs = sizes("model=vae", "model/net=conv")
    assert ours["generator"] == pytest.approx(theirs["decoder"], rel=0.1)
    assert ours["discriminator"] == pytest.approx(theirs["encoder"], rel=0.1)


@pytest.mark.parametrize("spec", [GREY, ImageSpec(3, 32, 32)])
def test_the_layers_are_those_of_the_vae_but_for_the_upsampling(spec: ImageSpec) -> None:
    ours = ConvGenerator(spec, 20, channels=(64, 32))
    assert count(ours) == count(ConvDecoder(spec, 20, spec.channels, (64, 32)))
    head = count(nn.Linear(40, 1))
    discriminator = ConvDiscriminator(spec, channels=(32, 64), features=40)
    assert count(discriminator) - head == count(ConvEncoder(spec, 20, (32, 64)))


def test_every_file_of_these_networks_builds() -> None:
    for name in ("gan_tiny", "gan_conv"):
        node = resolve(compose([f"+model/net@net={name}"]))["net"]
        assert build(node, "net").keys() == {"generator", "discriminator"}
