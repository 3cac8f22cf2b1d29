"""The LightningModule of a GAN: its two networks, trained in turn by an optimizer each."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric

from genlab.errors import ConfigError, number, whole
from genlab.gan.evaluation import Diversity
from genlab.gan.model import GAN
from genlab.modules import optimization
from genlab.modules.base import Batch, GenerativeModule
from genlab.protocols import ShardsNetworks
from genlab.seeding import Noise

log = logging.getLogger(__name__)


class GANModule(GenerativeModule):
    """A LightningModule that trains a `genlab.gan.model.GAN`.

    Every batch is a step of the discriminator, and every `discriminator_steps`-th also one of the
    generator, before it. Only the discriminator's are counted as steps of the training, so that
    `trainer.max_steps` and the number of images mean what they mean for other families.

    Args:
        discriminator_steps: steps of the discriminator for one of the generator; 1 or more.
        discriminator_lr_ratio: learning rate of the discriminator, as a multiple of that of the
            generator (Heusel et al. 2017: two time-scales); above 0.
        model, optimizer, lr_schedule, seed, metrics: see `GenerativeModule`; `optimizer` and
            `lr_schedule` are called for each network.

    Raises:
        ValueError: a value is out of range.
    """

    model: GAN
    monitor = "val/energy_score"
    remedy = "raise the weight of model.penalty"

    def __init__(
        self,
        model: GAN,
        optimizer: Callable[..., Optimizer],
        lr_schedule: Callable[..., LRScheduler] | None = None,
        seed: int = 0,
        metrics: Mapping[str, Metric] | None = None,
        discriminator_steps: int = 1,
        discriminator_lr_ratio: float = 1.0,
    ) -> None:
        super().__init__(model, optimizer, lr_schedule, seed, metrics)
        self.automatic_optimization = False
        self.discriminator_steps = whole("discriminator_steps", discriminator_steps, 1)
        self.lr_ratio = number("discriminator_lr_ratio", discriminator_lr_ratio, above=0)
        every = 1 if model.penalty is None else model.penalty.every
        self.cycle = math.lcm(every, discriminator_steps)
        self._told: set[str] = set()

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ShardsNetworks):
            raise ConfigError(
                "trainer=fsdp: the networks of a GAN are trained in turn, which needs each of them "
                "whole; use trainer=ddp"
            )

    def configure_optimizers(self) -> Any:
        generator, discriminator = (
            self.optimizer(list(network.parameters())) for network in self.model.networks().values()
        )
        for group in discriminator.param_groups:
            group["lr"] *= self.lr_ratio
        return [
            optimization.configure(self.trainer, optimizer, self.lr_schedule, self.monitor)
            for optimizer in (generator, discriminator)
        ]

    def losses(
        self, x: Tensor, labels: Tensor | None, step: int, noise: Noise | None
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if (step + 1) % self.discriminator_steps == 0:
            yield "generator_loss", self.model.generator_loss(x, labels, noise)
        yield "discriminator_loss", self.model.discriminator_loss(x, labels, step, noise)

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        x, noise = self.training_input(batch, batch_idx)
        labels, step = batch.get("label"), self.trainer.global_step
        generator, discriminator = self.trainer.optimizers
        terms: dict[str, Tensor] = {}
        for name, found in self.losses(x, labels, step, noise):
            if name == "generator_loss":
                self._backward(found[name], generator)
                # not by Lightning's wrapper, which counts steps
                self.trainer.strategy.optimizer_step(generator, lambda: None)
            else:
                self._backward(found[name], discriminator)
                self.optimizers()[1].step()  # type: ignore[index]
            torch.clear_autocast_cache()  # it holds copies of the weights before the step
            terms |= found
        # a schedule does not move before the first step of its optimizer
        for first, schedule in zip((self.discriminator_steps, 1), self._schedules(), strict=False):
            if step + 1 >= first and not isinstance(schedule, ReduceLROnPlateau):
                schedule.step()
        if self.cycle > 1 and self.is_logged(step):  # all parts, those that were not due too
            x, noise = self.training_input(batch, batch_idx)
            terms = self.model.loss(x, labels, None, noise)
        losses = [value for name, value in terms.items() if name.endswith("_loss")]
        self.log_terms({**terms, "loss": torch.stack(losses).sum()}, step)

    def training_row(self, terms: Mapping[str, Tensor], step: int) -> dict[str, Any]:
        row = super().training_row(terms, step)
        return {name: value for name, value in row.items() if name != "loss"}  # a sum of opposites

    def on_train_epoch_end(self) -> None:
        value = self.trainer.callback_metrics.get(self.monitor)
        for schedule in self._schedules():
            if isinstance(schedule, ReduceLROnPlateau) and value is not None:
                schedule.step(value)

    def split_metrics(self, full: bool) -> dict[str, Metric]:
        return {"diversity": Diversity(within_classes=self.model.conditional)}

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        # callbacks have logged what they measured before
        metrics = {
            name.removeprefix("val/"): float(value)
            for name, value in self.trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        verdict = self.model.verdict(metrics)
        if verdict and verdict not in self._told and self.trainer.is_global_zero:
            names = ("diversity", "class_distance", "discriminator_accuracy", "energy_score")
            judged = [(n, value) for n, value in metrics.items() if n.startswith(names)]
            values = ", ".join(f"{name} {value:.3g}" for name, value in judged)
            log.warning("step %d: %s (%s)", self.trainer.global_step, verdict, values)
        self._told.add(verdict)

    def _schedules(self) -> list[Any]:
        found = self.lr_schedulers()
        return found if isinstance(found, list) else [] if found is None else [found]

    def _backward(self, loss: Tensor, optimizer: Optimizer) -> None:
        """Compute the gradients of the weights of an optimizer, their mean over all processes."""
        optimizer.zero_grad()
        strategy = self.trainer.strategy
        if not isinstance(strategy, ParallelStrategy):
            self.manual_backward(loss)
            return
        # DDP itself waits for the gradients of both networks
        with strategy.block_backward_sync():
            self.manual_backward(loss)
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in weights if p.grad is not None]
        mean = strategy.reduce(torch.cat([g.flatten() for g in gradients]), reduce_op="mean")
        parts = mean.split([g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))
