"""Samples that are timed and held against the test images: what a sampler costs and is worth."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from genlab.callbacks.pictures import PictureCallback, Pixels
from genlab.checks import whole
from genlab.media import pictures
from genlab.protocols import CanSample


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| of images (N, C, H, W), |.| the Euclidean norm.

    Zero if and only if both come from one distribution (Székely & Rizzo 2013); estimated without
    bias, and so now and then below zero where they do.
    """
    x, y = x.flatten(1).double(), y.flatten(1).double()

    def within(z: Tensor) -> Tensor:
        return torch.cdist(z, z).sum() / (len(z) * (len(z) - 1))

    return float(2 * torch.cdist(x, y).mean() - within(x) - within(y))


class MeasuredSamples(PictureCallback):
    """Samples in the test, and as metrics of it `energy_distance` from the first test images,
    `seconds_per_sample`, and of a diffusion model `evaluations` of its network.

    Args:
        images: how many are pictured.
        measured: how many are drawn, and compared with as many test images.
    """

    name = "samples"

    def __init__(
        self, directory: Path, images: int = 36, every_n_epochs: int = 0, measured: int = 128
    ) -> None:
        super().__init__(directory, images, every_n_epochs)
        self.measured = whole(f"callbacks.{self.name}.measured", measured, max(2, images))
        self._metrics: dict[str, float] = {}

    def draw(self, trainer: pl.Trainer, module: Any) -> dict[str, Pixels]:
        if not isinstance(module, CanSample):
            return {}
        model: Any = module
        evaluations = 0

        def count(*args: Any) -> None:
            nonlocal evaluations
            evaluations += 1

        network = model.networks().get("net")
        handle = None if network is None else network.register_forward_hook(count)
        started = time.perf_counter()
        x = model.sample(self.measured, model.seed).cpu()
        elapsed = time.perf_counter() - started
        if handle is not None:
            handle.remove()
        pixels = trainer.datamodule.pixels("test")[: self.measured]  # type: ignore[attr-defined]
        real = model.codec.encode(torch.from_numpy(np.array(pixels)))
        self._metrics = {
            "energy_distance": energy_distance(x, real),
            "seconds_per_sample": elapsed / self.measured,
            **({} if handle is None else {"evaluations": float(evaluations)}),
        }
        caption = self.caption(trainer, module, "Samples")
        shown = pictures.grid(self.shown(module, x[: self.images]), caption=caption)
        return {self.name: shown}

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Later than the module's own end of the test, which sets its metrics anew."""
        if self._metrics:
            pl_module.record("test", self._metrics, trainer.global_step)
            pl_module.final_metrics |= self._metrics
