"""Update the step in `status.json` during a run."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from genlab.runs.directory import RunDirectory


class Heartbeat(pl.Callback):
    """Writes the total number of steps before the first, and the step after each validation.

    Before each of them, and before each checkpoint, it checks that the directory is in its place.
    The clock's heartbeats are those of `RunDirectory.beating`.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        total = int(trainer.estimated_stepping_batches)
        self.directory.write_status("running", step=trainer.global_step, total_steps=total)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.directory.heartbeat(trainer.global_step)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.directory.check_place()
