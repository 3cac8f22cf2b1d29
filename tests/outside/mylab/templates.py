"""A model family without a bound, whose two parts are trained in turn by an optimizer each.

An image of class y is templates[y] + scale * eps. The templates are trained to lower the squared
distance to the images, and the scale to be the distance that remains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genlab.modules.base import Batch, GenerativeModule
from genlab.protocols import ImageSpec
from genlab.seeding import ImageNoise, Noise
from genlab.tensors import device_of, sum_except_batch


class Templates(nn.Module):
    """A template for each class, and one scale of the noise around it."""

    conditional = True

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        self.spec = spec
        self.templates = nn.Parameter(torch.zeros(len(spec.classes), *spec.shape))
        self.scale = nn.Parameter(torch.ones(()))

    def distance(self, x: Tensor, labels: Tensor) -> Tensor:
        """Compute the root mean squared distance of images to their templates, (B,)."""
        squares = (x - self.templates[labels]).square()
        return (sum_except_batch(squares) / self.spec.dims + 1e-12).sqrt()

    def loss(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        step: int | None = None,
        noise: Noise | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of both parts."""
        labels = (
            torch.zeros(len(x), dtype=torch.int64, device=x.device) if labels is None else labels
        )
        distance = self.distance(x, labels).mean()
        of_scale = (self.scale - distance.detach()).square()
        return {"loss": distance + of_scale, "of_templates": distance, "of_scale": of_scale}

    @torch.no_grad()
    def evaluate(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        noise: Noise | None = None,
        full: bool = False,
    ) -> dict[str, Tensor]:
        """Measure the distance of images to their templates."""
        assert labels is not None
        return {"distance": self.distance(x, labels)}

    @torch.no_grad()
    def sample(
        self, n: int, seed: int = 0, first: int = 0, *, classes: Sequence[int] | None = None
    ) -> Tensor:
        """Draw images of the classes in turn, (n, C, H, W)."""
        classes = classes or range(len(self.spec.classes))
        indices, device = range(first, first + n), device_of(self)
        labels = torch.tensor([classes[i % len(classes)] for i in indices], device=device)
        noise = ImageNoise(seed, "sample", indices=indices, device=device)
        return (self.templates[labels] + self.scale * noise.normal(*self.spec.shape)).clamp(0, 1)


class TemplatesModule(GenerativeModule):
    """Trains the templates, then the scale; its best checkpoint is that of the least distance."""

    model: Templates
    monitor = "val/distance"

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.automatic_optimization = False

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.optimizer([part]) for part in (self.model.templates, self.model.scale)]

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        x, noise = self.training_input(batch, batch_idx)
        step, (first, second) = self.trainer.global_step, self.trainer.optimizers
        terms = self.model.loss(x, batch.get("label"), step, noise)
        for name, optimizer in (("of_templates", first), ("of_scale", second)):
            optimizer.zero_grad()
            self.manual_backward(terms[name])
        self.trainer.strategy.optimizer_step(first, lambda: None)
        self.optimizers()[1].step()  # the one that is counted
        self.log_terms(terms, step)
