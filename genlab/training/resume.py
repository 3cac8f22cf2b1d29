"""Resume from `last.ckpt`, of this run or another: nothing is restored before it is checked."""

from __future__ import annotations

import copy
import logging
import math
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from genlab.errors import ConfigError, GenlabError, RunDirectoryError
from genlab.protocols import ShardsNetworks
from genlab.runs.directory import RunDirectory
from genlab.runs.files import before, refuse_links, replacing
from genlab.runs.reading import open_regular
from genlab.runs.run import Run
from genlab.training import schema
from genlab.training.ema import WeightAverage, averaged
from genlab.training.faults import explanation
from genlab.training.weights import UnreadableCheckpointError, check_fits, check_weights, naming

log = logging.getLogger(__name__)

#: Entries of a checkpoint from which a run can go on, and what kind they are.
_ENTRIES: dict[str, Any] = {
    "epoch": 0,
    "global_step": 0,
    "pytorch-lightning_version": "",
    "loops": {},
    "callbacks": {},
    "optimizer_states": [],
    "lr_schedulers": [],
}
#: Versions of Lightning whose checkpoints are not rewritten by another one.
_VERSION = r"2\.\d{1,3}\.\d{1,3}(\.?(rc|dev|post)\d{1,3})?"
_GRADIENT_SCALE = "native_amp_scaling_state"


class CheckedResume(pl.Callback):
    """Checks all that Lightning restores from a checkpoint, before it does.

    Each part must have the structure of what the object that takes it writes itself, and is then
    restored in a copy of that object; the copy of an optimizer also takes a step. This holds for
    the callbacks of genlab and for early stopping. Other callbacks get their plain values, but
    those that write checkpoints get none, since Lightning's would use the paths in them.

    Args:
        path: the checkpoint.
        content: what was read from it, with weights that fit the module.
        source: the run directory that the training goes on with, if this is another one. Then the
            settings of the optimizer and the learning-rate schedule are those of the config, at the
            step of the checkpoint, and callbacks that it knows nothing of start anew.

    Raises:
        RunDirectoryError: when training starts, naming the file and the first entry that differs.
        ConfigError: if the training cannot go on with this config from where `source` ended.
    """

    def __init__(self, path: Path, content: dict[str, Any], source: Path | None = None) -> None:
        self.path, self.source = path, source
        self.step: int = content["global_step"]
        self._content = content
        self._restored: set[str] = set()
        self._anew: tuple[list[Any], list[Any]] | None = None
        self.then: Callable[[], None] = lambda: None  # called when all is checked

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        content, self._content = self._content, {}
        if self.source is not None:
            _check_continues(self.source, trainer, content)
            optimizers, schedules = _configured_anew(trainer, pl_module, content["global_step"])
            content["lr_schedulers"] = copy.deepcopy(schedules)
            self._anew = optimizers, schedules
        with naming(self.path):
            self._check_callbacks(trainer, content["callbacks"])
            _check_optimizers(trainer, pl_module, content)  # also sets up the loaders of the loop
            _check_loops(trainer, content["loops"])
            if (entry := type(trainer.precision_plugin).__qualname__) in content:
                schema.check_like(content[entry], trainer.precision_plugin.state_dict(), entry)
        self.then()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._anew is not None:
            optimizers, schedules = self._anew
            states = _with_settings(checkpoint["optimizer_states"], optimizers)
            checkpoint |= {"optimizer_states": states, "lr_schedulers": schedules}
        states = checkpoint["callbacks"]
        checkpoint["callbacks"] = {key: states[key] for key in states if key in self._restored}

    def _check_callbacks(self, trainer: pl.Trainer, states: dict[str, Any]) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            key = callback.state_key
            is_own = type(callback).__module__.startswith("genlab.")
            if is_own or isinstance(callback, EarlyStopping):
                like, entry = callback.state_dict(), schema.under("callbacks", key)
                if not like:
                    continue
                if key not in states and self.source is not None:
                    continue
                if key not in states:
                    raise ValueError(f"{entry} is missing")
                schema.check_like(states[key], like, entry)
                with _tried(entry):
                    copy.copy(callback).load_state_dict(states[key])
            elif isinstance(callback, Checkpoint):
                continue
            self._restored.add(key)


