"""An exponential moving average (EMA) of the weights, used wherever the model is evaluated."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from genlab.errors import ConfigError
from genlab.training.sharding import reshard, sharded_like, unsharded


def averaged(module: nn.Module) -> dict[str, Tensor]:
    """Return what is averaged: the trained weights, and the buffers listed as `averaged`."""
    found = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    for prefix, part in module.named_modules():
        for name in getattr(part, "averaged", ()):
            found[f"{prefix}.{name}".lstrip(".")] = part.get_buffer(name)
    return found


class WeightAverage(pl.Callback):
    """Keeps average <- d * average + (1 - d) * weights, d = min(decay, (1 + n) / (10 + n)).

    Buffers that a module lists in its attribute `averaged`, such as a running variance, are
    averaged too. Validation, pictures and checkpoints see the average; training goes on with the
    raw weights. The `state_dict` of every checkpoint therefore holds the average, for evaluation.
    The raw weights are in this callback's state, from which a resumed run restores them.

    Lightning's own callback swaps the weights back before `on_validation_epoch_end`, so that
    callbacks which sample there use the raw weights. This one keeps the average from
    `on_validation_start` until training continues, since a checkpoint that holds only weights, such
    as `best.ckpt`, is written in `on_validation_end` without the state of callbacks. It must be the
    first callback.

    Args:
        decay: the limit of d, in (0, 1); the ratio above lets the average follow quickly at first.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay={decay}: give a number between 0 and 1")
        self.decay = decay
        self.updates = 0
        self.average: list[Tensor] = []
        self.swapped = False

    def _weights(self, module: pl.LightningModule) -> list[Tensor]:
        return list(averaged(module).values())

    def _names(self, module: pl.LightningModule) -> list[str]:
        return list(averaged(module))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        weights = self._weights(pl_module)
        if self.average:
            self.average = [sharded_like(a, w) for a, w in zip(self.average, weights, strict=True)]
        else:
            self.average = [w.clone() for w in weights]

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step == self.updates:  # between two steps that accumulate gradients
            return
        self.updates = trainer.global_step
        d = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, self._weights(pl_module), 1 - d)

    @torch.no_grad()
    def _swap(self, module: pl.LightningModule) -> None:
        reshard(module)
        for weight, average in zip(self._weights(module), self.average, strict=True):
            raw = weight.clone()
            weight.copy_(average)
            average.copy_(raw)
        self.swapped = not self.swapped

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._swap(pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.swapped:
            self._swap(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.swapped:
            self._swap(pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        names = self._names(pl_module)
        weights = [unsharded(w) for w in self._weights(pl_module)]
        average = [unsharded(a) for a in self.average]
        raw, averaged = (average, weights) if self.swapped else (weights, average)
        checkpoint["state_dict"].update(zip(names, averaged, strict=True))
        checkpoint["raw_weights"] = dict(zip(names, raw, strict=True))
        checkpoint["ema_updates"] = self.updates

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        names = self._names(pl_module)
        if "raw_weights" not in checkpoint:
            raise ConfigError(
                "ema_decay: the checkpoint was written without averaged weights; "
                "resume it without them, or start anew with overwrite=true"
            )
        self.average = [checkpoint["state_dict"][name].clone() for name in names]
        self.updates, self.swapped = checkpoint["ema_updates"], False
        with torch.no_grad():
            for name, weight in zip(names, self._weights(pl_module), strict=True):
                weight.copy_(sharded_like(checkpoint["raw_weights"][name], weight))
