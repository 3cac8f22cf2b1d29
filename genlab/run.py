"""The composition root: a config to data, module and trainer, and these to a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_type_hints

import lightning.pytorch as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.tree import Tree

from genlab import checkpoints, configs, points, seeding
from genlab.callbacks.alive import Alive
from genlab.callbacks.checkpoint import (
    AtomicCheckpointIO,
    LastCheckpoint,
    StopOnSignal,
    Stopped,
    best_checkpoint,
)
from genlab.callbacks.ema import WeightAverage
from genlab.callbacks.idle import without_idle_hooks
from genlab.callbacks.profiler import Silent
from genlab.callbacks.progress import SHOWN, progress
from genlab.composition import say_refused
from genlab.data.datamodule import ImageData, SplitName
from genlab.environment import environment, git_commit, versions
from genlab.errors import (
    DONE,
    INTERRUPTED,
    TRAINING_FAILED,
    ConfigError,
    GenlabError,
)
from genlab.faults import explained
from genlab.modules.base import GenerativeModule
from genlab.outcome import Outcome
from genlab.results import Run, RunDirectory, set_aside
from genlab.run_config import RunConfig
from genlab.tracking.record import RecordLogger
from genlab.vae.forecast import Forecast

log = logging.getLogger(__name__)

#: Where a run's name on the command line says nothing about what it computes.
_UNNAMED = ("experiment", "data.data_dir", "runs_dir", "group", "overwrite", "logger", "launcher")

UNITS = {
    "loss": "nats/image",
    "reconstruction": "nats/image",
    "kl": "nats/image",
    "kl_prior": "nats/image",
    "kl_diffusion": "nats/image",
    r"bound_log_snr_[+-]\d+": "nats/image",
    "neg_elbo_se": "nats/image",
    "neg_elbo": "nats/image",
    "nll_iwae": "nats/image",
    "rate": "nats/image",
    "rate_ceiling": "nats/image",
    "bits_per_dim": "bits",
    "mutual_information": "nats",
    "aggregate_kl": "nats",
    "information_cap": "nats",
    "active_units": "count",
    "images_per_second": "images/s",
    "energy_distance": "norm of pixels in [0, 1]",
    "seconds_per_sample": "s",
    "evaluations": "count",
    "squared_error": "summed squared error/image",
}


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
        if not is_multirun():
            sys.exit(code)
        return Outcome(code, path=getattr(error, "run_directory", None), message=message)


def is_multirun() -> bool:
    """Whether this is one job of several."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


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
    _quieten_libraries()
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    if not is_first:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    planned = plan(cfg, _overrides())
    config, run_config, path = planned.config, planned.run_config, planned.path
    if is_multirun() and planned.processes > 1 and not SLURMEnvironment.detect():
        devices = run_config.trainer.get("devices")
        raise ConfigError(
            f"trainer.devices={devices}: each of the {planned.processes} processes would start the "
            "whole multirun again; add launcher=process, which starts each job by itself"
        )
    before = Run(path)
    if not run_config.overwrite and before.is_completed:
        print(f"completed before: {path} (overwrite=true trains anew)")
        _show(before.result or {}, path)
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
        _logged_to(directory.log_path) if is_first else contextlib.nullcontext(),
    ):
        directory.write_config(configs.to_yaml(config))
        directory.write_env(environment())
        directory.write_status("running")
        try:
            with explained():
                result = _train_in(directory, run_config, config, data, module, callbacks)
        except BaseException as error:
            with contextlib.suppress(OSError):  # where nothing can be written, not even this
                _record_failure(directory, error)
            error.run_directory = path  # type: ignore[attr-defined]
            raise
        directory.write_result(result)
        directory.write_status("completed")
    _show(result, path)
    return Outcome(DONE, path, result)


def _show(result: dict[str, Any], path: Path) -> None:
    metrics = result.get("metrics", {})
    terms = [f"{n} {metrics[f'test/{n}']:.2f}" for n in SHOWN if f"test/{n}" in metrics]
    terms += [f"{n[5:]} {v:.2f}" for n, v in metrics.items() if n.startswith("test/nll_iwae")]
    if result.get("verdict"):
        terms.append(str(result["verdict"]))
    print(f"test   {'  '.join(terms)}")
    print(f"result {path / 'result.json'}")


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
    _introduce(path, config, data, module, resumed is not None)
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

    tracker = _tracker(directory, run_config, config) if directory.writes else None
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
        if module.final_curves:
            directory.write_bound(module.final_curves)
        result = {**_result(run_config, module, last, expected), "evaluated": evaluated}
        if tracker is not None:
            tracker.summarise({**result["metrics"], "verdict": result["verdict"]})
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
            if not is_multirun():
                print(tracker.sentence)


