"""Callback that names a multirun before its first job and compares its runs after the last."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from genlab.config import hydra_job
from genlab.config.secrets import refuse_secrets
from genlab.errors import DONE, REFUSED, TRAINING_FAILED
from genlab.runs.files import refuse_foreign
from genlab.runs.locks import make_folder
from genlab.runs.manifest import Manifest
from genlab.sweeps.naming import announce, group_name, multirun_keys
from genlab.training import interrupts, terminal
from genlab.training.outcome import Outcome

if TYPE_CHECKING:
    from genlab.report import Record


class SweepSummary(Callback):
    """Names a multirun before its first job, and compares its runs after the last.

    The name is passed in the environment, since jobs may be other processes. Hydra would turn an
    exception of a callback into a warning, and end with exit code 0: so whatever is raised here
    ends the process, with its sentence and exit code.
    """

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with terminal.ending():
            refuse_secrets(OmegaConf.to_container(config, resolve=False))
            overrides = list(config.hydra.overrides.task)
            announce(group_name(config, overrides), multirun_keys(overrides))
            if not _is_dry(config):
                directory = Path(str(config.hydra.sweep.dir))
                make_folder(directory)
                refuse_foreign(directory, deep=False)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if OmegaConf.select(config, "hydra.job.num") is not None:
            changed = [o for o in config.hydra.overrides.task if "=" in o]
            print(f"\n--- job {config.hydra.job.num}: {' '.join(changed)}", flush=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if isinstance(job_return._return_value, Outcome):
            self.outcomes.append(job_return._return_value)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if _is_dry(config):
            return
        directory = Path(str(config.hydra.sweep.dir))
        tells = hydra_job.returns_outcomes(str(config.hydra.launcher._target_))
        with terminal.ending(), interrupts.raised():
            if not compare(directory, self.outcomes if tells else None):
                sys.exit(TRAINING_FAILED)


def compare(directory: Path, outcomes: Sequence[Outcome] | None) -> bool:
    """Print and write the comparison of the runs of a sweep, and name those that failed.

    If the directory has a manifest, or the outcomes are unknown (None), every run in the directory
    belongs to the sweep. Returns whether every run was completed.
    """
    told = outcomes or ()
    failed = [outcome for outcome in told if outcome.exit_code != DONE]
    try:
        records = _compared(directory, outcomes)
    finally:
        for outcome in failed:
            if outcome.path is None:
                what = "refused" if outcome.exit_code == REFUSED else "not started"
                print(f"{what}: {outcome.message}")
        if any(outcome.path is not None or outcome.exit_code != REFUSED for outcome in failed):
            print("the same command again does only what is missing", flush=True)
    if outcomes is not None:
        return not failed
    return bool(records) and all(record.state == "completed" for record in records)


def _compared(directory: Path, outcomes: Sequence[Outcome] | None) -> list[Record]:
    from genlab.report import collect, print_sweep

    is_whole = outcomes is None or Manifest.read(directory) is not None
    told = [outcome.path for outcome in outcomes or () if outcome.path is not None]
    records = collect(directory if is_whole else told)
    if records:
        print()
        print_sweep(records, directory)
        _say_how_to_send([record.path for record in records], directory)
    return records


def _is_dry(config: DictConfig) -> bool:
    return bool(OmegaConf.select(config, "hydra.sweeper.dry"))


def _say_how_to_send(paths: list[Path], directory: Path) -> None:
    if any(any(path.glob("wandb/offline-*")) for path in paths):
        where = shlex.quote(str(directory))
        print(f"W&B is offline; send all runs with `wandb sync {where}/*/wandb/offline-*`")
