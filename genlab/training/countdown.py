"""Progress of a long test: how much of it is done, and how long it still takes."""

from __future__ import annotations

import time
from collections.abc import Callable

import lightning.pytorch as pl
from torch import Tensor

from genlab.callbacks.base import generative
from genlab.protocols import EvaluatesInTerms
from genlab.runs.text import in_words


class Countdown(pl.Callback):
    """Prints a line on the test from time to time; a short test has none.

    The test of a diffusion model computes all T terms of the bound of every image.

    Args:
        every_seconds: time between two lines.
        known: returns the number of terms so far that need not be computed.
    """

    def __init__(
        self, every_seconds: float = 30.0, *, known: Callable[[], int] = lambda: 0
    ) -> None:
        self.every_seconds, self.known = every_seconds, known
        self._total = self._done = 0
        self._started = self._told = 0.0

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = generative(pl_module)
        terms = 1
        if isinstance(module.model, EvaluatesInTerms):
            terms = module.model.evaluation_terms(full=True)
        self._total, self._done = terms * int(sum(trainer.num_test_batches)), 0
        self._started = self._told = time.monotonic()
        if trainer.is_global_zero:
            module.on_term.append(self._count)

    def _count(self, rows: Tensor | None) -> None:
        self._done += 1
        now, left = time.monotonic(), self._total - self._done - self.known()
        if now - self._told < self.every_seconds or left == 0:
            return
        self._told = now
        seconds = (now - self._started) * left / self._done
        share = (self._total - left) / self._total
        print(f"test   {share:.0%} done, {in_words(seconds)} to go", flush=True)
