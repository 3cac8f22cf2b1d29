"""Evaluate the trained model of a run directory in full, as a test does, without training.

Of the directory are used the model, as `genlab.load` builds it, its module, and plain values on
which a test depends. The reader names the data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import lightning.pytorch as pl
import torch
from torch.optim import SGD

from genlab.config.build import build
from genlab.config.check import Config, check, coerce, hints
from genlab.config.trust import check_received
from genlab.data.datamodule import ImageData, SplitName
from genlab.errors import ConfigError, at_key, whole
from genlab.metrics.names import describe
from genlab.modules.base import GenerativeModule
from genlab.protocols import HasSetting
from genlab.runs.files import sha256
from genlab.training import console, weights
from genlab.training.countdown import Countdown
from genlab.training.environment import git_commit, versions
from genlab.training.load import load, read_config
from genlab.training.power_averages import load_average
from genlab.training.run_config import Precision

#: Keys of `data` with plain values, on which the images of a split and their batches depend.
_OF_DATA = ("eval_batch_size", "val_images", "train_images", "seed", "binarisation")


@dataclass(frozen=True)
class OfRun:
    """The plain values of a run's config on which its test depends.

    Attributes:
        seed: of the noise.
        data: values of `data`, by key.
        precision, batches: those of the trainer; batches is `limit_test_batches`.
        matmul_precision, channels_last: as in `conf/train.yaml`.
    """

    seed: int
    data: dict[str, Any]
    precision: Precision
    batches: int | float | None
    matmul_precision: Literal["highest", "high", "medium"]
    channels_last: bool

    @classmethod
    def of(cls, run: Path) -> OfRun:
        """Read them from a run directory.

        Raises:
            ConfigError, RunDirectoryError: the config cannot be read, or a value is none.
        """
        config = read_config(run)
        known = get_type_hints(cls)
        trainer, data = _mapping(config, "trainer"), _mapping(config, "data")
        given = {
            "seed": config.get("seed", 0),
            "precision": trainer.get("precision", "32-true"),
            "batches": trainer.get("limit_test_batches"),
            "matmul_precision": config.get("matmul_precision", "highest"),
            "channels_last": config.get("channels_last", False),
        }
        of_data = hints(ImageData)
        where = f"{run}/config.yaml: "
        values = {k: coerce(value, known[k], f"{where}{k}") for k, value in given.items()}
        plain = {
            key: coerce(data[key], of_data[key], f"{where}data.{key}")
            for key in _OF_DATA
            if key in data
        }
        with at_key(f"{where}seed"):
            whole("seed", values["seed"], 0)
        return cls(data=plain, **values)


def evaluate(
    run: Path,
    data: ImageData,
    checkpoint: str,
    split: SplitName = "test",
    batches: int | float | None = None,
    device: torch.device | str = "cpu",
    packages: Collection[str] = (),
    ema: float | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint of a run on a split, and return the content of its record.

    On the data and the settings of the run, and on a like device, the metrics of `test` are those
    of the run's own test to the last bit, but for those of the user and of callbacks.

    Args:
        data: of the same spec as the images of the run.
        batches: largest number (int) or share (float) of batches; None for all.
        ema: relative width of the average of the weights that replaces those of the checkpoint,
            made from the snapshots of the run.

    Raises:
        ConfigError: the run's config says something that a run directory may not say, or the split
            has no fixed images.
        RunDirectoryError: config, spec, checkpoint or snapshots are missing or unreadable.
        ValueError: the snapshots do not reach this width.
    """
    own = OfRun.of(run)
    if split == "train" and data.binarisation == "dynamic":
        raise ConfigError(
            "--split train: data.binarisation=dynamic draws its bits anew in every epoch; give "
            "data.binarisation=static"
        )
    if split == "val" and data.val_images == 0:
        raise ConfigError("--split val: data.val_images=0 sets no images apart; give test or train")
    model = load(run, checkpoint, packages) if ema is None else load_average(run, ema, packages)
    module = _module(read_config(run).get("model"), packages, model, own.seed)
    module.tested = split
    data.prepare_data()
    console.quieten_libraries()
    device = torch.device(device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(own.matmul_precision)
    try:
        trainer = pl.Trainer(
            accelerator=device.type,
            devices=1 if device.index is None or device.type == "cpu" else [device.index],
            precision=own.precision,
            limit_test_batches=batches,
            callbacks=[Countdown()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=os.devnull,
        )
        if own.channels_last:
            module.to(memory_format=torch.channels_last)
        trainer.test(module, dataloaders=data.eval_loader(split), verbose=False)
    finally:
        torch.set_float32_matmul_precision(before)
    evaluation = module.evaluations[split]
    metrics = {f"{split}/{name}": value for name, value in evaluation.metrics.items()}
    return {
        "metrics": metrics,
        "units": {name: unit for name in metrics if (unit := describe(name).unit)},
        "verdict": model.verdict(evaluation.metrics) if isinstance(model, HasSetting) else "",
        "curves": evaluation.curves,
        "split": split,
        "images": evaluation.images,
        "checkpoint": checkpoint,
        "weights": sha256(weights.checkpoint_of(run, checkpoint)),
        "seed": own.seed,
        "precision": own.precision,
        "device": device.type,
        "eval_batch_size": data.eval_batch_size,
        "versions": versions(),
        "git_commit": git_commit(),
    } | ({} if ema is None else {"ema": ema})


def _module(
    node: object, packages: Collection[str], model: torch.nn.Module, seed: int
) -> GenerativeModule:
    """Build the module that a received config names for its model, in order to evaluate alone."""
    module = node.get("module") if isinstance(node, dict) else None
    check_received(
        module, Callable[..., GenerativeModule], "model.module", (*packages, "genlab.modules")
    )
    built: GenerativeModule = build(check(module, "model.module"), "model.module")(
        model=model, optimizer=SGD, lr_schedule=None, seed=seed, metrics=None
    )
    return built


def _mapping(config: Config, key: str) -> Config:
    node = config.get(key)
    return node if isinstance(node, dict) else {}
