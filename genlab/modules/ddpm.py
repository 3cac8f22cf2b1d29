"""The LightningModule of a DDPM: curves of the bound, and the measured optimal variance."""

from __future__ import annotations

from torchmetrics import Metric

from genlab.diffusion.curves import BoundCurves
from genlab.diffusion.model import DDPM
from genlab.errors import at_key
from genlab.metrics.measures import NegativeElbo
from genlab.modules.base import GenerativeModule


class DDPMModule(GenerativeModule):
    """A LightningModule that trains a `genlab.diffusion.model.DDPM`."""

    model: DDPM

    def on_train_start(self) -> None:
        """Refuse a training that is too short for its time sampler."""
        batch_size = int(self.trainer.datamodule.batch_size)  # type: ignore[attr-defined]
        steps = int(self.trainer.estimated_stepping_batches)
        images = steps * self.trainer.accumulate_grad_batches * batch_size
        with at_key("model.time_sampler"):
            self.model.time_sampler.check(images)

    def split_metrics(self, full: bool) -> dict[str, Metric]:
        bins = self.model.time_bins(full=full)
        self._curves = BoundCurves(bins, self.model.code.dims, self.model.process.steps)
        bound = NegativeElbo(self.model.spec.dims, has_error=True)
        return {"bound": bound, "curves": self._curves}

    def on_validated(self) -> None:
        with self._curves.sync_context():
            self.model.learn_variance(*self._curves.error_by_log_snr())
