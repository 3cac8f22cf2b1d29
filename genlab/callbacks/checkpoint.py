"""Checkpoints that a kill cannot spoil, and stops that lose nothing."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from genlab.errors import INTERRUPTED, PREEMPTED


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, brings it to the disk, then renames: the old file or the new one.

    Lightning's own goes through the temporary folder, which on another filesystem means a copy over
    the old checkpoint, and a kill in the middle of that loses both.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def best_checkpoint(directory: Path, monitor: str) -> ModelCheckpoint:
    """`best.ckpt`: the weights of the validation at which `monitor` was lowest."""
    best = ModelCheckpoint(
        dirpath=directory,
        filename="best",
        monitor=monitor,
        save_top_k=1,
        save_weights_only=True,
        save_on_train_epoch_end=False,  # after the validation, so that last.ckpt knows of it
        enable_version_counter=False,
    )
    best.on_train_batch_end = None  # type: ignore[assignment, method-assign]  # costs, saves nothing
    return best


class LastCheckpoint(pl.Callback):
    """`last.ckpt`, after every epoch and every `every_n_steps` steps: where an ended run goes on.

    On an epoch's last step nothing is written before that epoch's validation: a run resumed from
    there would skip it.
    """

    def __init__(self, directory: Path, every_n_steps: int | None = None) -> None:
        self.path, self.every_n_steps = directory / "last.ckpt", every_n_steps
        self._seconds_before, self._started = 0.0, time.monotonic()
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """Time spent in training, over all the processes that it took, up to its last epoch."""
        return self._seconds

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds_before + time.monotonic() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds_before = self._seconds = state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seconds = self._seconds_before + time.monotonic() - self._started

    def save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if (
            self.every_n_steps is not None
            and trainer.global_step % self.every_n_steps == 0
            and not trainer.is_last_batch
        ):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer)


class Stopped(BaseException):
    """Raised between two steps, after `last.ckpt` was written, because a signal asked for it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = INTERRUPTED if signum == signal.SIGINT else PREEMPTED


class StopOnSignal(pl.Callback):
    """SIGINT and SIGTERM finish the step, write `last.ckpt` and raise `Stopped`.

    A second SIGINT stops at once. Signals reach the main thread alone, so that elsewhere nothing is
    installed.
    """

    def __init__(self, last: LastCheckpoint) -> None:
        self.last, self.received = last, 0
        self._before: dict[int, Any] = {}

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == signum:
            raise KeyboardInterrupt
        self.received = signum

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if threading.current_thread() is threading.main_thread() and not self._before:
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._on_signal)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # the last step of an epoch stops after the validation, which a resumed run would skip
        if self.received and not trainer.is_last_batch:
            self.last.save(trainer)
            raise Stopped(self.received)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.received:
            self.last.save(trainer)
            raise Stopped(self.received)
