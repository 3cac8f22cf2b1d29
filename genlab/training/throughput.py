"""Training speed: images per second, and model FLOPs utilisation (MFU)."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl

from genlab.callbacks.base import generative
from genlab.training.hardware import peak_flops


class Throughput(pl.Callback):
    """Logs `train/images_per_second` and `train/mfu` with each training row.

    The model FLOPs utilisation is the rate times the floating-point operations of a forward and
    backward pass, over the peak of the device (Chowdhery et al. 2022, appendix B).

    Args:
        flops_per_image: the operations of a training step per image; None if they are not known.
    """

    def __init__(self, flops_per_image: float | None = None) -> None:
        self._flops_per_image = flops_per_image
        self._peak: float | None = None
        self._started, self._images, self._step = 0.0, 0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._peak = peak_flops(pl_module.device, str(trainer.precision))
        self._started, self._images = time.perf_counter(), 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._images += len(batch["image"])
        if trainer.global_step == self._step:  # between two batches that accumulate gradients
            return
        self._step = trainer.global_step
        if self._step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        now = time.perf_counter()
        rate = self._images * trainer.world_size / max(now - self._started, 1e-9)
        self._started, self._images = now, 0
        row = {"train/images_per_second": rate}
        if self._flops_per_image and self._peak:
            row["train/mfu"] = rate * self._flops_per_image / (self._peak * trainer.world_size)
        generative(pl_module).log_float64(row)
