"""One run: build data, module and trainer from a config, train, test, fill a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import textwrap
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import EarlyStopping, ProgressBar
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import nn

from genlab.callbacks.heartbeat import Heartbeat
from genlab.config import hydra_job
from genlab.config.build import build, takes
from genlab.config.check import to_yaml
from genlab.data.datamodule import ImageData
from genlab.errors import DONE, TRAINING_FAILED, ConfigError, GenlabError, at_key
from genlab.metrics.features.base import weights_digest
from genlab.modules.base import GenerativeModule
from genlab.protocols import Forecast, HasForecast, HasNetworks
from genlab.runs import points
from genlab.runs.directory import RunDirectory, set_aside
from genlab.runs.manifest import point_in_sweep
from genlab.runs.run import Run
from genlab.tracking.account import id_from_agent
from genlab.tracking.loggers import Loggers, TrackedRun, tracker_id
from genlab.tracking.record import RecordLogger
from genlab.training import codec, console, interrupts, result, weights
from genlab.training.checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from genlab.training.countdown import Countdown
from genlab.training.data_record import (
    data_key,
    data_record,
    refuse_changed,
    refuse_changed_since,
)
from genlab.training.ema import WeightAverage
from genlab.training.environment import environment
from genlab.training.faults import explained
from genlab.training.interrupts import Stopped
from genlab.training.kept_inputs import batches, kept_inputs
from genlab.training.kept_terms import KeptTerms, forget
from genlab.training.outcome import Outcome
from genlab.training.planning import Plan, assemble, counted, plan
from genlab.training.progress_bar import progress
from genlab.training.resume import CheckedResume, copy_record, to_continue, to_resume
from genlab.training.run_config import RunConfig
from genlab.training.signals import StopOnSignal
from genlab.training.terminal import print_error, told
from genlab.training.throughput import Throughput


def train(cfg: DictConfig) -> Outcome:
    """Run one job of `train.py`, from its composed config to its result.

    A failure ends the process with its exit code; in a multirun it is returned instead, so that
    the other jobs continue.
    """
    try:
        with interrupts.raised():
            return run(cfg)
    except Stopped as stopped:
        sys.exit(stopped.exit_code)  # also in a multirun: a stop signal stops all of its jobs
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # of the user's classes too
        code, sentence = told(error)
        message = sentence or f"{type(error).__name__}: {error}"
        if OmegaConf.select(cfg, "traceback") or sentence is None:
            traceback.print_exc()
        print_error(message)
        if not hydra_job.is_multirun():
            sys.exit(code)
        path = getattr(error, "run_directory", None)
        if path is None and hydra_job.must_raise_refusals():
            raise
        return Outcome(code, path=path, message=message)


@explained()
def run(cfg: DictConfig) -> Outcome:
    """Train and test the run of `cfg`, or resume it, or return its earlier result.

    If a run has several processes, only the first writes files and prints.
    """
    console.quieten_libraries()
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    if not is_first:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    planned = plan(cfg, hydra_job.overrides())
    run_config, path = planned.run_config, planned.path
    _refuse_nested_processes(planned)
    before = Run(path)
    if not run_config.overwrite and before.is_completed:
        refuse_changed_since(planned)
        print(f"completed before: {path} (overwrite=true trains anew)")
        console.show(before.result or {}, before.result_path)
        if id_from_agent() and is_first:
            _send(before, planned)
        return Outcome(DONE, path, before.result)

    torch.set_float32_matmul_precision(run_config.matmul_precision)
    data, module = assemble(planned)
    if run_config.init_from is not None:
        weights.load_into(module, Path(run_config.init_from), "init_from")
    goes_on = not run_config.overwrite and (before.checkpoints / "last.ckpt").exists()
    continued = None
    if run_config.continue_from is not None and not goes_on:
        continued = to_continue(module, Path(run_config.continue_from))
        if codec.source_of(planned.config) is not None:
            weights.load_into(module, continued.path)  # its VAE is looked at below
    for key in ("init_from", "continue_from"):
        if not goes_on and (start := getattr(run_config, key)) is not None:
            codec.refuse_other_vae(module.model, planned.config, key, start)
    # a run that goes on, or starts from the weights of another one, has its own copy
    starts_anew = not goes_on and continued is None and run_config.init_from is None
    needs_vae = run_config.trains and starts_anew
    if needs_vae:
        codec.load_vae(module.model, planned.config)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    images = data_record(planned.config, data)
    if images and not run_config.overwrite:
        refuse_changed(path, images)
    if needs_vae:
        codec.refuse_other_images(planned.config, images)
    run_config.check_limits(data.batches())
    planned = counted(planned, data, module)

    if run_config.overwrite and path.exists() and is_first:
        print(f"overwrite: the run that was here is now {set_aside(path)}")
    with (
        RunDirectory(path, writes=is_first) as directory,
        console.logged_to(directory.log_path) if is_first else contextlib.nullcontext(),
    ):
        try:
            with explained(), directory.in_place():
                directory.write_config(to_yaml(planned.config))
                directory.write_spec(dataclasses.asdict(data.spec))
                if images:
                    directory.write_data(images)
                directory.write_env(environment())
                directory.write_status("running")
                with directory.beating():
                    outcome = _train_in(directory, planned, data, module, continued)
                directory.write_result(outcome)
                directory.write_status("completed")
                if directory.writes:
                    forget(directory.checkpoints)
        except BaseException as error:
            # the disk may be full or the directory gone, so that not even this can be written
            with contextlib.suppress(OSError, GenlabError):
                result.record_failure(directory, error)
            error.run_directory = path  # type: ignore[attr-defined]
            raise
    console.show(outcome, directory.result_path)
    return Outcome(DONE, path, outcome)


def _refuse_nested_processes(planned: Plan) -> None:
    """Refuse a multirun in which each process of a job would start the whole multirun again."""
    if hydra_job.is_multirun() and planned.processes > 1 and not SLURMEnvironment.detect():
        devices = planned.run_config.trainer.get("devices")
        raise ConfigError(
            f"trainer.devices={devices}: each of the {planned.processes} processes would start the "
            "whole multirun again; add launcher=process, which starts each job by itself"
        )


def _train_in(
    directory: RunDirectory,
    planned: Plan,
    data: ImageData,
    module: GenerativeModule,
    continued: CheckedResume | None,
) -> dict[str, Any]:
    """Train, test, and return the content of result.json.

    Args:
        continued: the checkpoint of another run, to go on from where there is none of this run.
    """
    run_config = planned.run_config
    resumed = to_resume(module, directory.checkpoints / "last.ckpt") if run_config.trains else None
    resumed = resumed or continued
    own = _callbacks(directory, planned, module.monitor)  # may refuse a value, before any work
    console.introduce(planned.path, planned.config, data, module.model, resumed is not None)
    _install_codec(planned, data, module, resumed, Run(directory.path).data or {})
    forecast: Forecast | None = None
    if run_config.forecast and isinstance(module.model, HasForecast):
        forecast = module.model.forecast(data.pixels("train"))
    if forecast is not None:
        print(textwrap.fill(f"expect {forecast.sentence}", 80, subsequent_indent=" " * 7))
    print(flush=True)

    last = LastCheckpoint(
        directory.checkpoints,
        run_config.checkpoint_every_n_steps,
        run_config.checkpoint_every_n_minutes,
    )
    stop = StopOnSignal(last)
    callbacks = [*own, last, stop]
    callbacks += _of_long_test(directory, run_config)
    if resumed is not None:
        callbacks.append(resumed)
    if resumed is not None and (source := resumed.source) is not None:
        resumed.then = lambda: copy_record(module, source, resumed.step, directory)
    with _followed(directory, planned) as loggers, stop.listening():
        trainer: pl.Trainer = build(
            run_config.trainer,
            "trainer",
            callbacks=callbacks,
            logger=[RecordLogger(directory), *loggers.all],
            plugins=[AtomicCheckpointIO()],
            default_root_dir=str(planned.path),
            enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        if run_config.channels_last:
            module.to(memory_format=torch.channels_last)
        if run_config.compile:
            _compile(module.model, run_config.compile)
        if run_config.trains:
            trainer.fit(module, datamodule=data, ckpt_path=resumed.path if resumed else None)
        elif directory.writes:
            content = {"state_dict": module.state_dict()}
            AtomicCheckpointIO().save_checkpoint(content, directory.checkpoints / "last.ckpt")
        best = run_config.evaluate == "best" and (directory.checkpoints / "best.ckpt").exists()
        evaluated = "best" if best else "last"
        if run_config.trains:
            weights.load_into(module, directory.checkpoints / f"{evaluated}.ckpt")
        (tested,) = trainer.test(module, datamodule=data, verbose=False)
        if curves := result.curves(module, forecast):
            directory.write_bound(curves)
        outcome = result.result(module, tested, last.seconds, forecast, planned.flops)
        outcome["evaluated"] = evaluated
        loggers.summarise(outcome)
        return outcome


def _compile(model: nn.Module, mode: str | bool) -> None:
    """Compile the loss of a model as one function, and its networks, in which it is evaluated.

    It is done in place, so that the names in checkpoints stay what they are.

    Args:
        mode: true, or a mode of `torch.compile` for the loss; "networks" leaves the loss out.
    """
    if mode != "networks":
        # the batches of a training are all of one size
        model.compile(mode=None if mode is True else str(mode), dynamic=False)
    for network in model.networks().values() if isinstance(model, HasNetworks) else ():
        network.compile()


def _install_codec(
    planned: Plan,
    data: ImageData,
    module: GenerativeModule,
    resumed: CheckedResume | None,
    images: Mapping[str, Any],
) -> None:
    """Keep what the trained networks of a codec make of the training images, and measure it."""
    model, config = module.model, planned.config
    if codec.source_of(config) is None or not planned.run_config.trains:
        return
    if resumed is not None:
        weights.load_into(module, resumed.path)
        codec.told_if_changed(model, config)
    known = f"{data_key(config['data'], images.get('files'))} {weights_digest(model.codec.vae)}"
    on_gpu = planned.run_config.trainer.get("accelerator") != "cpu" and torch.cuda.is_available()
    inputs = kept_inputs(model, data, known, "cuda" if on_gpu else "cpu")
    if inputs is None:
        return
    if resumed is None and planned.run_config.init_from is None:
        with at_key("model.codec"):
            for sentence in model.codec.measure(batches(inputs)):
                print(textwrap.fill(f"codec  {sentence}", 80, subsequent_indent=" " * 7))
    data.train_inputs = inputs


def _callbacks(directory: RunDirectory, planned: Plan, monitor: str) -> list[pl.Callback]:
    """Return all callbacks but the last two, in order; averaged weights come first.

    Args:
        monitor: the metric by which the best checkpoint is chosen.
    """
    run_config = planned.run_config
    found: list[pl.Callback] = []
    if run_config.ema_decay is not None:
        found.append(WeightAverage(run_config.ema_decay))
    images = Run(directory.path).data or {}
    known = {
        "directory": directory.pictures,
        "videos": directory.videos,
        "run": directory.path,
        "data_key": data_key(planned.config["data"], images.get("files")),
    }
    for name, node in run_config.callbacks.items():
        if node is not None:
            given = {key: value for key, value in known.items() if takes(node, key)}
            found.append(build(node, f"callbacks.{name}", **given))
    flops = None if planned.flops is None else planned.flops.per_image
    found += [progress(), Throughput(flops), Heartbeat(directory)]
    found.append(BestCheckpoint(directory.checkpoints, monitor))
    if run_config.early_stopping_epochs is not None:
        found.append(_early_stopping(run_config.early_stopping_epochs, monitor))
    return found


def _of_long_test(directory: RunDirectory, run_config: RunConfig) -> list[pl.Callback]:
    settings = [
        run_config.model,
        run_config.trainer.get("precision"),
        run_config.matmul_precision,
        run_config.channels_last,
        run_config.compile,
    ]
    kept = KeptTerms(directory.checkpoints, settings)
    return [kept, Countdown(known=lambda: kept.known)]


def _early_stopping(patience: int, monitor: str) -> EarlyStopping:
    # a training that ends before its first validation has nothing to be stopped by
    return EarlyStopping(monitor, patience=patience, check_on_train_epoch_end=False)


@contextlib.contextmanager
def _followed(directory: RunDirectory, planned: Plan) -> Iterator[Loggers]:
    """Yield the loggers of a run; close them with the outcome at its end."""
    nodes = planned.run_config.logger if directory.writes else {}
    loggers = Loggers(nodes, _tracked(planned))
    exit_code, failure = TRAINING_FAILED, ""
    try:
        yield loggers
        exit_code = DONE
    except Stopped as stopped:
        exit_code = stopped.exit_code
        raise
    except SystemExit as end:  # by the previous handler of the signal, or by a part of the run
        exit_code = getattr(end.__cause__, "exit_code", TRAINING_FAILED)
        raise
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        raise
    finally:
        loggers.close(exit_code, failure)
        if not hydra_job.is_multirun():
            for sentence in loggers.sentences:
                print(sentence)


def _send(run: Run, planned: Plan) -> None:
    """Log the content of a completed run, since its sweep on W&B waits for this point's result."""
    loggers = Loggers(planned.run_config.logger, _tracked(planned))
    loggers.summarise(run.result or {})
    loggers.close(DONE)
    for sentence in loggers.sentences:
        print(sentence)


def _tracked(planned: Plan) -> TrackedRun:
    path, config = planned.path, planned.config
    choices = hydra_job.choices()
    group = str(config["group"])
    swept = points.announced()
    of_sweep = {}
    if swept is not None:
        point = point_in_sweep(config, choices, swept)
        of_sweep = points.columns(group, point)
    return TrackedRun(
        directory=path,
        id=tracker_id(path, group),
        group=group,
        name=path.name,
        tags=sorted({*(f"{k}:{v}" for k, v in choices.items()), *planned.run_config.tags}),
        notes=planned.run_config.notes,
        config={**config, **of_sweep},
    )
