"""A multirun is named before its first job, and its runs are compared after the last."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from genlab.errors import DONE, TRAINING_FAILED
from genlab.outcome import Outcome
from genlab.report import collect, print_sweep
from genlab.sweeps.naming import group_name


class SweepSummary(Callback):
    """Names a multirun before its first job, and compares its runs after the last.

    The name goes through the environment, since jobs may be other processes.
    """

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        os.environ["GENLAB_SWEEP_GROUP"] = group_name(list(config.hydra.overrides.task))

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if OmegaConf.select(config, "hydra.job.num") is not None:
            changed = [o for o in config.hydra.overrides.task if "=" in o]
            print(f"\n--- job {config.hydra.job.num}: {' '.join(changed)}", flush=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if isinstance(job_return._return_value, Outcome):
            self.outcomes.append(job_return._return_value)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        directory = Path(str(config.hydra.sweep.dir))
        paths = [outcome.path for outcome in self.outcomes if outcome.path is not None]
        refused = [o for o in self.outcomes if o.path is None]
        if paths:
            print()
            print_sweep(collect(paths), directory)
            _say_how_to_send(paths, directory)
        for outcome in refused:
            print(f"refused: {outcome.message}")
        if any(outcome.exit_code != DONE for outcome in self.outcomes):
            sys.exit(TRAINING_FAILED)


def _say_how_to_send(paths: list[Path], directory: Path) -> None:
    if any(any(path.glob("wandb/offline-*")) for path in paths):
        print(f"W&B is offline; send all runs with `wandb sync {directory}/*/wandb/offline-*`")
