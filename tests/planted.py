"""Networks of a GAN with a planted fault, named by `_target_`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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


class Certain(ConvDiscriminator):
    """It knows a real image by its many black pixels, and so has no gradient for a generator."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        black = (x == -1).float().mean((1, 2, 3))
        return 100 * black + 1e-3 * super().forward(x, labels)
