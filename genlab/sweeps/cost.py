"""Estimate the steps and the time of a study without leaving files behind."""

from __future__ import annotations

import json
import logging
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from genlab.config.build import build
from genlab.config.check import Config, from_yaml, need
from genlab.data.datamodule import ImageData
from genlab.errors import ConfigError
from genlab.runs.points import point_text
from genlab.runs.run import Run, find_runs
from genlab.runs.text import in_words
from genlab.sweeps.freeze import Composed
from genlab.sweeps.merging import firsts
from genlab.sweeps.study import Point, Study, StudyJob
from genlab.training import planning
from genlab.training.flops import limited, steps_per_epoch

_LEAST_SHARE = 0.1
_TIMED_STEPS, _WARM_UP, _TIMED_EVALUATIONS = 30, 5, 2


def plan_of(cfg: DictConfig) -> planning.Plan:
    """Check a job as Hydra composed it, and find its run directory.

    Raises:
        ConfigError: the job would refuse the config.
    """
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return planning.plan(own, list(cfg.hydra.overrides.task))


@dataclass(frozen=True)
class Work:
    """The work of one job: optimizer steps, images and batches."""

    steps: int
    images: int
    validation_batches: int
    test_batches: int


@dataclass(frozen=True)
class Pace:
    """Seconds of a training step, of a batch of validation and of test, and their source.

    `fixed` are the seconds of a job that do not depend on its number of steps.
    """

    step: float
    validation: float
    test: float
    source: str
    fixed: float = 0.0

    def seconds(self, work: Work, done: int = 0) -> float:
        """Seconds of a job that has done `done` of its steps."""
        share = max(0, work.steps - done) / max(1, work.steps)
        training = self.step * work.steps + self.validation * work.validation_batches
        return share * training + self.test * work.test_batches + self.fixed


#: The pace of jobs for a GPU on a machine that has none, such as the login node of a cluster.
_UNKNOWN = Pace(
    step=math.nan,
    validation=math.nan,
    test=math.nan,
    source="unknown, since the jobs need a GPU and none is here to measure a step on",
)

#: The pace of jobs that start from runs which are not there yet.
_LATER = Pace(
    step=math.nan,
    validation=math.nan,
    test=math.nan,
    source="unknown for jobs that are `later`, until the runs that they start from are there, or "
    "runs of the same network",
)


def work_of(config: Mapping[str, Any], trainer: Mapping[str, Any], data: ImageData) -> Work:
    """Count the work of a job from its config, the keys of its trainer and its data, set up."""
    batch = config["data"]["batch_size"]
    accumulated = trainer.get("accumulate_grad_batches") or 1
    per_epoch = steps_per_epoch(data, trainer)
    epochs, most = trainer.get("max_epochs"), trainer.get("max_steps") or -1
    steps = most if epochs in (None, -1) else per_epoch * epochs
    steps = min(steps, most) if most > 0 else steps
    validations = steps // per_epoch // (trainer.get("check_val_every_n_epoch") or 1)
    size = config["data"].get("eval_batch_size") or batch
    of_split = {
        split: limited(math.ceil(data.size(split) / size), trainer.get(f"limit_{split}_batches"))
        for split in ("val", "test")
    }
    return Work(steps, steps * batch * accumulated, validations * of_split["val"], of_split["test"])


def plans(jobs: Sequence[StudyJob], composed: Sequence[Composed]) -> list[planning.Plan]:
    """Check every job; build one model for each point, since its replicates differ in the seed.

    Raises:
        ConfigError: a job would refuse its config.
    """
    found = [planning.plan(config, overrides) for config, overrides in composed]
    points: list[Point] = []
    for job, plan in zip(jobs, found, strict=True):
        if job.whole_point not in points:
            points.append(job.whole_point)
            planning.assemble(plan)
    return found


