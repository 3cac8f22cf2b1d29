"""Search for a learning rate before the training, by a few steps with growing rates."""

# Annotations are evaluated here: a config is checked against them.

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import LearningRateFinder

from genlab.errors import ConfigError, TrainingError, number, whole

#: Lightning looks for the steepest fall after so many steps, and needs two of them.
_FEWEST = 20


class LearningRateSearch(pl.Callback):
    """Says at which learning rate the loss falls fastest; the training then goes on as configured.

    The rate grows from step to step, and the loss is recorded (Smith 2017, sec. 3.3), by
    Lightning's `LearningRateFinder`; afterwards weights and optimizer are as before, and the
    training is the same to the last bit. A training that is resumed is not searched again.

    Args:
        min_lr, max_lr: the first and the last rate.
        steps: number of optimizer steps; at most as many as the training has.

    Raises:
        ValueError: if a value is outside its range.
    """

    def __init__(self, min_lr: float = 1e-6, max_lr: float = 0.1, steps: int = 100) -> None:
        number("min_lr", min_lr, above=0)
        if not max_lr > min_lr:
            raise ValueError(f"max_lr={max_lr:g}: give a rate above min_lr={min_lr:g}")
        self.min_lr, self.max_lr = min_lr, max_lr
        self.steps = whole("steps", steps, _FEWEST)
        self.found: float | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = Path(trainer.default_root_dir)
        for left in folder.glob(".lr_find_*.ckpt"):  # by a search that was killed
            if trainer.is_global_zero:
                left.unlink(missing_ok=True)
        if trainer.ckpt_path is not None:
            return
        if len(trainer.optimizers) != 1:
            raise ConfigError(
                f"callbacks.lr_find: this model has {len(trainer.optimizers)} optimizers, and one "
                "rate is searched for; leave it out"
            )
        group = trainer.optimizers[0].param_groups[0]
        configured = float(group.get("initial_lr", group["lr"]))  # before a warm-up
        finder = LearningRateFinder(self.min_lr, self.max_lr, self.steps, update_attr=False)
        try:
            with _quiet():
                finder.lr_find(trainer, pl_module)
        except TrainingError as error:
            raise ConfigError(
                f"callbacks.lr_find.max_lr={self.max_lr:g}: {error}; give a lower one"
            ) from error
        curve = finder.optimal_lr
        losses = [] if curve is None else curve.results["loss"]
        if curve is not None and len(losses) >= _FEWEST:
            self.found = curve.suggestion()
        if trainer.is_global_zero:
            print(self._sentence(configured, len(losses)), flush=True)

    def _sentence(self, configured: float, steps: int) -> str:
        if self.found is None:
            return (
                f"lr_find  nothing: the training has {steps} steps, and {_FEWEST} are needed; it "
                f"goes on with model.optimizer.lr={configured:g}"
            )
        return (
            f"lr_find  the loss falls fastest at {self.found:.2g}, of {self.min_lr:g} to "
            f"{self.max_lr:g} in {steps} steps: a rate to try is model.optimizer.lr="
            f"{self.found:.2g}; this run goes on with {configured:g}"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back Lightning's bar where no one looks at it."""
    if sys.stderr.isatty():
        yield
        return
    with Path(os.devnull).open("w") as nothing, contextlib.redirect_stderr(nothing):
        yield
