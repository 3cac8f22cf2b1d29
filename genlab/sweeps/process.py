"""`launcher=process`: run each job of a multirun in its own process, several at once.

A forkserver imports torch, Lightning and genlab once, while this process, which never imports
them, composes the jobs; each job is then a fork of the forkserver. Jobs share no state, and the end
of one, for any reason, does not affect the others.
"""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from genlab.errors import DONE, REFUSED, TRAINING_FAILED, ConfigError
from genlab.runs.files import refuse_foreign
from genlab.runs.locks import Lock, holder, is_locked
from genlab.runs.manifest import FILE_NAME, Job, Manifest
from genlab.runs.points import announced, announced_start, point_text, without_seed
from genlab.runs.run import Run
from genlab.sweeps import freeze, job
from genlab.sweeps.display import Lines, display
from genlab.sweeps.job import Examined
from genlab.sweeps.merging import firsts
from genlab.sweeps.resources import Settings
from genlab.sweeps.summary import compare
from genlab.sweeps.supervisor import Slot, Stop, Supervisor, Task
from genlab.training.outcome import Outcome

_FORKS = multiprocessing.get_context("forkserver")


class Sweep:
    """One sweep directory and its jobs, while this process works on it.

    Args:
        context, config: Hydra's arguments of a launcher; the config has no job's overrides yet.
    """

    def __init__(self, context: HydraContext, config: DictConfig, settings: Settings) -> None:
        self.context, self.config, self.settings = context, config, settings
        self.directory = Path(str(config.hydra.sweep.dir))
        self._lock = Lock(self.directory)

    def launch(self, overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        """Run the jobs, numbered from `first`, and return the outcome of each.

        Raises:
            ConfigError: the config of a job is refused; then no job has started.
            RunDirectoryError: another process works on the sweep.
            SystemExit: with 130 or 143, after a signal and an orderly end.
        """
        if not overrides:
            return []
        if not self._lock.is_held:
            self._lock.open("wait until that sweep ends, or stop it")
            for name in ("jobs", "videos"):
                refuse_foreign(self.directory / name)
        with Stop() as stop:
            _import_ahead(self.config, self.settings.threads_each(self.settings.slots or 1))
            configs = [self._compose(own, n, stop) for n, own in enumerate(overrides, first)]
            swept = self._swept(overrides)
            examined, gpus = _examine(configs, swept, stop)
            names = [_typed(own, swept) for own in overrides]
            _refuse(names, examined, self.directory)
            same = firsts([Path(one.path).name for one in examined], names)
            configs, examined = [configs[i] for i in same], [examined[i] for i in same]
            before = Manifest.read(self.directory)
            manifest = self._manifest([overrides[i] for i in same], configs, examined, swept)
            tasks = self._tasks(manifest, examined)
            slots = self.settings.places(gpus, max(task.processes for task in tasks.values()))
            manifest = manifest.after(before)
            manifest.write(self.directory)
            with display(list(tasks.values()), Console(highlight=False)) as shown:
                self._introduce(list(tasks.values()), slots, manifest, before, shown)
                self._wait_for_orphans(list(tasks.values()), stop, shown)
                self._supervise(list(tasks.values()), slots, manifest, stop, shown)
            outcomes = [_outcome(tasks[one.path]) for one in examined]
            if stop.signum and any(outcome.exit_code != DONE for outcome in outcomes):
                self._say_how_to_go_on(list(tasks.values()))
                raise SystemExit(stop.exit_code)
        return [
            self._returned(own, config, outcome)
            for own, config, outcome in zip(overrides, configs, outcomes, strict=True)
        ]

    def _compose(self, overrides: Sequence[str], number: int, stop: Stop) -> dict[str, Any]:
        stop.check()
        loader = self.context.config_loader
        return freeze.compose_job(loader, self.config, overrides, number, self.directory.name)

    def _swept(self, overrides: Sequence[Sequence[str]]) -> list[str]:
        """Return the keys that the sweep varies, the seed last."""
        start = announced_start()
        differing = [
            key for key in freeze.differing(overrides) if start is None or key != start.run
        ]
        keys = dict.fromkeys([*(announced() or ()), *differing])
        return [*without_seed(keys), *(["seed"] if "seed" in differing else [])]

    def _manifest(
        self,
        overrides: Sequence[Sequence[str]],
        configs: Sequence[dict[str, Any]],
        examined: Sequence[Examined],
        swept: Sequence[str],
    ) -> Manifest:
        """Build the manifest of this request alone."""
        jobs: dict[str, Job] = {}
        for own, config, one in zip(overrides, configs, examined, strict=True):
            run_id = Path(one.path).name
            new = Job(run_id, tuple(own), one.point or {}, one.seed, config)
            jobs.setdefault(run_id, new)  # jobs with the same run id are one run
        return Manifest(
            name=self.directory.name,
            swept=tuple(swept),
            jobs=tuple(jobs.values()),
            question=OmegaConf.select(self.config, "hydra.sweeper.study.question"),
            command=tuple(sys.argv),
            code=freeze.code_state(),
        )

    def _tasks(self, manifest: Manifest, examined: Sequence[Examined]) -> dict[str, Task]:
        """Make a task for each run, by its path."""
        asked = {one.path: one for one in examined}
        several = len({one.seed for one in examined}) > 1
        tasks = {}
        for known, (path, one) in zip(manifest.jobs, asked.items(), strict=True):
            point = [point_text(known.point)] if known.point else []
            seed = [f"seed={known.seed}"] if several or not point else []
            log = self.directory / "jobs" / f"{known.run_id}.log"
            task = Task(", ".join(point + seed), known.run_id, Path(path), log, one.processes)
            if Run(task.path).is_completed and not one.is_wanted:
                task.state = "completed"
                task.look()
            tasks[path] = task
        return tasks

    def _introduce(
        self,
        tasks: Sequence[Task],
        slots: Sequence[Slot],
        manifest: Manifest,
        before: Manifest | None,
        shown: Lines,
    ) -> None:
        done = sum(task.state == "completed" for task in tasks)
        threads = self.settings.threads_each(len(slots))
        shown.say(
            f"sweep  {self.directory}: {_count(len(tasks), 'job')}"
            f"{f', {done} of them completed before' if done else ''}; "
            f"{f'{len(slots)} at once' if len(slots) > 1 else 'one after another'}, "
            f"{_count(len(slots[0].gpus), 'GPU') + ' and ' if slots[0].gpus else ''}"
            f"{_count(threads, 'thread')} each; what they print goes to {self.directory / 'jobs'}"
        )
        digest = None if before is None else before.code.get("digest")
        if before is not None and done and digest not in (None, manifest.code["digest"]):
            shown.say(
                f"note   code or configs were edited since this sweep was last started (then "
                f"commit {before.code.get('git_commit') or 'unknown'}): {done} completed runs stay "
                "as they are; overwrite=true trains them anew"
            )

    def _wait_for_orphans(self, tasks: Sequence[Task], stop: Stop, shown: Lines) -> None:
        """Wait until jobs of a launcher that was killed have written their checkpoints."""
        deadline = time.monotonic() + self.settings.grace_seconds
        told = False
        while orphans := [t for t in tasks if t.state == "waiting" and is_locked(t.path)]:
            if not told:
                who = ", ".join(f"{t.name} ({holder(t.path)})" for t in orphans)
                shown.say(f"waiting for jobs of an earlier launcher to end: {who}")
                told = True
            if stop.signum or time.monotonic() > deadline:
                return  # the job that finds a directory in use reports it
            time.sleep(0.1)

    def _supervise(
        self,
        tasks: Sequence[Task],
        slots: Sequence[Slot],
        manifest: Manifest,
        stop: Stop,
        shown: Lines,
    ) -> None:
        jobs = {known.run_id: known for known in manifest.jobs}
        threads = self.settings.threads_each(len(slots))
        changed = False

        def notice_edits() -> None:
            nonlocal changed
            if not changed and freeze.code_digest() != manifest.code["digest"]:
                changed = True
                shown.say(
                    "note   code or configs were edited since the sweep began: its jobs keep the "
                    "configs that were composed then, and the code that was loaded by then"
                )

        def start(task: Task, slot: Slot) -> BaseProcess:
            config = dict(jobs[task.run_id].config)
            if task.attempts > 1:
                config["overwrite"] = False  # a second attempt resumes the first one
            environment = {"OMP_NUM_THREADS": str(threads)}
            if (safe := os.environ.get(job.SAFE_PATH)) is not None:
                environment[job.SAFE_PATH] = safe
            if slot.gpus:
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
            path = self.directory / FILE_NAME
            arguments = (path, task.run_id, config, task.log, environment, threads)
            process = _FORKS.Process(target=job.start, args=arguments)
            process.start()
            return process

        Supervisor(tasks, slots, self.settings.limits, start, shown, stop, notice_edits).run()
        notice_edits()

    def _say_how_to_go_on(self, tasks: Sequence[Task]) -> None:
        compare(self.directory, ())
        left = sum(task.state != "completed" for task in tasks)
        print(f"\nstopped with {left} of {len(tasks)} jobs to do; the same command goes on:")
        # with overwrite=true, the jobs that are done would start anew
        again = [word for word in sys.argv if not word.startswith("overwrite=")]
        print(f"  {shlex.join([Path(sys.executable).name, *again])}", flush=True)

    def _returned(
        self, overrides: Sequence[str], config: Mapping[str, Any], outcome: Outcome
    ) -> JobReturn:
        cfg = OmegaConf.create(dict(config))
        hydra_cfg = OmegaConf.create({"hydra": cfg.pop("hydra")})
        returned = JobReturn(overrides=list(overrides), cfg=cfg, hydra_cfg=hydra_cfg)
        returned.status = JobStatus.COMPLETED  # a failure is reported by the outcome, not raised
        returned.return_value = outcome
        self.context.callbacks.on_job_end(config=cfg, job_return=returned)
        return returned


def _import_ahead(config: DictConfig, threads: int) -> None:
    """Start the forkserver, which imports the jobs' modules while this process composes them."""
    named = _modules(OmegaConf.to_container(config))
    modules = ["genlab.sweeps.job", "genlab.training.run", *named]
    _FORKS.set_forkserver_preload(list(dict.fromkeys(modules)))
    # The launcher handles Ctrl-C at the terminal and signals to the whole process group.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    # Libraries read the one at import; without the other, `python -c`, by which Python starts both,
    # would take modules of the working directory for those of the standard library.
    given = {"OMP_NUM_THREADS": str(threads), job.SAFE_PATH: "1"}
    before = {name: os.environ[name] for name in given if name in os.environ}
    os.environ.update(given)
    try:
        resource_tracker.ensure_running()
        forkserver.ensure_running()
    finally:
        for name in given:
            os.environ.pop(name)
        os.environ.update(before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _modules(node: Any) -> Iterator[str]:
    """Yield the modules of genlab that a config names."""
    if isinstance(node, dict):
        named = str(node.get("_target_", ""))
        if named.startswith("genlab."):
            yield named.rpartition(".")[0]
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _modules(child)


def _examine(
    configs: Sequence[Mapping[str, Any]], swept: Sequence[str], stop: Stop
) -> tuple[list[Examined], int]:
    """Examine every config in a process that has torch, and count the GPUs."""
    here, there = _FORKS.Pipe(duplex=False)
    examiner = _FORKS.Process(target=job.examine, args=(configs, swept, there))
    examiner.start()
    there.close()
    try:
        return _receive(here, stop)
    finally:
        examiner.kill()
        examiner.join()


def _receive(pipe: Connection, stop: Stop) -> tuple[list[Examined], int]:
    while not pipe.poll(0.1):
        stop.check()
    try:
        answer: tuple[list[Examined], int] = pipe.recv()
    except EOFError:
        raise ConfigError("the configs could not be checked: see the error above") from None
    return answer


def _refuse(names: Sequence[str], examined: Sequence[Examined], directory: Path) -> None:
    refused = [(name, e.refusal) for name, e in zip(names, examined, strict=True) if e.refusal]
    if len(refused) == len(examined) and len({sentence for _, sentence in refused}) == 1:
        raise ConfigError(str(refused[0][1]))
    if refused:
        told = "".join(f"\n  {name}: {sentence}" for name, sentence in refused)
        raise ConfigError(f"{len(refused)} of {len(examined)} jobs are refused:{told}")
    for one in examined:
        if Path(one.path).parent != directory:
            raise ConfigError(
                f"a job's run directory would be {one.path}, outside of {directory}: runs_dir and "
                "group take one value for a whole sweep"
            )


def _typed(overrides: Sequence[str], swept: Sequence[str]) -> str:
    """Name a job by the overrides that distinguish it from the others."""
    told = [o for o in overrides if o.partition("=")[0].lstrip("+~") in swept]
    return " ".join(told or overrides)


def _outcome(task: Task) -> Outcome:
    if task.state == "completed":
        return Outcome(DONE, task.path, Run(task.path).result)
    if task.state == "refused":
        return Outcome(REFUSED, None, message=f"{task.name}: {task.message}")
    return Outcome(TRAINING_FAILED, task.path, message=task.message or "it did not start")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
