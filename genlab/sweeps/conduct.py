"""Run the jobs of a study with the chosen launcher."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from genlab.errors import DONE, TRAINING_FAILED, ConfigError
from genlab.runs.manifest import Job, Manifest, point_in_sweep
from genlab.runs.points import Start, without_seed
from genlab.runs.run import Run
from genlab.sweeps import freeze
from genlab.sweeps.merging import firsts
from genlab.sweeps.naming import announce
from genlab.sweeps.request import Request, request, title
from genlab.sweeps.study import First, Point, StudyJob
from genlab.training import interrupts
from genlab.training.outcome import Outcome

#: This launcher checks and freezes the jobs itself.
_PROCESS = "hydra_plugins.genlab."


@dataclass(frozen=True)
class Conductor:
    """Runner of a study; `config` is the sweep's, before any job's overrides."""

    context: HydraContext
    task_function: TaskFunction
    config: DictConfig

    def request(
        self,
        content: DictConfig,
        arguments: Sequence[str],
        of_first: Sequence[str],
        trials: int | None,
    ) -> Request:
        """Return the study that a command line asks for.

        Args:
            content: of the study's file; empty for one that consists of the arguments alone.
            arguments: overrides of its jobs.
            of_first: overrides of the runs that the jobs start from.
            trials: the number of trials of a search; None for that of the file.

        Raises:
            ConfigError: the study is invalid.
        """
        name = title(str(self.config.hydra.runtime.choices.get("sweep", "")))
        node: Any = OmegaConf.to_container(content)
        asked = request(name, node, arguments, of_first)
        return asked if trials is None else asked._replace(study=asked.study.with_trials(trials))

    def print_plan(self, asked: Request) -> None:
        """Print the jobs of a study and their estimated cost, and start nothing.

        Raises:
            ConfigError: a job is invalid.
        """
        from genlab.sweeps.cost import print_plan
        from genlab.training import planning

        study = asked.study
        waiting: list[tuple[StudyJob, freeze.Composed]] = []
        if asked.first is None or study.first is None:
            ready = self._resolved(asked, study.jobs())
        else:
            jobs = asked.first.study.jobs()
            ready = self._resolved(asked.first, jobs)
            paths = {str(job): planning.plan(*one).path for job, one in ready}
            start = self._start(asked, study.first)
            later = [job.after(paths[str(job.needs)], start) for job in study.jobs_after(jobs)]
            for job, composed in self._resolved(asked, later):
                is_there = Run(paths[str(job.needs)]).is_completed
                (ready if is_there else waiting).append((job, composed))
        with interrupts.raised():  # the measured steps have a temporary directory
            known, configs = [job for job, _ in ready], [composed for _, composed in ready]
            print_plan(study, known, configs, self.slots, waiting)

    def _resolved(
        self, asked: Request, jobs: Sequence[StudyJob]
    ) -> list[tuple[StudyJob, freeze.Composed]]:
        loader, own = self.context.config_loader, [job.overrides() for job in jobs]
        found = freeze.resolved_jobs(loader, self.config, asked.overrides, own)
        return list(zip(jobs, found, strict=True))

    def conduct(self, asked: Request) -> list[JobReturn]:
        """Run the jobs of a study.

        Raises:
            ConfigError: a job is invalid; raised before the first job starts. Of a job that starts
                from another run, what depends on the files of that run is checked when it is there.
        """
        study, first = asked.study, asked.first
        if study.name:
            print(f"study  {study.name}: {study.question or 'no question'}", flush=True)
        start = None if study.first is None else self._start(asked, study.first)
        others = () if start is None else tuple(map(start.named, start.others))
        swept = [*_bare(without_seed(asked.swept)), *others, *({"seed"} & {*asked.swept})]
        announce(self.directory.name, swept, start)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=self.task_function, config=self.config
        )
        launch = functools.partial(self._launch, launcher, swept)
        if study.search is not None:
            from genlab.sweeps.search import run_search

            return run_search(study, functools.partial(launch, asked), self.directory, self.slots)
        if first is None or start is None:
            return launch(asked, study.jobs(), 0)
        needed = first.study.jobs()
        jobs = study.jobs_after(needed)
        print(f"first  {len(needed)} runs, from which {len(jobs)} jobs start", flush=True)
        returned = launch(first, needed, 0)
        ends = dict(zip(map(str, needed), (one.return_value for one in returned), strict=True))
        ready, blocked = [], []
        for job in jobs:
            end: Outcome = ends[str(job.needs)]
            job = job.after(end.path or self.directory, start)
            if end.exit_code == DONE:
                ready.append(job)
            else:
                blocked.append((job, end))
        returned += self._block(asked, blocked)
        print(f"then   {len(ready)} of {len(jobs)} jobs, which start from them", flush=True)
        return [*returned, *launch(asked, ready, len(needed))]

    def _start(self, asked: Request, first: First) -> Start:
        """Check the jobs that start from other runs before these are there, one of each point.

        Returns how they start from them.

        Raises:
            ConfigError: a job, or the run that it starts from, is invalid.
        """
        from genlab.training import planning

        assert asked.first is not None
        start = Start(first.run, first.model)
        varied = _bare(without_seed(asked.first.swept))
        others = {key for key in varied if key not in _bare(asked.study.swept)}
        jobs = asked.study.jobs_after(asked.first.study.jobs())
        jobs = [job.after(self.directory, start) for job in jobs]
        chosen = list({str(job.whole_point): job for job in reversed(jobs)}.values())[::-1]
        needed = {str(job.needs): job.needs for job in chosen if job.needs is not None}
        starts = self._resolved(asked.first, list(needed.values()))
        configs = {str(job): planning.plan(*composed).config for job, composed in starts}
        for job, composed in self._resolved(asked, chosen):
            try:
                config = planning.rehearse(composed.config, configs[str(job.needs)])
            except ConfigError as error:
                raise ConfigError(f"{job}: {error}") from error
            others = {key for key in others if not start.keeps(config, key)}
        return start._replace(others=tuple(key for key in varied if key in others))

    def _block(
        self, asked: Request, blocked: Sequence[tuple[StudyJob, Outcome]]
    ) -> list[JobReturn]:
        """List the jobs whose first run has failed in the manifest, and return their outcomes."""
        rows, returns = [], []
        for number, (job, end) in enumerate(blocked):
            assert job.needs is not None
            reason = f"not started, since its run {job.needs} has failed: {end.message}"
            config = self._compose(asked, job, number)
            model = config["hydra"]["runtime"]["choices"]["model"]
            rows.append(
                Job(
                    run_id=f"not-started-{number}",
                    overrides=tuple(config["hydra"]["overrides"]["task"]),
                    point={"model": model, **_bare_point(job.whole_point)},
                    seed=config["seed"],
                    config=config,
                    blocked=reason,
                )
            )
            ended = JobReturn(overrides=job.overrides(), status=JobStatus.COMPLETED)
            ended.return_value = Outcome(TRAINING_FAILED, message=f"{job}: {reason}")
            self.context.callbacks.on_job_end(config=self.config, job_return=ended)
            returns.append(ended)
        manifest = Manifest.read(self.directory)
        if manifest is not None:
            manifest.with_blocked(rows).write(self.directory)
        return returns

    def _compose(self, asked: Request, job: StudyJob, number: int) -> dict[str, Any]:
        loader, overrides = self.context.config_loader, [*asked.overrides, *job.overrides()]
        return freeze.compose_job(loader, self.config, overrides, number, self.directory.name)

    @property
    def directory(self) -> Path:
        """The directory of the sweep."""
        return Path(str(self.config.hydra.sweep.dir))

    @property
    def slots(self) -> int:
        """Number of jobs that the launcher runs at once, as far as its config states it."""
        for key in ("slots", "n_jobs", "array_parallelism"):
            value = OmegaConf.select(self.config, f"hydra.launcher.{key}")
            if isinstance(value, int) and value > 0:
                return value
            if key == "n_jobs" and isinstance(value, int):  # -1 takes all, -2 all but one
                return max(1, (os.cpu_count() or 1) + 1 + value)
        return 1

    def _launch(
        self,
        launcher: Launcher,
        swept: Sequence[str],
        asked: Request,
        jobs: Sequence[StudyJob],
        first: int,
    ) -> list[JobReturn]:
        overrides: Sequence[str] = asked.overrides
        is_process = str(self.config.hydra.launcher._target_).startswith(_PROCESS)
        runs = list(range(len(jobs)))
        if not is_process:
            overrides = self._in_one_group(overrides, jobs)
            runs = self._freeze(swept, overrides, jobs)
        distinct = list(dict.fromkeys(runs))
        returns = launcher.launch(
            [[*overrides, *jobs[i].overrides()] for i in distinct], initial_job_idx=first
        )
        for returned in returns:
            _ = returned.return_value  # raises the exception of an unexpected failure
        return [returns[distinct.index(i)] for i in runs]

    def _in_one_group(self, overrides: Sequence[str], jobs: Sequence[StudyJob]) -> Sequence[str]:
        """Return the overrides, with the sweep's group if experiments that set theirs are swept."""
        if not any("experiment" in job.point for job in jobs):
            return overrides
        return [*overrides, f"group={self.directory.name}"]

    def _freeze(
        self, swept: Sequence[str], overrides: Sequence[str], jobs: Sequence[StudyJob]
    ) -> list[int]:
        """Check all jobs and write the manifest, for launchers that do neither.

        Returns for each job the position of the first that computes the same, which is its run.
        One model is built for each point.
        """
        from genlab.sweeps.cost import plan_of
        from genlab.training import planning

        load = self.context.config_loader.load_sweep_config
        composed = [load(self.config, [*overrides, *job.overrides()]) for job in jobs]
        plans = [plan_of(cfg) for cfg in composed]
        runs = firsts([plan.path.name for plan in plans], list(map(str, jobs)))
        built: list[Point] = []
        frozen = []
        for i in dict.fromkeys(runs):
            job, plan = jobs[i], plans[i]
            if job.whole_point not in built:
                built.append(job.whole_point)
                planning.assemble(plan)
            container = OmegaConf.to_container(composed[i], enum_to_str=True)
            assert isinstance(container, dict)
            config = {str(key): value for key, value in container.items()}
            task = tuple(composed[i].hydra.overrides.task)
            point = point_in_sweep(plan.config, composed[i].hydra.runtime.choices, swept)
            frozen.append(Job(plan.path.name, task, point, plan.run_config.seed, config))
        manifest = Manifest(
            name=self.directory.name,
            swept=tuple(swept),
            jobs=tuple(frozen),
            question=OmegaConf.select(self.config, "hydra.sweeper.study.question"),
            command=tuple(sys.argv),
            code=freeze.code_state(),
        )
        manifest.after(Manifest.read(self.directory)).write(self.directory)
        return runs


def _bare_point(point: Point) -> Point:
    return dict(zip(_bare(point), point.values(), strict=True))


def _bare(keys: Iterable[str]) -> list[str]:
    """Return keys without the sign that adds one, as in `+trainer.gradient_clip_val`."""
    return [key.lstrip("+") for key in keys]
