"""Log the size of the gradients during training."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch.optim import Optimizer


class GradientNorm(pl.Callback):
    """Logs `train/grad_norm`: the 2-norm of all gradients of a step, before they are clipped."""

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            found = [p.grad for p in pl_module.parameters() if p.grad is not None]
            pl_module.log("train/grad_norm", torch.nn.utils.get_total_norm(found))
