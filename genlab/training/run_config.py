"""The run-level keys, above those of data, model and trainer, with their types and checks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from genlab.config.build import build
from genlab.config.check import Config, check, coerce, need, resolve, unknown
from genlab.config.secrets import refuse_secrets
from genlab.data.datamodule import ImageData
from genlab.errors import ConfigError
from genlab.modules.base import GenerativeModule
from genlab.protocols import ImageSpec

#: Keys of `model` about its training, whose objects are passed to the LightningModule.
TRAINING = {
    "module": Callable[..., GenerativeModule],
    "optimizer": Callable[..., Optimizer],
    "lr_schedule": Callable[..., LRScheduler] | None,
}


#: The values of `trainer.precision`: the weights stay in float32.
Precision = Literal["32-true", "32", 32, "bf16-mixed", "bf16", "16-mixed", "16", 16]


#: The values of `compile`; true is the mode `default`.
Compile = Literal[False, True, "default", "reduce-overhead", "max-autotune", "networks"]


def _check_precision(trainer: Any) -> None:
    """Refuse a precision other than ours, before Lightning's larger list is offered."""
    precision = trainer.get("precision") if isinstance(trainer, dict) else None
    if precision not in (None, *get_args(Precision)):
        raise ConfigError(
            f"trainer.precision={precision}: the images and the bound are in float32; give "
            "32-true, bf16-mixed or 16-mixed"
        )


def check_model(node: Any) -> Config:
    """Check the config of a model, without the keys about its training.

    Raises:
        ConfigError: naming the key, the value and what would be right.
    """
    model = without_training(need(node, nn.Module, "model"))
    return need(check(model, "model"), nn.Module, "model")


def without_training(node: Config) -> Config:
    """Return the config of a model without the keys about its training."""
    return {name: value for name, value in node.items() if name not in TRAINING}


def build_model(node: Config, spec: ImageSpec) -> nn.Module:
    """Build the model that a checked config describes, for images like `spec`.

    Raises:
        ConfigError: the class of a key refuses a value.
    """
    built: nn.Module = build(without_training(node), "model", spec=spec)
    return built


