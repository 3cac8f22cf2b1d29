"""Run the jobs of a study with the chosen launcher."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from genlab.runs.manifest import Job, Manifest
from genlab.sweeps import freeze
from genlab.sweeps.merging import firsts
from genlab.sweeps.naming import announce
from genlab.sweeps.request import request, title
from genlab.sweeps.study import Point, Study, StudyJob
from genlab.training import interrupts

#: This launcher checks and freezes the jobs itself.
_PROCESS = "hydra_plugins.genlab."


@dataclass(frozen=True)
class Conductor:
    """Runner of a study; `config` is the sweep's, before any job's overrides."""

    context: HydraContext
    task_function: TaskFunction
    config: DictConfig

    def conduct(
        self, content: DictConfig, arguments: Sequence[str], dry: bool, trials: int | None
    ) -> list[JobReturn]:
        """Run the jobs of a study, or only print them and their estimated cost.

        Args:
            content: of the study's file; empty for one that consists of the arguments alone.

        Raises:
            ConfigError: the study or a job is invalid; raised before the first job starts.
        """
        name = title(str(self.config.hydra.runtime.choices.get("sweep", "")))
        node: Any = OmegaConf.to_container(content)
        study, overrides = request(name, node, arguments)
        if trials is not None:
            study = study.with_trials(trials)
        if dry:
            from genlab.sweeps.cost import print_plan

            jobs = study.jobs()
            loader, of_jobs = self.context.config_loader, [job.overrides() for job in jobs]
            composed = freeze.resolved_jobs(loader, self.config, overrides, of_jobs)
            with interrupts.raised():  # the measured steps have a temporary directory
                print_plan(study, jobs, composed, self.slots)
            return []
        announce(self.directory.name, _bare(study.swept))
        if name:
            print(f"study  {name}: {study.question or 'no question'}", flush=True)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=self.task_function, config=self.config
        )
        if study.search is not None:
            from genlab.sweeps.search import run_search

            return run_search(
                study,
                lambda jobs, first: self._launch(launcher, study, overrides, jobs, first),
                self.directory,
                self.slots,
            )
        return self._launch(launcher, study, overrides, study.jobs(), 0)

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
        study: Study,
        overrides: Sequence[str],
        jobs: Sequence[StudyJob],
        first: int,
    ) -> list[JobReturn]:
        is_process = str(self.config.hydra.launcher._target_).startswith(_PROCESS)
        runs = list(range(len(jobs)))
        if not is_process:
            overrides = self._in_one_group(overrides, jobs)
            runs = self._freeze(study, overrides, jobs)
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
        self, study: Study, overrides: Sequence[str], jobs: Sequence[StudyJob]
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
            if job.point not in built:
                built.append(job.point)
                planning.assemble(plan)
            container = OmegaConf.to_container(composed[i], enum_to_str=True)
            assert isinstance(container, dict)
            config = {str(key): value for key, value in container.items()}
            task = tuple(composed[i].hydra.overrides.task)
            point = dict(zip(_bare(job.point), job.point.values(), strict=True))
            frozen.append(Job(plan.path.name, task, point, plan.run_config.seed, config))
        manifest = Manifest(
            name=self.directory.name,
            swept=tuple(_bare(study.swept)),
            jobs=tuple(frozen),
            question=study.question,
            command=tuple(sys.argv),
            code=freeze.code_state(),
        )
        manifest.after(Manifest.read(self.directory)).write(self.directory)
        return runs


def _bare(keys: Iterable[str]) -> list[str]:
    """Return keys without the sign that adds one, as in `+trainer.gradient_clip_val`."""
    return [key.lstrip("+") for key in keys]
