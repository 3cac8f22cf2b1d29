"""Torchmetrics of a VAE over a whole data set: its loss and its latents.

The parameters of `update` name the values that a metric takes from the output of `VAE.evaluate`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from genlab.tensors import exact_sum
from genlab.vae import diagnostics
from genlab.vae.kl import KLPenalty


class WeightedLoss(Metric):
    """The loss over all images at the final values of the KL schedule, in nats per image.

    Free bits and the capacity are not linear in the KL, so this is not a mean over images.
    """

    full_state_update = False
    reconstruction: list[Tensor]
    rows: list[Tensor]

    def __init__(self, penalty: KLPenalty) -> None:
        super().__init__()
        self.penalty = penalty
        for name in ("reconstruction", "rows"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, reconstruction: Tensor, kl_rows: Tensor) -> None:
        """Add images: reconstruction (B,), `KLPenalty.rows` (B, k)."""
        self.reconstruction.append(reconstruction)
        self.rows.append(kl_rows)

    def compute(self) -> dict[str, Tensor]:
        """Return `loss`, a scalar."""
        reconstruction, rows = dim_zero_cat(self.reconstruction), dim_zero_cat(self.rows)
        images = len(reconstruction)
        penalty = self.penalty(exact_sum(rows) / images, None)
        return {"loss": exact_sum(reconstruction) / images + penalty}


class Latents(Metric):
    """Diagnostics of the latents; see `genlab.vae.diagnostics`.

    Args:
        kl_is_analytic: whether the prior is standard normal, so that each latent has its own KL.
    """

    full_state_update = False
    curves = ("kl_by_unit",)
    mean: list[Tensor]
    log_var: list[Tensor]
    z: list[Tensor]

    def __init__(self, kl_is_analytic: bool) -> None:
        super().__init__()
        self.kl_is_analytic = kl_is_analytic
        for name in ("mean", "log_var", "z"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, mean: Tensor, log_var: Tensor, z: Tensor) -> None:
        """Add the posteriors of images and one sample of each, (B, d)."""
        self.mean.append(mean)
        self.log_var.append(log_var)
        self.z.append(z.float())

    def compute(self) -> dict[str, Tensor]:
        """Return `active_units`; for an analytic KL also its split and the KL by latent (d,)."""
        mean, log_var, z = (dim_zero_cat(part) for part in (self.mean, self.log_var, self.z))
        active = {"active_units": _double(diagnostics.active_units(mean))}
        if not self.kl_is_analytic:
            return active
        information = diagnostics.information(mean, log_var, z)
        return {
            **active,
            "mutual_information": _double(information.mutual_information),
            "aggregate_kl": _double(information.aggregate_kl),
            "information_cap": _double(information.cap),
            "kl_by_unit": diagnostics.kl_per_dim(mean, log_var),
        }


def _double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