def to_resume(module: nn.Module, last: Path) -> CheckedResume | None:
    """Return the checkpoint from which training of `module` resumes; None if there is none.

    This is `last`. If `last` cannot be read, the checkpoint before it replaces it, with a warning.

    Raises:
        ConfigError, RunDirectoryError: see `weights.check_fits`; or the checkpoint lacks what a run
            needs to go on.
    """
    if not last.exists():
        return None
    try:
        path, content = last, check_fits(module, last)
    except UnreadableCheckpointError as error:
        path = before(last)
        if not path.exists():
            raise
        content = check_fits(module, path)
        log.warning("%s; going on from the one before it, %s", error, path.name)
        # else the next save would keep the damaged file as the previous checkpoint
        with replacing(last) as file:
            file.write(path.read_bytes())
    if "optimizer_states" not in content:
        raise RunDirectoryError(
            f"{path} holds weights alone, from which a run cannot go on: remove it, or move it and "
            "start from its weights with overwrite=true init_from=FILE"
        )
    _check_entries(module, path, content)
    return CheckedResume(path, content)


def to_continue(module: nn.Module, run: Path) -> CheckedResume:
    """Return the last checkpoint of another run, from which training of `module` goes on.

    Raises:
        ConfigError, RunDirectoryError: see `weights.check_fits`; or `run` is no run directory, or
            its checkpoint lacks what a run needs to go on.
    """
    key = f"continue_from={run}"
    if not run.is_dir():
        raise ConfigError(f"{key}: there is no such folder; give a run directory")
    refuse_links(run, ["checkpoints"])
    path = run / "checkpoints" / "last.ckpt"
    try:
        content = check_fits(module, path)
        if "optimizer_states" not in content:
            raise ConfigError("it holds weights alone; start from them with init_from")
        _check_entries(module, path, content)
    except GenlabError as error:
        raise type(error)(f"{key}: {error}") from error
    return CheckedResume(path, content, run)


def copy_record(module: nn.Module, run: Path, step: int, directory: RunDirectory) -> None:
    """Copy what another run has logged up to a step, and its best checkpoint, into a directory.

    Raises:
        ConfigError, RunDirectoryError: they cannot be read, or the checkpoint does not fit.
    """
    if not directory.writes:
        return
    for row in Run(run).metrics():
        logged = {k: v for k, v in row.items() if k not in ("step", "epoch")}
        if row["step"] <= step and not any(name.startswith("test/") for name in logged):
            values = {k: math.nan if v is None else float(v) for k, v in logged.items()}
            directory.append_metrics(int(row["step"]), int(row.get("epoch", 0)), values)
    best = run / "checkpoints" / "best.ckpt"
    if best.exists():
        check_fits(module, best)
        with open_regular(best) as source, replacing(directory.checkpoints / "best.ckpt") as copy_:
            shutil.copyfileobj(source, copy_)


def _check_entries(module: nn.Module, path: Path, content: dict[str, Any]) -> None:
    with naming(path):
        for entry, like in _ENTRIES.items():
            if entry not in content:
                raise ValueError(f"{entry} is missing")
            schema.check_counters(content[entry], like, entry)
        if not re.fullmatch(_VERSION, content["pytorch-lightning_version"]):
            raise ValueError(
                f"pytorch-lightning_version={content['pytorch-lightning_version']!r}: a version "
                "2 of Lightning is needed"
            )
        if _GRADIENT_SCALE in content:
            raise ValueError(f"{_GRADIENT_SCALE} is of an older Lightning")
        if "raw_weights" in content:
            schema.check_like(content["raw_weights"], {}, "raw_weights")
            schema.check_counters(content.get("ema_updates"), 0, "ema_updates")
            check_weights(path, "raw_weights", content["raw_weights"], averaged(module))


def _check_loops(trainer: pl.Trainer, loops: Mapping[str, Any]) -> None:
    if "fit_loop" not in loops:
        raise ValueError("loops.fit_loop is missing")
    loop = trainer.fit_loop
    schema.check_counters(loops["fit_loop"], loop.state_dict(), "loops.fit_loop")
    epochs = loops["fit_loop"]["epoch_progress"]["current"]["processed"]
    if loop.max_epochs is not None and 0 <= loop.max_epochs < epochs:
        raise ValueError(
            f"loops.fit_loop.epoch_progress.current.processed={epochs}: the training ends after "
            f"{loop.max_epochs} epochs"
        )


