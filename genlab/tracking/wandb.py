"""Weights & Biases: failures become warnings, and never stop training or prompt for input."""

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
from genlab.tracking.loggers import TrackedRun

log = logging.getLogger(__name__)

#: Seconds to wait for the server at the start and at the end of a run; a closed port or a stalling
#: server otherwise holds up a run by minutes. W&B's own variables of these names win.
INIT_TIMEOUT, FINISH_TIMEOUT = 15.0, 30.0

_ENDS = {DONE: "completed", INTERRUPTED: "preempted", PREEMPTED: "preempted"}


def _seconds(variable: str, default: float) -> float:
    return float(os.environ.get(variable) or default)


class WandbLogger(Logger):
    """Logs one run to W&B: online where a key is configured, else to files for `wandb sync`.

    Lightning's logger of this name reuses a run that the process started earlier, and marks a
    failed run as finished. This logger belongs to one run directory, and records how the run ended.
    When a run is resumed, the rows of its record that W&B lacks are sent, and none is sent twice.

    Args:
        project, entity: where on W&B; in a process that W&B's own agent started, the agent's
            choice of id, project and entity stands instead.
        mode: `auto` (online where a key is configured and the run did not begin offline), `online`
            or `offline`.
    """

    def __init__(
        self,
        project: str = "genlab",
        entity: str | None = None,
        mode: Literal["auto", "online", "offline"] = "auto",
    ) -> None:
        super().__init__()
        self.project, self.entity, self.mode = project, entity, str(mode)
        self.run: Any = None
        self._followed: TrackedRun | None = None
        self._id: str | None = None
        self._url: str | None = None
        self._logged: set[Row] = set()

    @rank_zero_only
    def begin(self, run: TrackedRun) -> None:
        """Start the run on W&B, or resume it.

        W&B's files are in `wandb/` of the run directory. Its record holds each row before the row
        is logged here. The same id continues the same run.
        """
        self._followed, self._id = run, id_from_agent() or run.id
        wanted = os.environ.get("WANDB_MODE") or self.mode
        if wanted == "auto":
            began_offline = any(f.name.startswith("offline-") for f in folders(run.directory))
            wanted = "online" if key_is_configured() and not began_offline else "offline"
        self.mode = wanted
        before: list[Row] = []
        self._safely(lambda: before.extend(logged_rows(run.directory, str(self._id))))
        self._safely(lambda: wandb.setup(wandb.Settings(silent=True)))
        if wanted == "online" and not self._safely(lambda: self._start(run, "online")):
            log.warning("W&B cannot be reached: this run is kept in files instead")
            wandb.teardown()  # W&B's own process still holds the run's id
            self.mode = "offline"
        if self.run is None:
            self._safely(lambda: self._start(run, self.mode))
        self._safely(lambda: self._go_on(run, before))

    def _start(self, run: TrackedRun, mode: str) -> None:
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", self.project),
            entity=self.entity,
            dir=run.directory,
            id=self._id,
            resume="allow",
            group=run.group,
            name=run.name,
            job_type="train",
            tags=list(run.tags),
            notes=run.notes,
            config=dict(run.config),
            mode=mode,  # type: ignore[arg-type]
            reinit="finish_previous",
            settings=wandb.Settings(
                init_timeout=_seconds("WANDB_INIT_TIMEOUT", INIT_TIMEOUT),
                finish_timeout=_seconds("WANDB_FINISH_TIMEOUT", FINISH_TIMEOUT),
                finish_timeout_raises=True,
                x_transaction_log_flush_interval=0.2,  # so that rows survive a kill
                silent=True,
                console="off",
            ),
        )

    def _go_on(self, run: TrackedRun, before: Sequence[Row]) -> None:
        """Send the rows of the record that W&B lacks because of a kill in between."""
        self.run.define_metric(STEP)
        self.run.define_metric("*", step_metric=STEP)
        self.run.summary["status"] = "running"
        self._url = self.run.url if self.mode == "online" else None
        record = [(line.pop("step"), line) for line in Run(run.directory).metrics()]
        arrived = self.run.starting_step if self.mode == "online" else len(before)
        if arrived > len(before):  # the earlier files of W&B are on another machine or disk
            before = [row(step, line) for step, line in record]
        # rows that were being sent to the server when the process was killed have not arrived
        self._logged = set(before[:arrived])
        for step, line in record:
            self._log({k: math.nan if v is None else v for k, v in line.items()}, step)

    def _safely(self, action: Callable[[], Any]) -> bool:
        """Run the action; on failure warn once and continue without W&B."""
        try:
            action()
        except Exception as error:  # no error of W&B may end a training run
            if self.run is not None:
                log.warning("W&B failed and is left out from here on: %s", error)
            self.run = None
            return False
        return True

    @property
    def name(self) -> str | None:
        return None if self._followed is None else self._followed.name

    @property
    def version(self) -> str | None:
        return self._id

    @property
    def sentence(self) -> str:
        """One line for the terminal: where to view the run, or how to upload it."""
        if self._url is not None:
            return f"W&B: {self._url}"
        if self._followed is None or not folders(self._followed.directory):
            return "W&B is left out of this run"
        files = shlex.quote(str(self._followed.directory / "wandb"))
        return (
            f"W&B is offline; look with `wandb leet {files}`, send with "
            f"`wandb sync {files}/offline-*`"
        )

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._log(metrics, step or 0)

    @rank_zero_only
    def log_image(self, key: str, path: Path, step: int) -> None:
        """Show the PNG at `path` in a media panel."""
        self._log_media(key, wandb.Image, path, step)

    @rank_zero_only
    def log_video(self, key: str, path: Path, step: int) -> None:
        """Show the MP4 at `path` in a media panel; W&B takes no WebP."""
        self._log_media(key, wandb.Video, path, step)

    def _log_media(self, key: str, kind: Callable[[str], Any], path: Path, step: int) -> None:
        try:
            self._log({key: kind(str(path))}, step)
        except Exception as error:  # a failure of one picture; the run is still logged
            log.warning("W&B does not take %s: %s", path, error)

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        new = row(step, values)
        if self.run is not None and new not in self._logged:
            self._logged.add(new)
            self._safely(lambda: self.run.log({**values, STEP: step}))

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing, since the resolved config was sent at the start."""

    @rank_zero_only
    def summarise(self, result: Mapping[str, Any]) -> None:
        """Set the numbers and the verdict of a `result.json` as the run's summary."""
        if self.run is not None:
            self._safely(
                lambda: self.run.summary.update({**result["metrics"], "verdict": result["verdict"]})
            )

    @rank_zero_only
    def close(self, exit_code: int, error: str = "") -> None:
        """End the run on W&B with its exit code, so that the process can start another run."""
        if self.run is not None:
            folder = Path(self.run.dir).parent
            try:
                self._finish(exit_code, error)
            except Exception as trouble:  # the files are complete
                log.warning(
                    "W&B has not got all of this run (%s); send it with "
                    "`wandb sync --no-skip-online %s`",
                    trouble,
                    shlex.quote(str(folder)),
                )
                wandb.teardown()  # else the process waits for the server again at its exit
        self.run = None

    def _finish(self, exit_code: int, error: str) -> None:
        self.run.summary.update({"status": _ENDS.get(exit_code, "failed"), "error": error})
        if exit_code == PREEMPTED:
            self.run.mark_preempting()
        self.run.finish(exit_code=exit_code)
