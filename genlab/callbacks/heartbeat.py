"""What `status.json` says of a run beside its record: how far it goes, and that it is alive."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from genlab.runs.directory import RunDirectory


class Alive(pl.Callback):
    """Tells the total of steps before the first, and beats while nothing is logged."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        total: Any = getattr(pl_module, "total_steps", None)
        self.directory.write_status("running", step=trainer.global_step, total_steps=total)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.directory.heartbeat(trainer.global_step)
