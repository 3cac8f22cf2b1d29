"""CPU time of a training step of a DDPM in pixels, in latents, and in latents kept on the disk.

    python benchmarks/latents.py

The network has the same blocks everywhere; images have 3 x 32 x 32 pixels, latents 4 x 8 x 8. The
three take turns, in one process of one thread.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import statistics
import time
from collections.abc import Callable

import torch

from genlab.codecs.latents import LatentCodec
from genlab.codecs.pixels import PixelCodec
from genlab.diffusion.model import DDPM
from genlab.diffusion.parameterizations import Epsilon
from genlab.diffusion.samplers import DDIM
from genlab.diffusion.schedules import Linear
from genlab.diffusion.time_samplers import LowDiscrepancy
from genlab.diffusion.variances import FixedLarge
from genlab.diffusion.weightings import Simple
from genlab.nets.unet import UNet
from genlab.nets.vae import MapDecoder, MapEncoder
from genlab.protocols import ImageSpec
from genlab.seeding import BatchNoise
from genlab.vae.kl_schedules import Constant
from genlab.vae.likelihoods import DiscretizedLogisticLikelihood
from genlab.vae.model import VAE, Networks
from genlab.vae.priors import StandardNormal

SPEC = ImageSpec(3, 32, 32)
BATCH, STEPS, ROUNDS = 64, 3, 7


def vae(spec: ImageSpec) -> VAE:
    """Return a VAE whose latents are maps 4 times smaller, of the size of `model/net=conv_4x`."""
    likelihood = DiscretizedLogisticLikelihood()
    nets = Networks(MapEncoder, MapDecoder)
    return VAE(spec, 256, 1.0, likelihood, StandardNormal, Constant(), nets)


def model(codec: Callable[..., PixelCodec | LatentCodec]) -> DDPM:
    """Return a DDPM with a network of three levels, one block each."""
    return DDPM(
        SPEC,
        1000,
        Linear(),
        Epsilon(),
        Simple(),
        LowDiscrepancy(),
        FixedLarge(),
        DDIM(),
        lambda **given: UNet(channels=32, multipliers=(1, 2, 2), **given),
        codec,
    )


def main() -> None:
    """Print CPU microseconds per image, the median of all rounds, and the ratios to pixels."""
    torch.manual_seed(0)
    x = torch.rand(BATCH, *SPEC.shape)
    pixels, latents = model(PixelCodec), model(lambda spec: LatentCodec(spec, vae))
    inputs = latents.inputs(x)
    losses = {
        "pixels": (pixels, lambda: pixels.loss(x)),
        "latents": (latents, lambda: latents.loss(x)),
        "latents, kept": (
            latents,
            lambda: latents.loss_of_inputs(inputs, None, None, BatchNoise(BATCH)),
        ),
    }
    optimizers = {
        name: torch.optim.AdamW(m.net.parameters(), fused=True) for name, (m, _) in losses.items()
    }
    found: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(ROUNDS + 1):
        for name, (_, loss) in losses.items():
            start = time.process_time()
            for _ in range(STEPS):
                optimizers[name].zero_grad()
                loss()["loss"].backward()
                optimizers[name].step()
            found[name].append((time.process_time() - start) / (STEPS * BATCH) * 1e6)
    first = statistics.median(found["pixels"][1:])
    for name, values in found.items():
        low, middle, high = min(values[1:]), statistics.median(values[1:]), max(values[1:])
        print(
            f"{name:14} {middle:8,.0f} us/image ({low:,.0f} to {high:,.0f})  {first / middle:.1f}"
        )


if __name__ == "__main__":
    main()
