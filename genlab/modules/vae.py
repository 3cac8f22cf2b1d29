"""The LightningModule of a VAE: metrics over a whole split, and the KL weight at each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from genlab.modules.base import GenerativeModule
from genlab.vae.evaluation import Latents, WeightedLoss
from genlab.vae.model import VAE


class VAEModule(GenerativeModule):
    """A LightningModule that trains a `genlab.vae.model.VAE`."""

    model: VAE

    def split_metrics(self, full: bool) -> dict[str, Metric]:
        return {
            "loss": WeightedLoss(self.model.kl_penalty),
            "latents": Latents(self.model.prior.kl_is_analytic),
        }

    def training_row(self, terms: Mapping[str, Tensor], step: int) -> dict[str, Any]:
        return {**super().training_row(terms, step), **self.model.kl_penalty.at(step)}

    def constants(self) -> dict[str, float]:
        weight = self.model.kl_penalty.weight
        theta = {} if weight.theta is None else {"theta": weight.theta}
        return {**self.model.kl_penalty.at(None), **theta}