def print_plan(
    study: Study,
    jobs: Sequence[StudyJob],
    composed: Sequence[Composed],
    slots: int,
    waiting: Sequence[tuple[StudyJob, Composed]] = (),
) -> None:
    """Print the table of a study's jobs, and the estimate of their cost.

    Args:
        study: the study.
        jobs: those that can be planned.
        composed: their configs.
        slots: the number of jobs that run at once.
        waiting: the jobs that start from runs that are not there yet, and their configs.

    Raises:
        ConfigError: a job would refuse its config.
    """
    console = Console(soft_wrap=True, highlight=False)
    if study.search is not None:
        console.print(
            f"{study.name}: a search of {study.search.trials} trials for the "
            f"{study.search.direction.removesuffix('e')}um of {study.search.metric}; the cost is "
            "that of one job at the defaults, times that number",
            markup=False,
        )
    elif study.question:
        console.print(f"{study.name}: {study.question}", markup=False)
    planned_jobs = plans(jobs, composed)
    same = dict.fromkeys(firsts([p.path.name for p in planned_jobs], list(map(str, jobs))))
    plan_of_job = [(jobs[i], planned_jobs[i].config, planned_jobs[i]) for i in same]
    all_jobs: list[tuple[StudyJob, Config, planning.Plan | None]] = [
        *plan_of_job,
        *((job, one.config, None) for job, one in waiting),
    ]
    data: dict[str, ImageData] = {}
    paces: dict[str, Pace] = {}
    runs = list(_completed(Path(all_jobs[0][1]["runs_dir"])))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("point", "seed", "state", "steps", "time", "run directory"):
        table.add_column(heading, justify="right" if heading in ("steps", "time") else "left")
    seconds = steps = images = 0.0
    unknown = 0
    is_divided = any(job.needs for job, _, _ in all_jobs)
    keys = [key for job, _, _ in all_jobs for key in job.whole_point]
    for job, config, plan in all_jobs:
        state, done = _state(plan.path) if plan is not None else ("later", 0)
        key = json.dumps({**config["data"], "seed": None}, sort_keys=True)  # for its sizes
        if plan is None:
            if key not in data:
                data[key] = _ready(build(need(config["data"], ImageData, "data"), "data"))
            work = work_of(config, config["trainer"], data[key])
        else:
            if key not in data or plan.run_config.training_flops is not None:
                found, module = planning.assemble(plan)
                data.setdefault(key, _ready(found))
                plan = planning.counted(plan, data[key], module)
            work = work_of(config, plan.run_config.trainer, data[key])
        of_job = 0.0
        if state != "completed":
            kind = _kind(config)
            if kind not in paces:
                known = _known_pace(kind, work, runs)
                paces[kind] = known or (_LATER if plan is None else measure(plan))
            of_job = paces[kind].seconds(work, done)
            steps += work.steps - done
            images += (work.steps - done) / max(1, work.steps) * work.images
        if plan is None and math.isnan(of_job):
            unknown += 1
        else:
            seconds += of_job
        family = [str(config["model"]["_target_"]).rpartition(".")[2]] if is_divided else []
        point = point_text(job.whole_point, keys)
        table.add_row(
            Text(", ".join([*family, *([point] if point else [])]) or "-"),
            str(config["seed"]),
            state,
            f"{work.steps:,}",
            "-" if state == "completed" else _duration(of_job),
            Text("-" if plan is None else str(plan.path), no_wrap=True, overflow="fold"),
        )
    console.width = max(console.width, 200)
    console.print(table)
    trials = study.search.trials if study.search is not None else 1
    total = f", about {_duration(trials * seconds)} one after another"
    total = "" if math.isnan(seconds) else total
    if total and slots > 1:
        total += f", {_duration(trials * seconds / slots)} with {slots} at once"
    total += f", and {unknown} jobs of unknown time" if unknown else ""
    console.print(
        f"\n{len(all_jobs) * trials} jobs; to do: {round(trials * steps):,} steps, "
        f"{round(trials * images):,} images{total}."
    )
    for source in dict.fromkeys(pace.source for pace in paces.values()):
        console.print(f"Time: {source}.", markup=False)
    console.print(
        "Not in it: the start of each process, and what callbacks draw. Nothing was started."
    )


def _ready(data: ImageData) -> ImageData:
    """Read what the sizes of the data need, and return them."""
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def _state(path: Path) -> tuple[str, int]:
    """Return the state of a run directory, and the number of steps that need not be repeated."""
    there = Run(path)
    if there.is_completed:
        return "completed", 0
    if there.state == "missing":
        return "new", 0
    interrupted = there.is_interrupted or there.state == "preempted"
    state = "interrupted" if interrupted else there.state
    resumes = (there.checkpoints / "last.ckpt").exists()
    rows = there.metrics() if resumes else []
    return state, max((row["step"] for row in rows), default=0)


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "?"
    return f"{seconds:.1f} s" if seconds < 9.5 else in_words(seconds)


def _kind(config: Mapping[str, Any]) -> str:
    """Return a text that is equal for configs whose steps cost the same."""
    trainer = config["trainer"]
    kept = [
        config["model"].get("_target_"),
        config["model"].get("net"),
        {key: config["data"].get(key) for key in ("batch_size", "eval_batch_size", "source")},
        {key: trainer.get(key) for key in ("precision", "accelerator", "devices")},
        {key: trainer.get(key) for key in ("limit_val_batches", "limit_test_batches")},
    ]
    return json.dumps(kept, sort_keys=True)


