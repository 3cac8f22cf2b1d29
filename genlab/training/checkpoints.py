"""Checkpoints that a kill cannot spoil, and stops that lose nothing."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from genlab.errors import INTERRUPTED, PREEMPTED
from genlab.runs.files import replacing
from genlab.training.slurm import is_being_preempted

#: What SLURM sends before a job's end if the job asked for it; submitit asks for SIGUSR2.
_OF_SLURM = (signal.SIGUSR2, signal.SIGUSR1)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, brings it to the disk, then renames: the old file or the new one.

    Lightning's own goes through the temporary folder, which on another filesystem means a copy over
    the old checkpoint, and a kill in the middle of that loses both. The one before is kept as
    `NAME.before.ckpt`, for the day on which a disk gives back something else than was written.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target, keep=True) as file:
            torch.save(checkpoint, file)


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
    """`last.ckpt`, where an ended run goes on: after every epoch, step count and span of time.

    `every_n_steps` and `every_n_minutes` are about the time within an epoch, None for never. On an
    epoch's last step nothing is written before that epoch's validation: a run resumed from there
    would skip it.
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
        """Time spent in training, over all the processes that it took, up to its last epoch."""
        return self._seconds

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds_before + time.monotonic() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds_before = self._seconds = state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = self._saved = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seconds = self._seconds_before + time.monotonic() - self._started

    def save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        every = self.every_n_steps
        due = every is not None and trainer.global_step % every == 0
        if not trainer.is_last_batch and (due or self._is_late(trainer)):
            self.save(trainer)

    def _is_late(self, trainer: pl.Trainer) -> bool:
        """Whether the last checkpoint is too old; several processes must agree, now and then."""
        late = time.monotonic() - self._saved > self._every_n_seconds
        if trainer.world_size == 1:
            return late
        if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return False
        return trainer.strategy.reduce_boolean_decision(late, all=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer)


class Stopped(BaseException):
    """Raised between two steps, after `last.ckpt` was written, because a signal asked for it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = INTERRUPTED if signum == signal.SIGINT else PREEMPTED


class StopOnSignal(pl.Callback):
    """SIGINT, SIGTERM and SLURM's SIGUSR1 and SIGUSR2 finish the step and write `last.ckpt`.

    Then `Stopped` is raised, but whoever handled SIGUSR1 or SIGUSR2 before, as submitit, which puts
    the job back into the queue, is called first: on that signal, and on a SIGTERM by which SLURM
    announces that the job's node is taken from it. A second SIGINT stops at once. Signals reach the
    main thread alone, so that elsewhere nothing is installed.
    """

    def __init__(self, last: LastCheckpoint) -> None:
        self.last, self.received = last, 0
        self._before: dict[int, Any] = {}

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == signum:
            raise KeyboardInterrupt
        self.received = signum

    @contextmanager
    def listening(self) -> Iterator[None]:
        """From before the training to after the test, and what lies between them.

        Not by hooks: where training raises, Lightning puts the handlers back that it found, which
        are ours, after the last hook, and they would be those of the next run.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        for signum in (signal.SIGINT, signal.SIGTERM, *_OF_SLURM):
            self._before[signum] = signal.signal(signum, self._on_signal)
        try:
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before = {}

    def _take_over(self) -> None:
        """From Lightning, which wraps our handler into one of its own.

        That one would leave a validation at once, without a checkpoint and with exit code 0.
        """
        for signum in self._before:
            signal.signal(signum, self._on_signal)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take_over()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take_over()

    def on_test_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        # all is trained and saved; of several processes none may leave the others alone
        if self.received and trainer.world_size == 1:
            self._leave(trainer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # the last step of an epoch stops after the validation, which a resumed run would skip
        if self._is_asked(trainer) and not trainer.is_last_batch:
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._is_asked(trainer):
            self._stop(trainer)

    def _is_asked(self, trainer: pl.Trainer) -> bool:
        """Whether a signal came, to whichever process of the run: all must stop at one step."""
        asked = self.received
        if trainer.world_size > 1:
            mine = torch.tensor(asked, device=trainer.strategy.root_device)
            asked = int(trainer.strategy.reduce(mine, reduce_op="max"))
            # a signal may have come since this process was asked: it is for the next step
            self.received = asked or self.received
        return bool(asked)

    def _stop(self, trainer: pl.Trainer) -> NoReturn:
        self.last.save(trainer)
        self._leave(trainer)

    def _leave(self, trainer: pl.Trainer) -> NoReturn:
        stopped = Stopped(self.received)
        is_term = self.received == signal.SIGTERM
        is_taken = is_term and trainer.is_global_zero and is_being_preempted()
        for signum in _OF_SLURM:
            handler = self._before.get(signum)
            if callable(handler) and (is_taken or signum == self.received):
                try:
                    handler(self.received, None)
                except SystemExit as end:
                    raise end from stopped
        raise stopped
