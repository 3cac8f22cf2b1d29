"""Changes of space as objects: stored pixels to what a model sees, and back."""

from __future__ import annotations

from torch import Tensor

from genlab.protocols import ImageSpec


class PixelCodec:
    """Stored pixels to [0, 1] and back; real-valued data pass unchanged.

    Args:
        spec: 8-bit pixels are divided by 255 (so that binarised ones become 0 and 1); pixels of a
            spec without levels are real numbers already.
    """

    def __init__(self, spec: ImageSpec) -> None:
        self.is_discrete = spec.levels is not None

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) uint8 or float to float32."""
        return pixels.float().div_(255.0) if self.is_discrete else pixels.float()

    def decode(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float to uint8 for pictures; values outside [0, 1] are clamped."""
        return x.clamp(0, 1).mul(255.0).round().byte()
