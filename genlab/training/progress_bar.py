"""Progress: a bar on a terminal, about ten lines a run elsewhere."""

from __future__ import annotations

import sys
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar

#: Metrics worth a line, by their names in the contract.
SHOWN = ("reconstruction", "kl", "neg_elbo", "bits_per_dim")


class PlainProgress(pl.Callback):
    """One line per tenth of the training with the validation's terms."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        every = max(1, epochs // 10)
        if epoch % every and epoch != epochs:
            return
        metrics = trainer.callback_metrics
        terms = [f"{n} {metrics[f'val/{n}']:.2f}" for n in SHOWN if f"val/{n}" in metrics]
        of = f"/{epochs}" if epochs > 0 else ""
        print(
            f"epoch {epoch:>3}{of}  step {trainer.global_step:>6}  {'  '.join(terms)}", flush=True
        )


class Bar(RichProgressBar):
    """Lightning's bar, refreshed a few times a second rather than at every step."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        shown = {n: trainer.callback_metrics.get(f"val/{n}") for n in SHOWN}
        return {n: f"{v:.2f}" for n, v in shown.items() if v is not None}


def progress(steps_per_second: float = 100.0) -> pl.Callback:
    """The bar where standard error is a terminal, else the lines."""
    if sys.stderr.isatty() and sys.stdout.isatty():
        return Bar(refresh_rate=max(1, int(steps_per_second / 5)), leave=False)
    return PlainProgress()
