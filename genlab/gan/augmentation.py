"""Augmentations that real and drawn images share, and through which the generator is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.errors import number
from genlab.seeding import Noise
from genlab.tensors import like_images


class DifferentiableAugmentation:
    """Random brightness, shift and cutout, before the discriminator (Zhao et al. 2020).

    With few images the discriminator learns them by heart; it sees each one changed, and the drawn
    ones are changed alike, so that the generator does not learn the changes.

    Args:
        brightness: each image gets brighter or darker by up to half of this.
        translation: largest shift, as a share of the side; what comes in is 0, mid-grey.
        cutout: side of the square that is set to 0, as a share of the side.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self, brightness: float = 1.0, translation: float = 0.125, cutout: float = 0.5
    ) -> None:
        self.brightness = number("brightness", brightness, at_least=0)
        self.translation = number("translation", translation, at_least=0, at_most=1)
        self.cutout = number("cutout", cutout, at_least=0, at_most=1)

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Change images (B, C, H, W) in [-1, 1]; same shape."""
        u = noise.uniform(5).to(x.device)
        x = x + like_images((u[:, 0] - 0.5) * self.brightness, x).to(x.dtype)
        for axis in (2, 3):
            x = _shifted(x, 2 * u[:, axis - 1] - 1, self.translation, axis)
        side_h, side_w = (round(self.cutout * side) for side in x.shape[2:])
        inside = _span(u[:, 3], side_h, x.shape[2])[:, :, None]
        inside = inside & _span(u[:, 4], side_w, x.shape[3])[:, None, :]
        return x * ~inside[:, None]


def _shifted(x: Tensor, u: Tensor, share: float, axis: int) -> Tensor:
    """Shift each image along an axis by round(u * share * side) pixels, u (B,) in [-1, 1)."""
    side = x.shape[axis]
    source = torch.arange(side, device=x.device) - (u * share * side).round().long()[:, None]
    shape = [len(x), 1, 1, 1]
    shape[axis] = side
    index, inside = source.clamp(0, side - 1).view(shape), ((source >= 0) & (source < side))
    return x.gather(axis, index.expand_as(x)) * inside.view(shape)


def _span(u: Tensor, length: int, side: int) -> Tensor:
    """Return which of `side` pixels lie in a span around a random centre, (B, side)."""
    start = (u * (side + 1 - length % 2)).floor().long()[:, None] - length // 2
    place = torch.arange(side, device=u.device)
    return (place >= start) & (place < start + length)
