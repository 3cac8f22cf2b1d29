"""The codec of a diffusion model on pixels."""

from __future__ import annotations

from torch import Tensor

from genlab.codecs.base import Codec, Coded
from genlab.protocols import ImageSpec
from genlab.seeding import Noise

LEVELS = 256


class PixelCodec(Codec):
    """The pixels themselves, from [0, 1] to [-1, 1]: x_0 = 2 x - 1.

    L_0 is the reconstruction term, and the rest of the bound the KL (Ho et al. 2020, eq. 5).

    Raises:
        ValueError: if the images do not have 8 bits, for which L_0 is defined.
    """

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__(spec)
        check_levels(spec)
        self.code = spec

    def inputs(self, x: Tensor) -> Tensor:
        return 2 * x - 1

    def draw(self, inputs: Tensor, noise: Noise) -> Tensor:
        return inputs

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def coded(self, x: Tensor, noise: Noise) -> Coded:
        return Coded(self.inputs(x), {})

    def bound(self, coded: Coded, decoder: Tensor, diffusion: Tensor) -> dict[str, Tensor]:
        return {"reconstruction": decoder, "kl": diffusion}

    def describe(self) -> str:
        return "x is in [-1, 1]"


def check_levels(spec: ImageSpec) -> None:
    """Raise ValueError unless the images have 8 bits, for which L_0 is defined."""
    if spec.levels == LEVELS:
        return
    if spec.levels == 2:
        raise ValueError(
            "the bound of a DDPM is that of pixels of 256 levels, and these "
            "have 2; set data.binarisation=none"
        )
    kind = "are real numbers" if spec.levels is None else f"have {spec.levels} levels"
    raise ValueError(
        f"the pixels {kind}, and the bound of a DDPM is that of pixels of 256 levels; "
        "choose data of 8 bits, for instance data=mnist"
    )
