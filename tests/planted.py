"""Networks of a GAN with a planted fault, named by `_target_`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.data.sources import MNISTMini
from genlab.nets.gan import ConvDiscriminator, ConvGenerator


class Collapsed(ConvGenerator):
    """All z give the same image."""

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return super().forward(torch.zeros_like(z), labels)


class Blocks(ConvGenerator):
    """Each of 49 z sets a square of 4 x 4 pixels: as diverse as images can be, and no digits."""

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        trained = super().forward(z, labels)
        return F.interpolate(3 * z.view(-1, 1, 7, 7), scale_factor=4) + 1e-3 * trained


class OneClass(ConvGenerator):
    """Each z gives another real image of an eight: as diverse as these are, and no other digit."""

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return _real(z, torch.full((len(z),), 8)) + 1e-3 * super().forward(z, labels)


class AllClasses(ConvGenerator):
    """Each z gives another real image, of any digit."""

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        digits = (10 * _uniform(z[:, 1])).long()
        return _real(z, digits) + 1e-3 * super().forward(z, labels)


class OnePerClass(ConvGenerator):
    """All z give the same real image of a class."""

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        assert labels is not None
        return _real(torch.zeros_like(z), labels) + 1e-3 * super().forward(z, labels)


class AnyOfClass(ConvGenerator):
    """Each z gives another real image of a class."""

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        assert labels is not None
        return _real(z, labels) + 1e-3 * super().forward(z, labels)


@cache
def _digits() -> list[Tensor]:
    """The training images of each digit, in [-1, 1]."""
    pixels, labels = MNISTMini().load(Path(), "train")
    x, y = 2 * torch.from_numpy(pixels).float() / 255 - 1, torch.from_numpy(labels)
    return [x[y == digit] for digit in range(10)]


def _uniform(z: Tensor) -> Tensor:
    """Map normal to uniform random numbers in [0, 1)."""
    return torch.special.ndtr(z.double()).clamp(0, 1 - 1e-9)


def _real(z: Tensor, digits: Tensor) -> Tensor:
    """Return a real image of each digit, chosen by z."""
    chosen = zip(_uniform(z[:, 0]).tolist(), digits.tolist(), strict=True)
    return torch.stack([_digits()[d][int(u * len(_digits()[d]))] for u, d in chosen])


class Certain(ConvDiscriminator):
    """It knows a real image by its many black pixels, and so has no gradient for a generator."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        black = (x == -1).float().mean((1, 2, 3))
        return 100 * black + 1e-3 * super().forward(x, labels)
