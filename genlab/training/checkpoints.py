"""Checkpoints that a kill cannot damage."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from genlab.errors import number
from genlab.runs.files import replacing
from genlab.training import weights


class AtomicCheckpointIO(TorchCheckpointIO):
    """Reads checkpoints by `weights.read`, and writes them atomically.

    It writes a new file beside the target, brings it to the disk and renames it. Lightning's own
    class writes to the temporary folder first. On another filesystem it then copies over
    the old checkpoint, and a kill during the copy loses both. The previous checkpoint is kept as
    `NAME.before.ckpt`, in case the disk corrupts the new one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target, keep=True) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        return weights.read(Path(path))


class BestCheckpoint(Checkpoint):
    """Writes `best.ckpt`, the weights with the lowest `monitor` in validation.

    Its state is that value alone, so that a run that was moved goes on with it.
    """

    def __init__(self, directory: Path, monitor: str) -> None:
        self.path, self.monitor = directory / "best.ckpt", monitor
        self.score = math.inf

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score = float(state_dict["score"])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or self.monitor not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self.monitor])
        is_better = value < self.score or not self.path.exists()
        if trainer.strategy.reduce_boolean_decision(is_better):
            self.score = math.inf if math.isnan(value) else value
            trainer.save_checkpoint(self.path, weights_only=True)


class LastCheckpoint(pl.Callback):
    """Writes `last.ckpt`, from which a run resumes: per epoch, number of steps and time interval.

    `every_n_steps` and `every_n_minutes` apply within an epoch; None is never. On an epoch's last
    step nothing is written before that epoch's validation, which a run resumed from there would
    skip.
    """

    def __init__(
        self,
        directory: Path,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = None,
    ) -> None:
        self.path, self.every_n_steps = directory / "last.ckpt", every_n_steps
        self._every_n_seconds = math.inf if every_n_minutes is None else 60 * every_n_minutes
        self._saved = time.monotonic()
        self._seconds_before, self._started = 0.0, time.monotonic()
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """Time spent in training up to the last epoch, summed over all starts of the run."""
        return self._seconds

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds_before + time.monotonic() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        seconds = number("seconds", state_dict["seconds"], at_least=0)
        self._seconds_before = self._seconds = seconds

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = self._saved = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seconds = self._seconds_before + time.monotonic() - self._started

    def save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved = time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # not at the end of the previous batch: its row reaches the loggers after all callbacks
        if not is_between_steps(trainer, batch_idx):
            return
        every = self.every_n_steps
        is_due = every is not None and trainer.global_step % every == 0
        if is_due or self._is_late(trainer):
            self.save(trainer)

    def _is_late(self, trainer: pl.Trainer) -> bool:
        """Return whether the last checkpoint is too old; several processes agree at intervals."""
        late = time.monotonic() - self._saved > self._every_n_seconds
        if trainer.world_size == 1:
            return late
        if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return False
        return trainer.strategy.reduce_boolean_decision(late, all=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer)


def is_between_steps(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Return whether the next batch is the first of an optimizer step, but not of its epoch."""
    return batch_idx > 0 and batch_idx % trainer.accumulate_grad_batches == 0
