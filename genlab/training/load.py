"""Load the trained model and the data of a run directory."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from torch import nn

from genlab.config.build import build
from genlab.config.check import Config, check, from_yaml, need
from genlab.config.trust import import_class, received
from genlab.data.datamodule import ImageData
from genlab.errors import ConfigError, RunDirectoryError
from genlab.runs.directory import Run
from genlab.training import weights
from genlab.training.run_config import build_model, check_model


def read_config(run: str | PathLike[str], packages: Iterable[str] = ()) -> Config:
    """Read the config of a run directory, and check its model and its data.

    Args:
        packages: those whose classes the config may name beside genlab's.

    Raises:
        ConfigError: the config names a class that may not be built.
        RunDirectoryError: there is no config.
    """
    text = Run(run).config_text
    if text is None:
        raise RunDirectoryError(f"{run} has no config.yaml: it is no run directory")
    config = from_yaml(text, f"{run}/config.yaml")
    trust = received(packages)
    model = check_model(config.get("model"), trust)
    if issubclass(import_class(model["_target_"], "model", trust), LightningModule):
        raise ConfigError(f"model._target_={model['_target_']!r}: an nn.Module alone is needed")
    data = need(check(config.get("data"), "data", trust), ImageData, "data", trust=trust)
    return {**config, "model": model, "data": data}


def load(
    run: str | PathLike[str],
    checkpoint: str = "best",
    packages: Iterable[str] = (),
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Load the trained model of a run directory, for evaluation.

    Args:
        run: the run directory.
        checkpoint: "best" by validation loss, or "last".
        packages: those whose classes the run's config may name beside genlab's.
        device: the model's.

    Raises:
        ConfigError: the config names a class that may not be built.
        RunDirectoryError: config or checkpoint are missing or unreadable.
    """
    return load_with_data(run, checkpoint, packages)[0].to(device)


def load_with_data(
    run: str | PathLike[str], checkpoint: str = "best", packages: Iterable[str] = ()
) -> tuple[nn.Module, ImageData]:
    """Load the trained model of a run directory, and set up its data without reading it.

    Raises:
        ConfigError, RunDirectoryError: see `load`.
    """
    config = read_config(run, packages)
    data: ImageData = build(config["data"], "data")
    model = build_model(config["model"], data.spec)
    holder = _Holder(model)
    weights.load_into(holder, Path(run) / "checkpoints" / f"{checkpoint}.ckpt")
    return model.eval(), data


class _Holder(nn.Module):
    """Module that holds a model under the name that checkpoints use."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
