"""Progress display: a bar on a terminal, elsewhere about ten lines per run."""

from __future__ import annotations

import sys
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar

from genlab.metrics import names


class PlainProgress(pl.Callback):
    """Prints one line per tenth of the training, with the terms of the last validation."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        every = max(1, epochs // 10)
        if epoch % every and epoch != epochs:
            return
        terms = [f"{name} {text}" for name, text in _shown(trainer).items()]
        of = f"/{epochs}" if epochs > 0 else ""
        print(
            f"epoch {epoch:>3}{of}  step {trainer.global_step:>6}  {'  '.join(terms)}", flush=True
        )


class Bar(RichProgressBar):
    """Lightning's progress bar, refreshed a few times a second rather than at every step."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        return dict(_shown(trainer))


def _shown(trainer: pl.Trainer) -> dict[str, str]:
    """Return the metrics of the last validation that a line of progress shows."""
    metrics = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
    return {name.removeprefix("val/"): f"{metrics[name]:.2f}" for name in names.shown(metrics)}


def progress(steps_per_second: float = 100.0) -> pl.Callback:
    """Return the bar if standard error is a terminal, else the lines."""
    if sys.stderr.isatty() and sys.stdout.isatty():
        return Bar(refresh_rate=max(1, int(steps_per_second / 5)), leave=False)
    return PlainProgress()
