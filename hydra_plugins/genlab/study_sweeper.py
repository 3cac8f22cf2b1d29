"""`hydra/sweeper=study`: the sweeper of `sweep.py`, which Hydra finds in this namespace alone."""

# Without postponed annotations: Hydra runs this file without a module in sys.modules, where a
# dataclass would look them up.

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class StudySweeperConf:
    """`study` is the content of `conf/sweep/NAME.yaml`, which `genlab.sweeps.study` checks.

    `dry` only says what there is to do; `trials` is how many a search takes, null as in the file.
    """

    _target_: str = "hydra_plugins.genlab.study_sweeper.StudySweeper"
    dry: bool = False
    trials: int | None = None
    study: dict[str, Any] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="study", node=StudySweeperConf)


class StudySweeper(Sweeper):
    """Asks the chosen launcher for the jobs of a study."""

    def __init__(self, dry: bool, trials: int | None, study: DictConfig) -> None:
        self.dry, self.trials, self.study = dry, trials, study

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what a launcher needs; imported here, since Hydra reads this file at every start."""
        from genlab.sweeps.conduct import Conductor

        self.conductor = Conductor(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the study, or say what running it would mean."""
        return self.conductor.conduct(self.study, arguments, self.dry, self.trials)