@dataclass(frozen=True)
class RunConfig:
    """The run-level keys of `conf/train.yaml`, checked.

    Raises:
        ConfigError: a value is outside its range.
    """

    data: dict[str, Any]
    model: dict[str, Any]
    trainer: dict[str, Any]
    callbacks: dict[str, Any]
    metrics: dict[str, Any]
    logger: dict[str, Any]
    launcher: str
    seed: int
    runs_dir: str
    group: str | None
    overwrite: bool
    traceback: bool
    notes: str | None
    tags: list[str]
    compile: Compile
    channels_last: bool
    matmul_precision: Literal["highest", "high", "medium"]
    ema_decay: float | None
    early_stopping_epochs: int | None
    training_flops: float | None
    checkpoint_every_n_steps: int | None
    checkpoint_every_n_minutes: float | None
    init_from: str | None
    continue_from: str | None
    evaluate: Literal["best", "last"]
    forecast: bool

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed={self.seed}: 0 or more is needed, and below 2^63")
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
        if self.continue_from is not None and self.init_from is not None:
            raise ConfigError(
                f"continue_from={self.continue_from}: it goes on with all of a run, init_from "
                "starts anew from its weights alone; give one of them"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(
                f"ema_decay={self.ema_decay}: a number between 0 and 1 is needed, or null"
            )
        need(self.data, ImageData, "data")
        need(self.trainer, pl.Trainer, "trainer")
        for group, kind in (("callbacks", pl.Callback), ("metrics", Metric), ("logger", Logger)):
            for name, node in getattr(self, group).items():
                if node is not None:
                    need(node, kind, f"{group}.{name}")
        self._check_trainer()

    def _check_trainer(self) -> None:
        trainer = self.trainer
        epochs = trainer.get("max_epochs")
        if epochs is not None and (epochs < 0 or (epochs == 0 and self.init_from is None)):
            raise ConfigError(
                f"trainer.max_epochs={epochs}: 1 or more is needed, or 0 with init_from=RUN to "
                "test its weights as they are"
            )
        for key in (
            "check_val_every_n_epoch",
            "log_every_n_steps",
            "accumulate_grad_batches",
        ):
            if trainer.get(key) is not None and trainer[key] < 1:
                raise ConfigError(f"trainer.{key}={trainer[key]}: 1 or more is needed")
        for key in ("max_steps", "limit_train_batches", "limit_test_batches"):
            if trainer.get(key) == 0:
                raise ConfigError(f"trainer.{key}=0 leaves nothing to do: 1 or more is needed")
        has_end = (trainer.get("max_steps") or -1) > 0 or self.training_flops is not None
        if trainer.get("max_epochs") is None and not has_end:
            raise ConfigError(
                "trainer.max_epochs=null: 1 or more is needed, unless trainer.max_steps or "
                "training_flops is set"
            )
        accumulated = trainer.get("accumulate_grad_batches") or 1
        if self.compile in ("reduce-overhead", "max-autotune") and accumulated > 1:
            raise ConfigError(
                f"compile={self.compile}: CUDA graphs overwrite the gradients that "
                f"trainer.accumulate_grad_batches={accumulated} adds up; give compile=true"
            )
        if self.data.get("device") == "cuda" and trainer.get("accelerator") == "cpu":
            raise ConfigError(
                "data.device=cuda: this training is on the CPU; give auto, or trainer=gpu"
            )
        self._check_budget()
        clip = trainer.get("gradient_clip_val")
        if clip is not None and not clip >= 0:
            raise ConfigError(f"trainer.gradient_clip_val={clip}: 0 or more is needed, or null")
        validates = self.data.get("val_images") != 0 and trainer.get("limit_val_batches") != 0
        if self.early_stopping_epochs is not None and not validates:
            raise ConfigError(
                f"early_stopping_epochs={self.early_stopping_epochs} needs validations: set "
                "data.val_images and trainer.limit_val_batches above 0"
            )

    def _check_budget(self) -> None:
        flops, trainer = self.training_flops, self.trainer
        if flops is None:
            return
        if not 0 < flops < math.inf:
            raise ConfigError(f"training_flops={flops:g}: more than 0 is needed, or null")
        for key, is_end in (
            ("max_steps", (trainer.get("max_steps") or -1) > 0),
            ("max_epochs", not self.trains),
        ):
            if is_end:
                raise ConfigError(
                    f"training_flops={flops:g}: trainer.{key}={trainer[key]} sets the length of "
                    "the training too; give one of them"
                )

    def with_steps(self, steps: int, per_epoch: int) -> RunConfig:
        """Return the run with a training of so many optimizer steps.

        Args:
            per_epoch: number of steps of an epoch.
        """
        epochs = math.ceil(steps / per_epoch)
        trainer = {**self.trainer, "max_steps": steps, "max_epochs": epochs}
        return replace(self, trainer=trainer, training_flops=None)

    def check_limits(self, batches: Mapping[str, int]) -> None:
        """Refuse a share of the batches of a split that is less than one batch.

        Args:
            batches: number of batches by split.

        Raises:
            ConfigError: naming the key, the value and what would be right.
        """
        for split, number in batches.items():
            key = f"limit_{split}_batches"
            share = self.trainer.get(key)
            if isinstance(share, float) and 0 < share * number < 1:
                raise ConfigError(
                    f"trainer.{key}={share}: of {number:,} this is less than one batch; give 1, or "
                    "another whole number of batches"
                )

    @property
    def trains(self) -> bool:
        """False if the weights of `init_from` are tested as they are."""
        return self.trainer.get("max_epochs") != 0

    @classmethod
    def of(cls, cfg: DictConfig | Mapping[str, Any]) -> RunConfig:
        """Build from a composed config, whose run-level keys and the keys below them are checked.

        Raises:
            ConfigError: naming the key, the value and what would be right.
        """
        config: Config = resolve(cfg) if isinstance(cfg, DictConfig) else dict(cfg)
        config.pop("hydra", None)
        refuse_secrets(config)
        hints = get_type_hints(cls)
        for key, value in config.items():
            if key not in hints:
                raise ConfigError(f"{key}={value!r}: {unknown(key, hints)}")
        if missing := sorted(hints.keys() - config.keys()):
            raise ConfigError(f"no value for {', '.join(missing)}: give one on the command line")
        _check_precision(config["trainer"])
        checked = {key: check(value, key) for key, value in config.items() if key != "model"}
        checked["model"] = cls._checked_model(config["model"])
        return cls(**{key: coerce(checked[key], hints[key], key) for key in hints})

    @staticmethod
    def _checked_model(node: Any) -> Config:
        model = check_model(node)
        for name, hint in TRAINING.items():
            value = coerce(node.get(name), hint, f"model.{name}")  # its kind before its keys
            model[name] = check(value, f"model.{name}")
        return model
