"""Optimizer, learning-rate schedule, clipping and check of the loss in a training step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from genlab.errors import TrainingError


def configure(
    trainer: pl.Trainer,
    optimizer: Optimizer,
    lr_schedule: Callable[..., LRScheduler] | None,
    monitor: str,
) -> Any:
    """Return what Lightning's `configure_optimizers` asks for.

    A schedule is stepped after every optimizer step, `ReduceLROnPlateau` after every epoch. One
    that takes `total_steps` is told those of the whole training.

    Args:
        monitor: the metric that `ReduceLROnPlateau` looks at.
    """
    if lr_schedule is None:
        return optimizer
    options = {}
    if takes_total_steps(lr_schedule):
        options["total_steps"] = int(trainer.estimated_stepping_batches)
    schedule = lr_schedule(optimizer, **options)
    config: dict[str, Any] = {"scheduler": schedule, "interval": "step"}
    if isinstance(schedule, ReduceLROnPlateau):
        config |= {"interval": "epoch", "monitor": monitor, "strict": False}
    return {"optimizer": optimizer, "lr_scheduler": config}


def takes_total_steps(lr_schedule: Callable[..., LRScheduler]) -> bool:
    """Return whether a learning-rate schedule asks for `total_steps` and was not given it."""
    parameter = inspect.signature(lr_schedule).parameters.get("total_steps")
    return parameter is not None and parameter.default in (parameter.empty, None)


def clip_in_bf16(
    module: pl.LightningModule, limit: float | None, algorithm: str | None = None
) -> bool:
    """Clip the gradients of a training in bf16, and return whether that was done.

    Lightning refuses to clip in mixed precision with a fused optimizer, which could unscale
    gradients by itself after they are clipped; in bf16 there is no scale.
    """
    if module.trainer.precision != "bf16-mixed" or not limit:
        return False
    if algorithm == "value":
        nn.utils.clip_grad_value_(module.parameters(), limit)
    else:
        nn.utils.clip_grad_norm_(module.parameters(), limit)
    return True


def check_finite(terms: Mapping[str, Tensor], step: int, lr: float, remedy: str) -> None:
    """Refuse to go on from a loss that is not finite.

    Args:
        remedy: what to do, beside lowering the learning rate `lr`.

    Raises:
        TrainingError: naming the step and the terms.
    """
    if math.isfinite(terms["loss"].item()):
        return
    values = {name: float(value.detach()) for name, value in terms.items()}
    broken = [n for n, v in values.items() if n != "loss" and not math.isfinite(v)] or ["loss"]
    raise TrainingError(
        f"step {step}: {' and '.join(broken)} is not finite "
        f"({', '.join(f'{name}={value:g}' for name, value in values.items())}): lower "
        f"model.optimizer.lr={lr:g}, or {remedy}; a checkpoint, if there is one, is from before "
        "this step"
    )
