"""The composition root: a config to data, module and trainer, and these to a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from genlab import seeding
from genlab.callbacks.heartbeat import Alive
from genlab.callbacks.idle import without_idle_hooks
from genlab.callbacks.profiler import Silent
from genlab.config import configs, hydra_job
from genlab.config.compose import say_refused
from genlab.data.datamodule import ImageData
from genlab.errors import (
    DONE,
    INTERRUPTED,
    TRAINING_FAILED,
    ConfigError,
    GenlabError,
)
from genlab.modules.base import GenerativeModule
from genlab.runs import points
from genlab.runs.directory import Run, RunDirectory, set_aside
from genlab.tracking.account import id_from_agent
from genlab.tracking.record import RecordLogger
from genlab.training import console
from genlab.training import result as ending
from genlab.training import weights as checkpoints
from genlab.training.checkpoints import (
    AtomicCheckpointIO,
    LastCheckpoint,
    StopOnSignal,
    Stopped,
    best_checkpoint,
)
from genlab.training.ema import WeightAverage
from genlab.training.environment import environment
from genlab.training.faults import explained
from genlab.training.outcome import Outcome
from genlab.training.progress_bar import progress
from genlab.training.run_config import RunConfig

log = logging.getLogger(__name__)

#: Where a run's name on the command line says nothing about what it computes.
_UNNAMED = ("experiment", "data.data_dir", "runs_dir", "group", "overwrite", "logger", "launcher")


def train(cfg: DictConfig) -> Outcome:
    """One job of `train.py`: a run from its composed config to its result.

    A failure ends the process with its exit code; in a multirun it is returned instead, so that the
    other jobs go on.
    """
    try:
        return run(cfg)
    except Stopped as stopped:
        sys.exit(stopped.exit_code)  # of a multirun too: whoever stops it means all of it
    except Exception as error:
        code = error.exit_code if isinstance(error, GenlabError) else TRAINING_FAILED
        message = (
            str(error) if isinstance(error, GenlabError) else f"{type(error).__name__}: {error}"
        )
        if OmegaConf.select(cfg, "traceback") or not isinstance(error, GenlabError):
            traceback.print_exc()
        say_refused(message)
        if not hydra_job.is_multirun():
            sys.exit(code)
        return Outcome(code, path=getattr(error, "run_directory", None), message=message)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run before it starts: its checked config, and where it lies."""

    config: configs.Config
    run_config: RunConfig
    path: Path

    @property
    def processes(self) -> int:
        """How many `trainer.devices` and `trainer.num_nodes` ask for."""
        trainer = self.run_config.trainer
        devices = trainer.get("devices", "auto")
        if isinstance(devices, list):
            count = len(devices)
        elif devices in ("auto", -1, "-1"):
            count = 1 if trainer.get("accelerator") == "cpu" else torch.cuda.device_count()
        else:
            count = str(devices).strip(",").count(",") + 1 if "," in str(devices) else int(devices)
        return max(1, count) * int(trainer.get("num_nodes") or 1)


def plan(cfg: DictConfig, overrides: Sequence[str]) -> Plan:
    """Check a composed config, and find its run directory.

    Raises:
        ConfigError: naming the key, the value and what would be right.
    """
    config = configs.resolve(cfg, get_type_hints(RunConfig))
    config.pop("hydra", None)
    run_config = RunConfig.of(config)
    group = run_config.group or os.environ.get("GENLAB_SWEEP_GROUP") or "single"
    config = {**config, **_plain(run_config), "group": group}
    return Plan(config, run_config, run_path(config, group, overrides))


def assemble(planned: Plan) -> tuple[ImageData, GenerativeModule]:
    """The data and the module of a run, before any data is read.

    Raises:
        ConfigError: a value that the class behind a key refuses.
    """
    config, seed = planned.config, planned.run_config.seed
    seeding.seed_everything(seed)
    data: ImageData = configs.build(config["data"], "data")
    return data, configs.build(config["model"], "model", spec=data.spec, seed=seed)


