"""The words that the parts of genlab share: what an image is, and what a model can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from genlab.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ImageSpec:
    """The shape and the kind of the images of a data set, known before any of them is read.

    Attributes:
        channels: 1 for grey, 3 for colour.
        height, width: in pixels.
        levels: number of values a pixel can take (256 for 8 bits, 2 after binarisation); None where
            pixels are real numbers.
        classes: names of the labels, in the order of their numbers; empty without labels.
    """

    channels: int
    height: int
    width: int
    levels: int | None = 256
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("channels", "height", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: an image needs at least 1")
        if self.levels is not None and self.levels < 2:
            raise ConfigError(f"levels={self.levels}: a pixel takes at least 2 values, or None")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.height, self.width)

    @property
    def dims(self) -> int:
        """D = C * H * W, the number by which nats become bits/dim."""
        return self.channels * self.height * self.width


@runtime_checkable
class CanSample(Protocol):
    """A model that draws images from nothing but noise."""

    def sample(self, n: int, seed: int) -> Tensor:
        """n images (n, C, H, W) in [0, 1]; image i depends on (seed, i) alone."""
        ...


@runtime_checkable
class CanReconstruct(Protocol):
    """A model that encodes an image and gives it back."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to their mean reconstructions, same shape and range."""
        ...


@runtime_checkable
class CanInterpolate(Protocol):
    """A model with a space in which one image can turn into another."""

    def interpolate(self, a: Tensor, b: Tensor, steps: int) -> Tensor:
        """Pairs (B, C, H, W) to (B, steps, C, H, W), from a to b, in [0, 1]."""
        ...


@runtime_checkable
class HasBound(Protocol):
    """A model with a bound on the likelihood, split into the two terms of the metric contract."""

    def bound(self, x: Tensor) -> dict[str, Tensor]:
        """Images (B, C, H, W) to `reconstruction` and `kl`, each (B,), in nats per image."""
        ...
