"""The run-level keys, above those of data, model and trainer: typed, checked, all of them named."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger

from genlab.config import configs
from genlab.data.datamodule import ImageData
from genlab.errors import ConfigError
from genlab.modules.base import GenerativeModule


@dataclass(frozen=True)
class RunConfig:
    """The run-level keys of `conf/train.yaml`, checked.

    Raises:
        ConfigError: for a value outside its range.
    """

    data: dict[str, Any]
    model: dict[str, Any]
    trainer: dict[str, Any]
    callbacks: dict[str, Any]
    logger: dict[str, Any]
    launcher: str
    seed: int
    runs_dir: str
    group: str | None
    overwrite: bool
    traceback: bool
    notes: str | None
    tags: list[str]
    compile: bool
    channels_last: bool
    matmul_precision: Literal["highest", "high", "medium"]
    ema_decay: float | None
    early_stopping_epochs: int | None
    checkpoint_every_n_steps: int | None
    checkpoint_every_n_minutes: float | None
    init_from: str | None
    evaluate: Literal["best", "last"]
    forecast: bool

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}: 0 or more is needed")
        for key in ("early_stopping_epochs", "checkpoint_every_n_steps"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"{key}={value}: 1 or more is needed, or null")
        minutes = self.checkpoint_every_n_minutes
        if minutes is not None and not minutes > 0:
            raise ConfigError(
                f"checkpoint_every_n_minutes={minutes}: more than 0 is needed, or null"
            )
        if self.group is not None and not re.fullmatch(r"(?!\.+$)[\w.=,+-]+", self.group):
            raise ConfigError(
                f"group={self.group!r}: a name of letters, digits and . _ - = , + is needed"
            )
        if not self.runs_dir:
            raise ConfigError("runs_dir='': a folder is needed, such as runs")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(
                f"ema_decay={self.ema_decay}: a number between 0 and 1 is needed, or null"
            )
        configs.need(self.data, ImageData, "data")
        configs.need(self.model, GenerativeModule, "model")
        configs.need(self.trainer, pl.Trainer, "trainer")
        for name, node in self.callbacks.items():
            if node is not None:
                configs.need(node, pl.Callback, f"callbacks.{name}")
        if self.logger:
            configs.need(self.logger, Logger, "logger")
        self._check_trainer()

    def _check_trainer(self) -> None:
        trainer = self.trainer
        for key in (
            "max_epochs",
            "check_val_every_n_epoch",
            "log_every_n_steps",
            "accumulate_grad_batches",
        ):
            if trainer.get(key) is not None and trainer[key] < 1:
                raise ConfigError(f"trainer.{key}={trainer[key]}: 1 or more is needed")
        for key in ("max_steps", "limit_train_batches", "limit_test_batches"):
            if trainer.get(key) == 0:
                raise ConfigError(f"trainer.{key}=0 leaves nothing to do: 1 or more is needed")
        if trainer.get("max_epochs") is None and (trainer.get("max_steps") or -1) < 0:
            raise ConfigError(
                "trainer.max_epochs=null: 1 or more is needed, unless trainer.max_steps is set"
            )
        clip = trainer.get("gradient_clip_val")
        if clip is not None and not clip >= 0:
            raise ConfigError(f"trainer.gradient_clip_val={clip}: 0 or more is needed, or null")
        validates = self.data.get("val_images") != 0 and trainer.get("limit_val_batches") != 0
        if self.early_stopping_epochs is not None and not validates:
            raise ConfigError(
                f"early_stopping_epochs={self.early_stopping_epochs} needs validations: set "
                "data.val_images and trainer.limit_val_batches above 0"
            )

    @classmethod
    def of(cls, config: configs.Config) -> RunConfig:
        """From a resolved config, every run-level key there, known and typed."""
        hints = get_type_hints(cls)
        for key, value in config.items():
            if key not in hints:
                raise ConfigError(f"{key}={value!r}: {configs.unknown(key, hints)}")
        if missing := sorted(hints.keys() - config.keys()):
            raise ConfigError(f"no value for {', '.join(missing)}: give one on the command line")
        return cls(**{key: configs.coerce(value, hints[key], key) for key, value in config.items()})
