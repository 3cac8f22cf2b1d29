"""Optimizers and learning-rate schedules beside those of torch, which configs name directly."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from genlab.errors import number, whole


class WarmupCosine(LambdaLR):
    """Linear warm-up, then the learning rate of the optimizer, constant or on a cosine to 0.

    The rate of the step that follows s completed ones is lr * min(1, (s + 1) / warmup_steps), times
    (1 + cos(pi u)) / 2 with u from 0 at the end of the warm-up to 1 at `total_steps` (Loshchilov
    and Hutter 2017, without restarts).

    Args:
        optimizer: the optimizer; its learning rate is the peak.
        warmup_steps: steps of the warm-up; 0 for none.
        cosine: True if the rate falls to 0 after the warm-up.
        total_steps: steps of the whole training; only needed for the cosine.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int = 0,
        cosine: bool = True,
        total_steps: int | None = None,
    ) -> None:
        whole("warmup_steps", warmup_steps, 0)
        if cosine and total_steps is None:
            raise ValueError("total_steps=null: a cosine must know where it ends; give a number")
        after = max(1, (total_steps or 0) - warmup_steps)

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
            if not cosine:
                return warm
            progress = min(max((step - warmup_steps) / after, 0.0), 1.0)
            return warm * 0.5 * (1.0 + math.cos(math.pi * progress))

        super().__init__(optimizer, factor)


class MuonWithAdamW(Optimizer):
    """Muon for the matrices of the hidden layers, AdamW for all other parameters.

    `torch.optim.Muon` (Jordan et al. 2024) takes matrices alone; biases, convolutions and norms
    need another optimizer.

    Args:
        params: parameters, of any shape.
        lr: rate of both.
        momentum: of Muon.
        weight_decay: decoupled, of both.
        betas: of AdamW.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        number("lr", lr, above=0)
        params = list(params)
        matrices = [p for p in params if p.ndim == 2]
        others = [p for p in params if p.ndim != 2]
        self.parts: list[Optimizer] = []
        if matrices:
            # updates of the same size as AdamW's, so that one rate fits both (Liu et al. 2025)
            self.parts.append(
                torch.optim.Muon(
                    matrices,
                    lr=lr,
                    momentum=momentum,
                    weight_decay=weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if others:
            self.parts.append(
                torch.optim.AdamW(others, lr=lr, betas=betas, weight_decay=weight_decay)
            )
        super().__init__(params, {"lr": lr})
        # the parts' own groups, so that a schedule sets their rates
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step with both; `closure` computes the loss and its gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