@explained()
def run(cfg: DictConfig) -> Outcome:
    """Train and test what `cfg` describes, or go on with it, or return what it gave before.

    Of several processes of one run the first alone writes and speaks.
    """
    console.quieten_libraries()
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    if not is_first:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    planned = plan(cfg, hydra_job.overrides())
    config, run_config, path = planned.config, planned.run_config, planned.path
    if hydra_job.is_multirun() and planned.processes > 1 and not SLURMEnvironment.detect():
        devices = run_config.trainer.get("devices")
        raise ConfigError(
            f"trainer.devices={devices}: each of the {planned.processes} processes would start the "
            "whole multirun again; add launcher=process, which starts each job by itself"
        )
    before = Run(path)
    if not run_config.overwrite and before.is_completed:
        print(f"completed before: {path} (overwrite=true trains anew)")
        console.show(before.result or {}, path)
        if id_from_agent() and is_first:
            _send(before, run_config, config)
        return Outcome(DONE, path, before.result)

    torch.set_float32_matmul_precision(run_config.matmul_precision)
    data, module = assemble(planned)
    callbacks = {name: node for name, node in run_config.callbacks.items() if node is not None}
    if run_config.init_from is not None:
        try:
            checkpoints.load_weights(module, Path(run_config.init_from))
        except GenlabError as error:
            raise type(error)(f"init_from={run_config.init_from}: {error}") from error
    data.prepare_data()
    data.setup("fit")
    data.setup("test")

    if run_config.overwrite and path.exists() and is_first:
        print(f"overwrite: the run that was here is now {set_aside(path)}")
    with (
        RunDirectory(path, writes=is_first) as directory,
        console.logged_to(directory.log_path) if is_first else contextlib.nullcontext(),
    ):
        directory.write_config(configs.to_yaml(config))
        directory.write_env(environment())
        directory.write_status("running")
        try:
            with explained():
                result = _train_in(directory, run_config, config, data, module, callbacks)
        except BaseException as error:
            with contextlib.suppress(OSError):  # where nothing can be written, not even this
                ending.record_failure(directory, error)
            error.run_directory = path  # type: ignore[attr-defined]
            raise
        directory.write_result(result)
        directory.write_status("completed")
    console.show(result, path)
    return Outcome(DONE, path, result)


def _plain(run_config: RunConfig) -> dict[str, Any]:
    return {f.name: getattr(run_config, f.name) for f in dataclasses.fields(run_config)}