def _check_continues(run: Path, trainer: pl.Trainer, content: Mapping[str, Any]) -> None:
    """Check that this training goes on after that of a run, in epochs of as many batches.

    Raises:
        ConfigError: it does not.
    """
    key = f"continue_from={run}"
    total = trainer.estimated_stepping_batches  # also sets up the loaders
    averages = any(isinstance(callback, WeightAverage) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if averages != ("raw_weights" in content):
        told = "averaged" if not averages else "did not average"
        raise ConfigError(
            f"{key}: this run {told} its weights; {'leave out' if averages else 'set'} ema_decay"
        )
    with naming(run):
        _check_loops(trainer, content["loops"])
    loop = content["loops"]["fit_loop"]
    epochs = loop["epoch_progress"]["current"]["processed"]
    batches = loop["epoch_loop.batch_progress"]["total"]["processed"]
    if batches // trainer.num_training_batches != epochs:
        raise ConfigError(
            f"{key}: it has {batches:,} batches in {epochs} epochs, and this run "
            f"{trainer.num_training_batches:,} an epoch; keep data.batch_size, "
            "data.train_images, data.val_images and trainer.limit_train_batches"
        )
    if content["global_step"] >= total:
        raise ConfigError(
            f"{key}: it has {epochs} epochs, {content['global_step']:,} steps; give more "
            "trainer.max_epochs"
        )


def _configured_anew(
    trainer: pl.Trainer, module: pl.LightningModule, steps: int
) -> tuple[list[Any], list[Any]]:
    """Return the states of new optimizers, and of schedules that have taken so many steps."""
    twin = _twin(trainer, module)
    configured = twin.configure_optimizers()
    schedules = list(_instances(configured, LRScheduler))
    with warnings.catch_warnings(action="ignore"):  # there are no steps of the optimizer
        for schedule in schedules:
            if not isinstance(schedule, ReduceLROnPlateau):
                for _ in range(steps):
                    schedule.step()
    optimizers = [optimizer.state_dict() for optimizer in _instances(configured, Optimizer)]
    return optimizers, [schedule.state_dict() for schedule in schedules]


def _with_settings(state: Any, like: Any) -> Any:
    """Return the state of an optimizer with the settings of another."""
    if isinstance(state, dict) and "param_groups" in state:
        return {**state, "param_groups": like["param_groups"]}
    if isinstance(state, dict):
        return {k: _with_settings(v, like[k]) if k in like else v for k, v in state.items()}
    if isinstance(state, list):
        return [_with_settings(part, own) for part, own in zip(state, like, strict=True)]
    return state


def _twin(trainer: pl.Trainer, module: pl.LightningModule) -> Any:
    twin = copy.deepcopy(module)
    twin.trainer = trainer
    if not isinstance(trainer.strategy, ShardsNetworks):  # else one device may be too small
        twin.to(trainer.strategy.root_device)
    return twin


def _check_optimizers(trainer: pl.Trainer, module: pl.LightningModule, content: Any) -> None:
    """Check the states of optimizers and learning-rate schedules, and try them on a copy."""
    total = trainer.estimated_stepping_batches
    twin = _twin(trainer, module)
    configured = twin.configure_optimizers()
    optimizers = list(_instances(configured, Optimizer))
    schedules = list(_instances(configured, LRScheduler))
    schema.check_like(content["optimizer_states"], [{} for _ in optimizers], "optimizer_states")
    states = [schedule.state_dict() for schedule in schedules]
    schema.check_like(content["lr_schedulers"], states, "lr_schedulers")
    for parameter in twin.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    for number, optimizer in enumerate(optimizers):
        entry, state = f"optimizer_states.{number}", content["optimizer_states"][number]
        optimizer.step(lambda: 0.0)
        schema.check_optimizer(state, optimizer.state_dict(), entry)
        with _tried(entry):
            optimizer.load_state_dict(state)
            optimizer.step(lambda: 0.0)
    for number, schedule in enumerate(schedules):
        with _tried(f"lr_schedulers.{number}"):
            schedule.load_state_dict(content["lr_schedulers"][number])
            if content["global_step"] < total:  # a schedule can end with the training
                schedule.step(*([0.0] if isinstance(schedule, ReduceLROnPlateau) else []))


def _instances(configured: Any, kind: type) -> Iterator[Any]:
    """Yield the objects of a kind in what `configure_optimizers` returned, in order."""
    if isinstance(configured, kind):
        yield configured
    elif isinstance(configured, Mapping):
        yield from _instances(list(configured.values()), kind)
    elif isinstance(configured, list | tuple):
        for part in configured:
            yield from _instances(part, kind)


@contextmanager
def _tried(entry: str) -> Iterator[None]:
    """Turn whatever is raised when a state is restored in a copy into a ValueError."""
    try:
        yield
    except Exception as error:
        if explanation(error) is not None:  # a lack of memory is not the fault of the file
            raise
        reason = (str(error).splitlines() or [""])[0][:160]
        raise ValueError(
            f"{entry} cannot be restored ({type(error).__name__}: {reason})"
        ) from error
