"""The plan of a run, before anything is read or written: checked config, directory and objects."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torchmetrics import Metric

from genlab import seeding
from genlab.config.build import build
from genlab.config.check import Config
from genlab.data.datamodule import ImageData
from genlab.errors import ConfigError
from genlab.metrics import names
from genlab.metrics.measures import RESERVED, update_parameters
from genlab.modules.base import GenerativeModule
from genlab.modules.optimization import takes_total_steps
from genlab.runs.identity import ORIGINS, flatten, identity
from genlab.training.codec import rehearsed, with_vae
from genlab.training.flops import StepFlops, step_flops, steps_per_epoch
from genlab.training.origin import origin
from genlab.training.run_config import RunConfig, build_model

#: Keys left out of a run's name, since they do not describe what it computes.
_UNNAMED = ("experiment", "data.data_dir", "runs_dir", "group", "overwrite", "logger", "launcher")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run before it starts: its checked config, its directory, and what its steps cost."""

    config: Config
    run_config: RunConfig
    path: Path
    flops: StepFlops | None = None

    @property
    def processes(self) -> int:
        """Number of processes that `trainer.devices` and `trainer.num_nodes` request."""
        trainer = self.run_config.trainer
        devices = trainer.get("devices", "auto")
        if isinstance(devices, list):
            count = len(devices)
        elif devices in ("auto", -1, "-1"):
            count = 1 if trainer.get("accelerator") == "cpu" else torch.cuda.device_count()
        else:
            count = str(devices).strip(",").count(",") + 1 if "," in str(devices) else int(devices)
        return max(1, count) * int(trainer.get("num_nodes") or 1)


def plan(cfg: DictConfig | Mapping[str, Any], overrides: Sequence[str]) -> Plan:
    """Check a composed config, and find its run directory.

    Raises:
        ConfigError: naming the key, the value and what would be right.
    """
    run_config = RunConfig.of(cfg)
    group = run_config.group or os.environ.get("GENLAB_SWEEP_GROUP") or "single"
    config = {**_fields(run_config), "group": group}
    path = run_path(config, group, overrides)
    return Plan(with_vae(config, path), run_config, path)


def rehearse(cfg: DictConfig | Mapping[str, Any], start: Config) -> Config:
    """Check a run, and build its objects, before the run that it starts from is there.

    Returns the config that it would have.

    Args:
        start: the checked config of that run.

    Raises:
        ConfigError: naming the key, the value and what would be right.
    """
    run_config = RunConfig.of(cfg)
    config = rehearsed(_fields(run_config), start)
    assemble(Plan(config, run_config, Path()))
    return config


def _fields(run_config: RunConfig) -> Config:
    return {f.name: getattr(run_config, f.name) for f in dataclasses.fields(run_config)}


def assemble(planned: Plan) -> tuple[ImageData, GenerativeModule]:
    """Build the data and the module of a run, before any data is read.

    Raises:
        ConfigError: the class of a key refuses a value.
    """
    config, seed = planned.config, planned.run_config.seed
    seeding.seed_everything(seed)
    data: ImageData = build(config["data"], "data")
    model = build_model(config["model"], data.spec)
    optimizer, lr_schedule = (
        build(config["model"][name], f"model.{name}") for name in ("optimizer", "lr_schedule")
    )
    # on a placeholder weight, so that values that they refuse are reported now
    trial = optimizer([torch.nn.Parameter(torch.zeros(2, 2))])
    if lr_schedule is not None:
        steps = {"total_steps": 10**6} if takes_total_steps(lr_schedule) else {}
        lr_schedule(trial, **steps)
    module: GenerativeModule = build(config["model"]["module"], "model.module")(
        model=model,
        optimizer=optimizer,
        lr_schedule=lr_schedule,
        seed=seed,
        metrics=_own_metrics(config["metrics"]),
    )
    if not module.automatic_optimization:
        _refuse_automatic(config["trainer"], type(module).__name__)
    return data, module


def counted(planned: Plan, data: ImageData, module: GenerativeModule) -> Plan:
    """Return the plan with the operations of its steps, and the length that they give a training.

    Args:
        data: set up.
        module: as it is before the training.

    Raises:
        ConfigError: `training_flops` is less than one step, or the operations cannot be counted.
    """
    run_config = planned.run_config
    flops = step_flops(module, data, run_config.trainer) if run_config.trains else None
    planned = dataclasses.replace(planned, flops=flops)
    budget = run_config.training_flops
    if budget is None:
        return planned
    if flops is None:
        raise ConfigError(
            f"training_flops={budget:g}: the operations of this model cannot be counted; give "
            "trainer.max_epochs"
        )
    steps = flops.steps_within(budget)
    if steps == 0:
        raise ConfigError(
            f"training_flops={budget:g}: the first step of this training takes "
            f"{flops.period[0]:.3g}; give at least that"
        )
    per_epoch = steps_per_epoch(data, run_config.trainer)
    return dataclasses.replace(planned, run_config=run_config.with_steps(steps, per_epoch))


def _refuse_automatic(trainer: Mapping[str, Any], name: str) -> None:
    """Refuse what Lightning does only where it steps the optimizer itself.

    Raises:
        ConfigError: naming the key, the value and what would be right.
    """
    for key, neutral in (("gradient_clip_val", None), ("accumulate_grad_batches", 1)):
        if trainer.get(key) not in (None, 0, neutral):
            raise ConfigError(
                f"trainer.{key}={trainer[key]}: {name} steps its optimizers by itself, where "
                f"Lightning does not support this; give {'null' if neutral is None else neutral}"
            )


def _own_metrics(nodes: Mapping[str, Any]) -> dict[str, Metric]:
    """Build the user's metrics.

    Raises:
        ConfigError: a name is taken, or a metric does not say which values it needs.
    """
    found = {}
    for name, node in nodes.items():
        if node is None:
            continue
        if names.is_listed(name) or name in RESERVED:
            raise ConfigError(f"metrics.{name}: this name is taken by a metric of genlab")
        found[name] = build(node, f"metrics.{name}")
        if not update_parameters(found[name]):
            raise ConfigError(
                f"metrics.{name}._target_={node['_target_']!r}: its update names no values, such "
                "as preds and target; give a metric that does"
            )
    return found


def run_path(config: Config, group: str, overrides: Sequence[str]) -> Path:
    """Return the directory of this config's run: the existing one, or the one it would get.

    The last 8 characters, a hash of what the run computes, are its identity; the words before them
    are for people.
    """
    folder = Path(config["runs_dir"]) / group
    flat = flatten(config)
    origins = {key: origin(flat[key]) for key in ORIGINS if flat.get(key) is not None}
    digits = identity({**config, **origins})
    for found in sorted(folder.glob(f"*-{digits}")):
        if re.fullmatch(r"[\w.-]+", found.name):  # as below; others could be obeyed by a terminal
            return found
    model = str(config["model"].get("_target_", "model")).rsplit(".", 1)[-1].lower()
    words = [model]
    # the model's part comes first, so that shortening the name cannot remove it
    for override in sorted(overrides, key=lambda o: (not o.startswith("model"), o)):
        key, _, value = override.lstrip("+~").partition("=")
        value = origins.get(key, value)  # no path of this machine
        if not any(key == u or key.startswith(f"{u}.") for u in _UNNAMED):
            words.append(f"{re.split('[./]', key)[-1]}_{value}")
    # no character that a shell would need quoted
    tag = re.sub(r"[^\w.-]+", "_", "-".join(words))[:80]
    return folder / f"{tag}-{digits}"