def _completed(runs_dir: Path) -> Iterator[tuple[str, Run]]:
    for there in find_runs(runs_dir) if runs_dir.is_dir() else ():
        text = there.config_text
        if there.is_completed and text is not None:
            try:
                yield _kind(from_yaml(text, str(there.config_path))), there
            except (ConfigError, KeyError, AttributeError, TypeError):
                continue  # of an older version, whose pace does not apply to this one


def _known_pace(kind: str, work: Work, runs: Sequence[tuple[str, Run]]) -> Pace | None:
    """Return the median time of a step of completed runs, validations included, and of the rest.

    The rest, such as the test and what is drawn, is a fixed cost of a job. Runs with less than a
    tenth of the steps tell nothing: their first steps are most of them, and slower.
    """
    steps, rests = [], []
    for other, there in runs:
        spent = _spent(there) if other == kind else None
        if spent is not None and _LEAST_SHARE * work.steps <= spent.steps:
            steps.append(spent.training / spent.steps)
            rests.append(max(0.0, spent.total - spent.training))
    if not steps:
        return None
    many = f"{len(steps)} completed runs" if len(steps) > 1 else "a completed run"
    source = f"from {many} of the same network there"
    return Pace(statistics.median(steps), 0.0, 0.0, source, statistics.median(rests))


class _Spent(NamedTuple):
    """The steps of a completed run, and its seconds in training and altogether."""

    steps: int
    training: float
    total: float


def _spent(there: Run) -> _Spent | None:
    """Return what a run, which may come from a stranger, says that it took; None if nothing."""
    result, status = there.result or {}, there.status
    steps, training = result.get("steps"), result.get("wall_seconds")
    if type(steps) is not int or steps < 1:
        return None
    if not isinstance(training, int | float) or isinstance(training, bool) or training <= 0:
        return None
    try:
        began, ended = (
            datetime.fromisoformat(str(status[key])) for key in ("started", "heartbeat")
        )
        total = (ended - began).total_seconds()
    except (KeyError, ValueError, TypeError):  # a time with a zone and one without have no distance
        return None
    return _Spent(steps, training, total)


class _Clock(pl.Callback):
    """Callback that records each batch's start, and the time of validation and test batches."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.evaluations: dict[str, list[float]] = {"val": [], "test": []}
        self._began = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        self.starts.append(time.perf_counter())

    def on_validation_batch_start(self, *args: Any) -> None:
        self._began = time.perf_counter()

    def on_validation_batch_end(self, *args: Any) -> None:
        self.evaluations["val"].append(time.perf_counter() - self._began)

    def on_test_batch_start(self, *args: Any) -> None:
        self._began = time.perf_counter()

    def on_test_batch_end(self, *args: Any) -> None:
        self.evaluations["test"].append(time.perf_counter() - self._began)


def measure(plan: planning.Plan) -> Pace:
    """Take a few real steps of a job, in a temporary directory that is removed afterwards.

    On a machine without the GPU that the job needs, every time is NaN.
    """
    needs_gpu = plan.run_config.trainer.get("accelerator") in ("gpu", "cuda")
    if needs_gpu and not torch.cuda.is_available():
        return _UNKNOWN
    data, module = planning.assemble(plan)
    clock = _Clock()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        trainer: pl.Trainer = build(
            {
                **plan.run_config.trainer,
                "max_epochs": 1,
                "max_steps": -1,
                "check_val_every_n_epoch": 1,
                "limit_train_batches": _TIMED_STEPS,
                "limit_val_batches": _TIMED_EVALUATIONS,
                "limit_test_batches": _TIMED_EVALUATIONS,
                "log_every_n_steps": _TIMED_STEPS,
                "profiler": None,
            },
            "trainer",
            callbacks=[clock],
            logger=False,
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        trainer.fit(module, datamodule=data)
        trainer.test(module, datamodule=data, verbose=False)
    gaps = [b - a for a, b in zip(clock.starts[:-1], clock.starts[1:], strict=True)]
    known = gaps[_WARM_UP:] or gaps
    step = statistics.median(known) if known else 0.0
    of_split = {k: min(v, default=0.0) for k, v in clock.evaluations.items()}
    source = f"measured on {len(clock.starts)} steps of the first such job, just now"
    return Pace(step, of_split["val"], of_split["test"], source)
