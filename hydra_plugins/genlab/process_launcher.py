"""`hydra/launcher=process`: run each job of a multirun in its own process."""

# Without postponed annotations, for the reason given in study_sweeper.py.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class ProcessLauncherConf:
    """Config of the launcher, checked by `genlab.sweeps.resources.Settings`."""

    _target_: str = "hydra_plugins.genlab.process_launcher.ProcessLauncher"
    slots: Any = None
    threads: Any = None
    retries: Any = 0
    memory_gb: Any = None
    grace_seconds: Any = 300.0


ConfigStore.instance().store(group="hydra/launcher", name="process", node=ProcessLauncherConf)


class ProcessLauncher(Launcher):
    """Passes the jobs to `genlab.sweeps.process`; the task function is always that of train.py."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Store the arguments that `launch` needs."""
        from genlab.errors import at_key
        from genlab.sweeps.process import Sweep
        from genlab.sweeps.resources import Settings

        with at_key("hydra.launcher"):
            settings = Settings(**self.settings)
        self.sweep = Sweep(hydra_context, config, settings)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs, and return the outcome of each."""
        return self.sweep.launch(job_overrides, initial_job_idx)