def _train_in(
    directory: RunDirectory,
    run_config: RunConfig,
    config: configs.Config,
    data: ImageData,
    module: GenerativeModule,
    callback_nodes: dict[str, Any],
) -> dict[str, Any]:
    path = directory.path
    resumed = checkpoints.to_resume(module, directory.checkpoints / "last.ckpt")
    console.introduce(path, config, data, module, resumed is not None)
    expected = module.forecast(data.pixels("train")) if run_config.forecast else None
    if expected is not None:
        print(f"expect {expected.sentence}")
    print(flush=True)

    last = LastCheckpoint(
        directory.checkpoints,
        run_config.checkpoint_every_n_steps,
        run_config.checkpoint_every_n_minutes,
    )
    watchers: list[pl.Callback] = []
    if run_config.ema_decay is not None:
        watchers.append(WeightAverage(run_config.ema_decay))  # first: see its docstring
    folders = {"directory": directory.pictures, "videos": directory.videos}
    watchers += [
        configs.build(
            node,
            f"callbacks.{name}",
            **{key: folder for key, folder in folders.items() if configs.takes(node, key)},
        )
        for name, node in callback_nodes.items()
    ]
    stop = StopOnSignal(last)
    watchers += [progress(), last, stop, Alive(directory)]
    watchers.append(best_checkpoint(directory.checkpoints, "val/loss"))
    if run_config.early_stopping_epochs is not None:
        watchers.append(EarlyStopping("val/loss", patience=run_config.early_stopping_epochs))

    for watcher in watchers:
        without_idle_hooks(watcher, pl.Callback)
    without_idle_hooks(module, pl.LightningModule)

    tracker = _tracker(path, run_config, config) if directory.writes else None
    exit_code, failure = TRAINING_FAILED, ""
    try:
        trainer: pl.Trainer = configs.build(
            run_config.trainer,
            "trainer",
            **({"profiler": Silent()} if run_config.trainer.get("profiler") is None else {}),
            callbacks=watchers,
            logger=[RecordLogger(directory), *([tracker] if tracker is not None else [])],
            plugins=[AtomicCheckpointIO()],
            default_root_dir=str(path),
            enable_progress_bar=any(isinstance(w, pl.callbacks.ProgressBar) for w in watchers),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        if run_config.channels_last:
            module.to(memory_format=torch.channels_last)
        if run_config.compile:
            for network in module.networks().values():
                network.compile()  # in place: the names in checkpoints stay what they are
        with stop.listening():
            trainer.fit(module, datamodule=data, ckpt_path=resumed)
            best = run_config.evaluate == "best" and (directory.checkpoints / "best.ckpt").exists()
            evaluated = "best" if best else "last"
            checkpoints.load_weights(module, directory.checkpoints / f"{evaluated}.ckpt")
            trainer.test(module, datamodule=data, verbose=False)
        if curves := ending.curves(module, expected):
            directory.write_bound(curves)
        result = {**ending.result(module, last.seconds, expected), "evaluated": evaluated}
        if tracker is not None:
            tracker.summarise(result)
        exit_code = DONE
        return result
    except Stopped as stopped:
        exit_code = stopped.exit_code
        raise
    except SystemExit as end:  # by whoever handled the signal before, or by Lightning after Ctrl-C
        exit_code = getattr(end.__cause__, "exit_code", INTERRUPTED)
        raise
    except KeyboardInterrupt:
        exit_code = INTERRUPTED
        raise
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        raise
    finally:
        if tracker is not None:
            tracker.close(exit_code, failure)
            if not hydra_job.is_multirun():
                print(tracker.sentence)


def _send(run: Run, run_config: RunConfig, config: configs.Config) -> None:
    """Send what a completed run holds: its sweep on W&B waits for the numbers of this point."""
    tracker = _tracker(run.path, run_config, config)
    if tracker is not None:
        tracker.summarise(run.result or {})
        tracker.close(DONE)
        print(tracker.sentence)


def _tracker(path: Path, run_config: RunConfig, config: configs.Config) -> Any:
    if "_target_" not in run_config.logger:
        return None
    choices = hydra_job.choices()
    group = str(config["group"])
    swept = points.announced()
    of_sweep = (
        points.columns(group, points.point_of(config, choices, swept)) if swept is not None else {}
    )
    # a run that starts anew must not go on with the one on W&B that was set aside here
    aside = len(list(path.parent.glob(f"{path.name}.old-*")))
    run_id = f"{group}-{path.name}" + (f"-{aside + 1}" if aside else "")
    return configs.build(
        run_config.logger,
        "logger",
        directory=path,
        run_id=re.sub(r"[^\w-]", "-", run_id)[-120:],
        group=group,
        name=path.name,
        job_type="train",
        tags=sorted({*(f"{key}:{value}" for key, value in choices.items()), *run_config.tags}),
        notes=run_config.notes,
        config={**config, **of_sweep},
    )


def run_path(config: configs.Config, group: str, overrides: Sequence[str]) -> Path:
    """Where this config's run lies: its directory of before, or the one that it would be given.

    The last 8 characters, a hash of what the run computes, are its identity; the words before them
    are for people.
    """
    folder = Path(config["runs_dir"]) / group
    identity = configs.identity(config)
    for found in sorted(folder.glob(f"*-{identity}")):
        return found
    model = str(config["model"].get("_target_", "model")).rsplit(".", 1)[-1].lower()
    words = [model]
    # what belongs to the model comes first, where no cut can reach it
    for override in sorted(overrides, key=lambda o: (not o.startswith("model"), o)):
        key, _, value = override.lstrip("+~").partition("=")
        if not any(key == u or key.startswith(f"{u}.") for u in _UNNAMED):
            words.append(f"{re.split('[./]', key)[-1]}_{value}")
    # no character that the command line would want quoted
    tag = re.sub(r"[^\w.-]+", "_", "-".join(words))[:80]
    return folder / f"{tag}-{identity}"
