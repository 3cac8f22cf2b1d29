"""Optimizers, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from genlab.errors import ConfigError


class Adam:
    """Adam (Kingma and Ba 2015) or AdamW (Loshchilov and Hutter 2019), warmed up and decayed.

    Args:
        lr: peak learning rate.
        betas: decay of the first and of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled where `decoupled`, else an L2 term in the gradient.
        decoupled: AdamW.
        warmup_steps: steps of linear warm-up from 0.
        decay: what follows the warm-up: `constant`, or `cosine` to 0 at the last step.

    Raises:
        ConfigError: for a value outside its range.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, ...] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        warmup_steps: int = 0,
        decay: Literal["constant", "cosine"] = "constant",
    ) -> None:
        if not 0 < lr < math.inf:
            raise ConfigError(f"model.optimizer.lr={lr}: a learning rate above 0 is needed")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"model.optimizer.betas={list(betas)}: two numbers in [0, 1)")
        if not 0 < eps < math.inf:
            raise ConfigError(f"model.optimizer.eps={eps}: a number above 0 is needed")
        if not 0 <= weight_decay < math.inf:
            raise ConfigError(f"model.optimizer.weight_decay={weight_decay}: 0 or more is needed")
        if warmup_steps < 0:
            raise ConfigError(f"model.optimizer.warmup_steps={warmup_steps}: 0 or more is needed")
        self.lr, self.betas, self.eps = lr, (betas[0], betas[1]), eps
        self.weight_decay, self.decoupled = weight_decay, decoupled
        self.warmup_steps, self.decay = warmup_steps, decay

    @property
    def is_constant(self) -> bool:
        """Whether the learning rate never changes."""
        return self.warmup_steps == 0 and self.decay == "constant"

    def lr_at(self, step: int, total_steps: int) -> float:
        """The learning rate of the step that follows `step` completed ones."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.decay == "constant":
            return self.lr * warm
        after = max(1, total_steps - self.warmup_steps)
        progress = min(max((step - self.warmup_steps) / after, 0.0), 1.0)
        return self.lr * warm * 0.5 * (1.0 + math.cos(math.pi * progress))

    def build(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The optimizer; fused, which costs a quarter of the looped one on a CPU as on a GPU."""
        cls = torch.optim.AdamW if self.decoupled else torch.optim.Adam
        optimizer = cls(
            parameters,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=True,
        )
        # said otherwise, Lightning refuses to clip gradients in mixed precision
        optimizer._step_supports_amp_scaling = False
        return optimizer
