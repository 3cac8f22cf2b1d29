"""`hydra/sweeper=study`: the sweeper of `sweep.py`, which Hydra finds in this namespace alone."""

# Without postponed annotations: Hydra runs this file without a module in sys.modules, where a
# dataclass would look them up.

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class StudySweeperConf:
    """`study` is the content of `conf/sweep/NAME.yaml`, which `genlab.sweeps.study` checks.

    `dry` only prints the jobs and their estimated cost; `trials` is the number of trials of a
    search, null for the number in the file; `first` has the overrides of the runs that the jobs
    start from.
    """

    _target_: str = "hydra_plugins.genlab.study_sweeper.StudySweeper"
    dry: bool = False
    trials: int | None = None
    first: list[str] = field(default_factory=list)
    study: dict[str, Any] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="study", node=StudySweeperConf)


class StudySweeper(Sweeper):
    """Sweeper that runs the jobs of a study with the chosen launcher."""

    def __init__(
        self, dry: bool, trials: int | None, first: Sequence[str], study: DictConfig
    ) -> None:
        self.dry, self.trials, self.first, self.study = dry, trials, list(first), study

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what a launcher needs; imports are here, since Hydra reads this file every time."""
        from genlab.sweeps.conduct import Conductor

        self.conductor = Conductor(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the study, or only print its jobs and their estimated cost."""
        asked = self.conductor.request(self.study, arguments, self.first, self.trials)
        if self.dry:
            self.conductor.print_plan(asked)
            return []
        return self.conductor.conduct(asked)
