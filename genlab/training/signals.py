"""Stop without loss: on a signal, finish the step and write `last.ckpt`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from genlab.modules.base import GenerativeModule
from genlab.training import interrupts
from genlab.training.checkpoints import LastCheckpoint, is_between_steps
from genlab.training.interrupts import OF_SLURM, Stopped
from genlab.training.kept_terms import smallest
from genlab.training.slurm import is_being_preempted


class StopOnSignal(pl.Callback):
    """Finishes the step and writes `last.ckpt` on SIGINT, SIGTERM, and SLURM's SIGUSR1 and SIGUSR2.

    Then it raises `Stopped`. Before that, it calls the previous handler of SIGUSR1 or SIGUSR2, such
    as submitit's, which requeues the job: on that signal, and on the SIGTERM by which SLURM
    announces a preemption. A second SIGINT stops at once. Signals reach only the main thread, so
    that in other threads nothing is installed.

    After the last batch of a test there is nothing left to save, and callbacks may draw for hours:
    a run of one process then stops wherever it is.
    """

    def __init__(self, last: LastCheckpoint) -> None:
        self.last, self.received = last, 0
        self._together, self._is_together = 0, False  # batches of a test that all processes have
        self._before: dict[int, Any] = {}
        self._after_batch: pl.Trainer | None = None  # of a test, in which nothing can be lost

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == signum:
            raise KeyboardInterrupt
        self.received = signum
        if self._after_batch is not None:
            self._leave(self._after_batch)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals from before the training to after the test.

        Hooks cannot do this: if training raises, Lightning restores the handlers that it found,
        which are ours, after the last hook, and they would remain for the next run.
        """
        if threading.current_thread() is not threading.main_thread():
            with self._named():
                yield
            return
        self.received = interrupts.received()
        for signum in (signal.SIGINT, signal.SIGTERM, *OF_SLURM):
            self._before[signum] = signal.signal(signum, self._on_signal)
        try:
            with self._named():
                yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before, self._after_batch = {}, None

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Raise `Stopped` where Lightning ends the process by itself.

        It does so with exit code 0 after SIGTERM, and with 1 after a `KeyboardInterrupt`.
        """
        try:
            yield
        except (KeyboardInterrupt, SystemExit) as end:
            signum = self.received
            if isinstance(end, SIGTERMException):  # also if another process received the signal
                signum = signal.SIGTERM
            elif KeyboardInterrupt in (type(end), type(end.__context__)):
                signum = signal.SIGINT
            if signum and not isinstance(end.__cause__, Stopped):
                raise Stopped(signum) from end
            raise

    def _take_over(self) -> None:
        """Replace Lightning's handler, which wraps ours.

        It would end a validation at once, without a checkpoint and with exit code 0.
        """
        for signum in self._before:
            signal.signal(signum, self._on_signal)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take_over()
        if self._is_asked(trainer):  # nothing to save: no step was made since the last checkpoint
            self._leave(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take_over()
        if isinstance(pl_module, GenerativeModule):  # which also tells of terms within a batch
            self._together = smallest(trainer, int(sum(trainer.num_test_batches)))
            pl_module.on_term.append(lambda rows: self._between_terms(trainer))

    def on_test_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._is_together, self._after_batch = batch_idx < self._together, None

    def on_test_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        # all is trained and saved
        if trainer.world_size == 1:
            self._after_batch = trainer
            if self.received:
                self._leave(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._after_batch = None

    def _between_terms(self, trainer: pl.Trainer) -> None:
        # a batch that other processes do not have is ended, while they wait for its metrics
        if (self._is_together or trainer.world_size == 1) and self._is_asked(trainer):
            self._leave(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # after the last step of an epoch comes the validation, which a resumed run would skip
        if is_between_steps(trainer, batch_idx) and self._is_asked(trainer):
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._is_asked(trainer):
            self._stop(trainer)

    def _is_asked(self, trainer: pl.Trainer) -> bool:
        """Return whether any process of the run received a signal: all must stop at one step."""
        asked = self.received
        if trainer.world_size > 1:
            mine = torch.tensor(asked, device=trainer.strategy.root_device)
            asked = int(trainer.strategy.reduce(mine, reduce_op="max"))
            # a signal that arrived after the exchange between processes counts at the next step
            self.received = asked or self.received
        return bool(asked)

    def _stop(self, trainer: pl.Trainer) -> NoReturn:
        self.last.save(trainer)
        self._leave(trainer)

    def _leave(self, trainer: pl.Trainer) -> NoReturn:
        self._after_batch = None
        stopped = Stopped(self.received)
        is_term = self.received == signal.SIGTERM
        is_taken = is_term and trainer.is_global_zero and is_being_preempted()
        for signum in OF_SLURM:
            handler = self._before.get(signum)
            if callable(handler) and (is_taken or signum == self.received):
                try:
                    handler(self.received, None)
                except SystemExit as end:
                    raise end from stopped
        raise stopped
