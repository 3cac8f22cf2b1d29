"""Weights & Biases. No trouble of its own may stop, slow or prompt a training."""

from __future__ import annotations

import logging
import math
import os
import shlex
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from genlab.errors import DONE, INTERRUPTED, PREEMPTED
from genlab.runs.directory import Run
from genlab.tracking.account import id_from_agent, key_is_configured
from genlab.tracking.files import STEP, Row, folders, logged_rows, row

log = logging.getLogger(__name__)

#: Seconds to wait for the server at the start and at the end of a run; a closed port or a stalling
#: server otherwise holds up a run by minutes. W&B's own variables of these names win.
INIT_TIMEOUT, FINISH_TIMEOUT = 15.0, 30.0

_ENDS = {DONE: "completed", INTERRUPTED: "preempted", PREEMPTED: "preempted"}


def _seconds(variable: str, default: float) -> float:
    return float(os.environ.get(variable) or default)


class WandbLogger(Logger):
    """One run on W&B: online where a key is configured, else in files that one command sends up.

    Lightning's logger of this name reuses whatever run the process had before and leaves a failed
    run marked as finished; this one belongs to one run directory and is told how the run ended.
    A run that goes on is sent what its record holds and W&B lacks, and nothing twice.

    Args:
        directory: the run directory, whose record holds a row before it is logged here; W&B's files
            go to its `wandb/`.
        run_id: the run's id on W&B; the same id continues the same run. Where W&B's own agent
            started this process, the agent's choice of id, project and entity stands instead.
        group, job_type, name, tags, notes: as W&B shows them.
        config: the resolved, nested config.
        project, entity: where on W&B.
        mode: `auto` (online where a key is configured and the run did not begin offline), `online`
            or `offline`.
    """

    def __init__(
        self,
        directory: Path,
        run_id: str,
        group: str,
        name: str,
        config: dict[str, Any],
        job_type: str = "train",
        tags: Sequence[str] = (),
        notes: str | None = None,
        project: str = "genlab",
        entity: str | None = None,
        mode: Literal["auto", "online", "offline"] = "auto",
    ) -> None:
        super().__init__()
        self._name, self._id, self.directory = name, id_from_agent() or run_id, directory
        wanted = os.environ.get("WANDB_MODE") or mode
        if wanted == "auto":
            began_offline = any(f.name.startswith("offline-") for f in folders(directory))
            wanted = "online" if key_is_configured() and not began_offline else "offline"
        self.mode = wanted
        self.run: Any = None
        self._url: str | None = None
        self._logged: set[Row] = set()

        def start(mode: str) -> None:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", project),
                entity=entity,
                dir=directory,
                id=self._id,
                resume="allow",
                group=group,
                name=name,
                job_type=job_type,
                tags=list(tags),
                notes=notes,
                config=config,
                mode=mode,  # type: ignore[arg-type]
                reinit="finish_previous",
                settings=wandb.Settings(
                    init_timeout=_seconds("WANDB_INIT_TIMEOUT", INIT_TIMEOUT),
                    finish_timeout=_seconds("WANDB_FINISH_TIMEOUT", FINISH_TIMEOUT),
                    finish_timeout_raises=True,
                    x_transaction_log_flush_interval=0.2,  # rows survive a kill
                    silent=True,
                    console="off",
                ),
            )

        before: list[Row] = []
        self._safely(lambda: before.extend(logged_rows(directory, self._id)))
        self._safely(lambda: wandb.setup(wandb.Settings(silent=True)))
        if wanted == "online" and not self._safely(lambda: start("online")):
            log.warning("W&B cannot be reached: this run is kept in files instead")
            wandb.teardown()  # W&B's own process still holds the run's id
            self.mode = "offline"
        if self.run is None:
            self._safely(lambda: start(self.mode))
        self._safely(lambda: self._go_on(before))

    def _go_on(self, before: Sequence[Row]) -> None:
        """Send what the record holds and W&B lacks, since a kill may have come in between."""
        self.run.define_metric(STEP)
        self.run.define_metric("*", step_metric=STEP)
        self.run.summary["status"] = "running"
        self._url = self.run.url if self.mode == "online" else None
        record = [(line.pop("step"), line) for line in Run(self.directory).metrics()]
        arrived = self.run.starting_step if self.mode == "online" else len(before)
        if arrived > len(before):  # W&B's files of before are elsewhere
            before = [row(step, line) for step, line in record]
        # what was on its way to the server when the process was killed has not arrived
        self._logged = set(before[:arrived])
        for step, line in record:
            self._log({k: math.nan if v is None else v for k, v in line.items()}, step)

    def _safely(self, action: Callable[[], Any]) -> bool:
        """Do it, or say once why not and carry on without W&B."""
        try:
            action()
        except Exception as error:  # whatever it is, it is not worth a training run
            if self.run is not None:
                log.warning("W&B failed and is left out from here on: %s", error)
            self.run = None
            return False
        return True

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return self._id

    @property
    def sentence(self) -> str:
        """One line for the person at the terminal: where to look, or how to send the run up."""
        files = shlex.quote(str(self.directory / "wandb"))
        if self._url is not None:
            return f"W&B: {self._url}"
        if not folders(self.directory):
            return "W&B is left out of this run"
        return (
            f"W&B is offline; look with `wandb leet {files}`, send with "
            f"`wandb sync {files}/offline-*`"
        )

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._log(metrics, step or 0)

    @rank_zero_only
    def log_image(self, key: str, path: Path, step: int) -> None:
        """The PNG at `path` as a media panel."""
        self._log_media(key, wandb.Image, path, step)

    @rank_zero_only
    def log_video(self, key: str, path: Path, step: int) -> None:
        """The MP4 at `path` as a media panel; W&B takes no WebP."""
        self._log_media(key, wandb.Video, path, step)

    def _log_media(self, key: str, kind: Callable[[str], Any], path: Path, step: int) -> None:
        try:
            self._log({key: kind(str(path))}, step)
        except Exception as error:  # of one picture; the run goes on being logged
            log.warning("W&B does not take %s: %s", path, error)

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        new = row(step, values)
        if self.run is not None and new not in self._logged:
            self._logged.add(new)
            self._safely(lambda: self.run.log({**values, STEP: step}))

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing: the resolved config was given at the start."""

    @rank_zero_only
    def summarise(self, result: Mapping[str, Any]) -> None:
        """The numbers and the verdict of a `result.json` as the run's summary."""
        if self.run is not None:
            self._safely(
                lambda: self.run.summary.update({**result["metrics"], "verdict": result["verdict"]})
            )

    @rank_zero_only
    def close(self, exit_code: int, error: str = "") -> None:
        """End the run on W&B with how it ended here; a later run of this process starts clean."""
        if self.run is not None:
            folder = Path(self.run.dir).parent
            try:
                self._finish(exit_code, error)
            except Exception as trouble:  # the files are whole
                log.warning(
                    "W&B has not got all of this run (%s); send it with "
                    "`wandb sync --no-skip-online %s`",
                    trouble,
                    shlex.quote(str(folder)),
                )
                wandb.teardown()  # else the process waits for the server once more when it ends
        self.run = None

    def _finish(self, exit_code: int, error: str) -> None:
        self.run.summary.update({"status": _ENDS.get(exit_code, "failed"), "error": error})
        if exit_code == PREEMPTED:
            self.run.mark_preempting()
        self.run.finish(exit_code=exit_code)
