"""Measure the CPU time that logging to W&B adds to a training.

W&B is offline, or its server stops answering when the training begins. The times are those of
the training's thread and of the threads that call W&B.

    python benchmarks/wandb_cost.py

The default VAE on the embedded MNIST, 10 epochs. CPU time rather than wall time, since other
programs on the machine change the latter by more than a fraction of a per cent.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from wandb_stub import WandbStub

from genlab.config.compose import compose
from genlab.tracking.wandb import WandbLogger
from genlab.training import run
from genlab.training.checkpoints import LastCheckpoint

OVERRIDES = ["logger=wandb", "callbacks=none", "forecast=false", "trainer.max_epochs=10"]


class Cost:
    """CPU seconds of the training, and of its logging."""

    def __init__(self, server: WandbStub | None) -> None:
        self.server, self.training = server, 0.0
        self.rows: list[float] = []
        self.beside = 0.0
        self._began: float | None = None

    def begin(self, callback: LastCheckpoint, trainer: pl.Trainer, module: Any) -> None:
        if self.server is not None:
            self.server.behaviour = "stall"
        self.beside, self._began = -_beside(), time.thread_time()

    def end(self, callback: LastCheckpoint, trainer: pl.Trainer, module: Any) -> None:
        assert self._began is not None
        self.training, self._began = time.thread_time() - self._began, None
        self.beside += _beside()

    def log(self, logger: WandbLogger, values: Mapping[str, Any], step: int) -> None:
        began = time.thread_time()
        ORIGINAL(logger, values, step)
        if self._began is not None:
            self.rows.append(time.thread_time() - began)


def _beside() -> float:
    """Return the CPU seconds of the threads that call W&B."""
    clocks = [
        time.pthread_getcpuclockid(thread.ident)
        for thread in threading.enumerate()
        if thread.name.startswith("wandb") and thread.ident is not None
    ]
    return sum(time.clock_gettime(clock) for clock in clocks)


ORIGINAL = WandbLogger._log


@contextlib.contextmanager
def watched(cost: Cost) -> Iterator[None]:
    """Measure the training and the logging in this context."""
    with (
        mock.patch.object(LastCheckpoint, "on_train_start", lambda *a: cost.begin(*a)),
        mock.patch.object(LastCheckpoint, "on_train_end", lambda *a: cost.end(*a)),
        mock.patch.object(WandbLogger, "_log", lambda *a: cost.log(*a)),
    ):
        yield


def measure(server: WandbStub | None) -> Cost:
    """Train once, with this server or offline, and return the cost."""
    cost = Cost(server)
    given = {"WANDB_MODE": "offline"} if server is None else server.variables
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {**given, "WANDB_FINISH_TIMEOUT": "2"}),
        watched(cost),
        contextlib.redirect_stdout(None),
    ):
        run.run(compose([*OVERRIDES, f"runs_dir={folder}"]))
    return cost


def main() -> None:
    """Measure both cases, and print the shares."""
    with WandbStub() as server:
        for name, chosen in (("online, then stalling", server), ("offline", None)):
            cost = measure(chosen)
            first, *others = cost.rows
            each = statistics.mean(others)
            print(
                f"W&B {name}: {1e3 * first:.1f} ms of CPU for the first row, {1e3 * each:.2f} ms "
                f"for each of {len(others)} more: {sum(others) / cost.training:.2%} of "
                f"{cost.training:.1f} s of training, and {cost.beside:.2f} s in W&B's threads"
            )
        server.released.set()


if __name__ == "__main__":
    main()
