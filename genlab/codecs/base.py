"""The interface of a codec. To add one, write a subclass and a YAML file in `conf/model/codec/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from genlab.protocols import ImageSpec, NetworkExport
from genlab.seeding import Noise


class Coded(NamedTuple):
    """The codes of B images, and what they cost without a model of them.

    Attributes:
        x0: what is diffused, (B, C, h, w).
        nats: named terms (B,) of the bound on -log p(image) that belong to the codec.
    """

    x0: Tensor
    nats: Mapping[str, Tensor]


class Codec(nn.Module, ABC):
    """A map from images (B, C, H, W) in [0, 1] to what is diffused, x_0, and back.

    It has two steps: `inputs` is all that depends on the image alone, and `draw` adds the noise.

    Args:
        spec: shape and kind of the images.

    Attributes:
        code: shape and kind of x_0. With 256 levels x_0 lies on a grid in [-1, 1], and L_0 is the
            probability of a level; without levels x_0 are real numbers, and L_0 is a density.
        is_costly: whether `inputs` runs networks, so that keeping its result saves work.
    """

    code: ImageSpec
    is_costly: bool = False

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        self.spec = spec

    @abstractmethod
    def inputs(self, x: Tensor) -> Tensor:
        """Compute what `draw` needs of images (B, C, H, W) in [0, 1], (B, ...)."""

    @abstractmethod
    def draw(self, inputs: Tensor, noise: Noise) -> Tensor:
        """Draw x_0, (B, C, h, w), from the result of `inputs`."""

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """Map x_0 to images (B, C, H, W), where [-1, 1] is black to white; the mean if random."""

    @abstractmethod
    def coded(self, x: Tensor, noise: Noise) -> Coded:
        """Draw x_0 of images, with the codec's terms of the bound."""

    @abstractmethod
    def bound(self, coded: Coded, decoder: Tensor, diffusion: Tensor) -> dict[str, Tensor]:
        """Split the bound on -log p(image) into `reconstruction` and `kl`, (B,) in nats.

        Args:
            decoder: (B,), L_0 of x_0.
            diffusion: (B,), the other terms of the bound on x_0.

        Returns:
            The two, whose sum is the bound, and parts of them by further names.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return the end of a sentence that says what x_0 is: "x is ..."."""

    def encode(self, x: Tensor, noise: Noise) -> Tensor:
        """Draw x_0 of images (B, C, H, W) in [0, 1]."""
        return self.draw(self.inputs(x), noise)

    def exports(self) -> dict[str, NetworkExport]:
        """Return the networks of the codec that can be exported, by name; by default none."""
        return {}