def _tracker(directory: RunDirectory, run_config: RunConfig, config: configs.Config) -> Any:
    if "_target_" not in run_config.logger:
        return None
    choices = _choices()
    group = str(config["group"])
    swept = points.announced()
    of_sweep = (
        points.columns(group, points.point_of(config, choices, swept)) if swept is not None else {}
    )
    # a run that starts anew must not go on with the one on W&B that was set aside here
    aside = len(list(directory.path.parent.glob(f"{directory.name}.old-*")))
    run_id = f"{group}-{directory.name}" + (f"-{aside + 1}" if aside else "")
    return configs.build(
        run_config.logger,
        "logger",
        directory=directory.path,
        run_id=re.sub(r"[^\w-]", "-", run_id)[-120:],
        group=group,
        name=directory.path.name,
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


def _overrides() -> list[str]:
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _choices() -> dict[str, str]:
    """The config files that were chosen: data, model, model/likelihood, ..."""
    if not HydraConfig.initialized():
        return {}
    chosen = HydraConfig.get().runtime.choices
    return {
        str(key): str(value)
        for key, value in chosen.items()
        if value is not None and not str(key).startswith("hydra/")
    }


def _introduce(
    path: Path, config: configs.Config, data: ImageData, module: GenerativeModule, resumed: bool
) -> None:
    shown = {k: v for k, v in config.items() if k not in ("launcher",)}
    tree = Tree("config")
    _grow(tree, shown)
    log.info("resolved config\n%s", configs.to_yaml(config))
    if not (is_multirun() and HydraConfig.get().job.num > 0):
        Console(soft_wrap=True, highlight=False).print(tree)
    parameters = sum(p.numel() for p in module.parameters())
    spec = data.spec
    levels = "real-valued" if spec.levels is None else f"{spec.levels} levels"
    sizes = ", ".join(f"{data.size(s):,} {s}" for s in get_args(SplitName))
    print(f"\nrun    {path}{' (going on)' if resumed else ''}")
    print(f"data   {sizes}; {spec.channels} x {spec.height} x {spec.width}, {levels}")
    print(f"model  {type(module).__name__}, {parameters:,} parameters")
    if module.meaning():
        print(f"knob   {module.meaning()}")


def _grow(tree: Tree, node: dict[str, Any]) -> None:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            _grow(tree.add(key), value)
        else:
            tree.add(f"{key}: {json.dumps(value)}".replace("[", r"\["))


def _result(
    run_config: RunConfig,
    module: GenerativeModule,
    last: LastCheckpoint,
    expected: Forecast | None,
) -> dict[str, Any]:
    metrics = {f"test/{k}": v for k, v in module.final_metrics.items()}
    if expected is not None:
        metrics |= {f"forecast/{k}": v for k, v in expected.metrics().items()}
    units = {
        name: unit
        for name in metrics
        for stem, unit in UNITS.items()
        if re.fullmatch(rf"{stem}(_\d+)?", name.partition("/")[2])
    }
    trainer = module.trainer
    images = trainer.global_step * run_config.data["batch_size"]
    on_gpu = trainer.strategy.root_device.type == "cuda"
    return {
        "metrics": metrics,
        "units": units,
        "verdict": module.verdict(module.final_metrics),
        "forecast_verdict": _expected_verdict(module, expected),
        "seed": run_config.seed,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "wall_seconds": last.seconds,
        "images_per_second": images / last.seconds if last.seconds else None,
        "parameters": sum(p.numel() for p in module.parameters()),
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _expected_verdict(module: GenerativeModule, expected: Forecast | None) -> str:
    known = expected is not None and expected.active_units is not None
    return module.verdict(expected.metrics()) if expected is not None and known else ""


def _record_failure(directory: RunDirectory, error: BaseException) -> None:
    stopped = error.__cause__ if isinstance(error, SystemExit) else error
    if isinstance(stopped, Stopped):
        directory.write_status("preempted", message=str(stopped))
        return
    if isinstance(error, KeyboardInterrupt | SystemExit):
        directory.write_status("preempted", message=signal.Signals.SIGINT.name)
        return
    log.error("failed", exc_info=error)
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "genlab" in f.filename] or frames
    where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    kind = type(error).__name__
    directory.write_status("failed", type=kind, message=str(error), where=where)


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """Log lines of genlab and of Lightning to train.log while a run lasts."""
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


def _quieten_libraries() -> None:
    """What Lightning would print at every start goes to train.log alone."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    if not any(isinstance(h, _Terminal) for h in logging.getLogger().handlers):
        logging.getLogger().addHandler(_Terminal())
    for message in (
        ".*does not have many workers.*",  # the data are in memory: workers would only slow it down
        ".*your dataloader is not resumable.*",  # its order is a function of the step
        ".*`?isinstance\\(treespec, LeafSpec\\)`? is deprecated.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*It is recommended to use `self.log.*sync_dist=True.*",  # they are sums over all already
        ".*FSDP2-wrapped module .* returned a view tensor.*",  # nothing changes it in place
    ):
        warnings.filterwarnings("ignore", message=message)


class _LogFile(logging.FileHandler):
    """A line that finds no room on the disk is dropped without a word."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass


class _Terminal(logging.StreamHandler):  # type: ignore[type-arg]
    """Warnings of genlab's own, one line each."""

    def __init__(self) -> None:
        super().__init__()
        self.setLevel(logging.WARNING)
        self.addFilter(lambda record: record.name.startswith("genlab") and not record.exc_info)
