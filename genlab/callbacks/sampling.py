"""Measure samples: their cost, and their distance from the test images."""

# no postponed annotations: see genlab.callbacks.base

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import lightning.pytorch as pl
from torch import Tensor, nn

from genlab.callbacks.base import Pixels, data_of, first_images, shown
from genlab.callbacks.pictures import PictureCallback
from genlab.errors import whole
from genlab.media import pictures
from genlab.metrics.distances import energy_distance
from genlab.modules.base import GenerativeModule
from genlab.protocols import CanSample, HasNetworks, HasTrajectory


@dataclass(eq=False, kw_only=True)
class MeasuredSamples(PictureCallback):
    """Draws samples, and computes metrics of them in the test.

    The metrics are `energy_distance` from the first test images, `seconds_per_sample`, and, for a
    model that samples step by step, `evaluations`, those of its networks for one sample: guidance
    takes two at each step.

    Args:
        images: number of samples in the picture.
        measured: number of samples that are compared with as many test images.
    """

    name: ClassVar[str] = "samples"

    images: int = 36
    every_n_epochs: int = 0
    measured: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("measured", self.measured, max(2, self.images))

    def draw(self, trainer: pl.Trainer, module: GenerativeModule) -> dict[str, Pixels]:
        model = module.model
        if not isinstance(model, CanSample):
            return {}
        started = time.perf_counter()
        x, rows = counting_rows(model, lambda: model.sample(self.measured, module.seed).cpu())
        elapsed = time.perf_counter() - started
        if trainer.testing:
            real = first_images(data_of(trainer), "test", self.measured)
            metrics = {
                "test/energy_distance": energy_distance(x, real),
                "test/seconds_per_sample": elapsed / self.measured,
            }
            if isinstance(model, HasTrajectory):
                metrics["test/evaluations"] = rows / self.measured
            module.log_float64(metrics, rank_zero_only=True)
        caption = self.caption(trainer, "Samples")
        picture = pictures.grid(shown(model, x[: self.images]), caption=caption)
        return {self.name: picture}


def counting_rows(model: object, draw: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """Draw, and count the rows of the batches that the model's networks compute."""
    rows = 0

    def count(network: nn.Module, inputs: object, output: Tensor) -> None:
        nonlocal rows
        rows += len(output)

    networks = model.networks() if isinstance(model, HasNetworks) else {}
    with ExitStack() as hooks:
        for network in networks.values():
            hooks.callback(network.register_forward_hook(count).remove)
        drawn = draw()
    return drawn, rows
