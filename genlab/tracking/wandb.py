"""Weights & Biases: failures become warnings, and never stop training or prompt for input."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import shlex
import signal
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from genlab.errors import DONE, INTERRUPTED, PREEMPTED, ConfigError
from genlab.runs.run import Run
from genlab.tracking.account import id_from_agent, key_is_configured, set_variables
from genlab.tracking.files import STEP, Row, folders, logged_rows, row
from genlab.tracking.loggers import TrackedRun
from genlab.tracking.worker import Worker

log = logging.getLogger(__name__)

#: Seconds to wait for the server at the start and at the end of a run; a closed port or a stalling
#: server otherwise holds up a run by minutes. W&B's own variables of these names win.
INIT_TIMEOUT, FINISH_TIMEOUT = 15.0, 30.0
#: Seconds more after which W&B's own process is taken to hang, and is killed.
MARGIN = 10.0

_MODES = ("auto", "online", "offline", "shared", "disabled", "dryrun", "run")
_ENDS = {DONE: "completed", INTERRUPTED: "preempted", PREEMPTED: "preempted"}


def _seconds(variable: str, default: float) -> float:
    text = os.environ.get(variable) or str(default)
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{variable}={text}: give a number of seconds, as {default:g}") from None


def _import_pandas() -> None:
    """Import pandas, where it is installed, before W&B's client does so in its thread.

    Altair asks `sys.modules` for it, and fails on a module that another thread has half imported.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("pandas")


class WandbLogger(Logger):
    """Logs one run to W&B: online where a key is configured, else to files for `wandb sync`.

    Lightning's logger of this name reuses a run that the process started earlier, and marks a
    failed run as finished. This logger belongs to one run directory, and records how the run ended.
    When a run is resumed, the rows of its record that W&B lacks are sent, and none is sent twice.

    W&B's client waits without a limit for W&B's own process. Hence it is called in a thread, which
    training waits for at the start and at the end of a run alone, and not longer than the limits.

    Args:
        project, entity: where on W&B; in a process that W&B's own agent started, the agent's
            choice of id, project and entity stands instead.
        mode: `auto` (online where a key is configured and the run did not begin offline), `online`
            or `offline`.
        log_model: True to keep `best.ckpt` of a completed run as an artifact of type `model`.
    """

    def __init__(
        self,
        project: str = "genlab",
        entity: str | None = None,
        mode: Literal["auto", "online", "offline"] = "auto",
        log_model: bool = False,
    ) -> None:
        super().__init__()
        self.project, self.entity, self.mode = project, entity, str(mode)
        self.log_model = log_model
        self.run: Any = None
        self._worker: Worker | None = None
        self._trouble: Exception | None = None
        self._is_left_out = False
        self._finish_limit = FINISH_TIMEOUT
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
        set_variables()
        _import_pandas()
        self._followed, self._id = run, id_from_agent() or run.id
        try:
            limit = _seconds("WANDB_INIT_TIMEOUT", INIT_TIMEOUT)
            self._finish_limit = _seconds("WANDB_FINISH_TIMEOUT", FINISH_TIMEOUT)
            before = logged_rows(run.directory, self._id)
            self._worker = worker = Worker("wandb")
            self.mode = worker.wait(worker.put(lambda: self._wanted(run)), limit)
            if self.mode == "online":
                try:
                    self._start(run, worker, limit)
                except Exception as error:
                    self._free_client(grace=0)  # its process still holds the run's id
                    log.warning("W&B cannot be reached: this run is kept in files (%s)", error)
                    self.mode = "offline"
            if self.run is None:
                self._start(run, worker, limit)
            self._go_on(run, before)
        except Exception as error:  # no error of W&B may end a training run
            self._leave_out(error)

    def _wanted(self, run: TrackedRun) -> str:
        """Return the mode in which W&B is started: `auto` becomes one of the others."""
        wanted = os.environ.get("WANDB_MODE") or self.mode
        if wanted not in _MODES:
            raise ConfigError(f"WANDB_MODE={wanted}: give one of {', '.join(_MODES)}")
        if wanted == "auto" and any(f.name.startswith("offline-") for f in folders(run.directory)):
            return "offline"
        if wanted not in ("auto", "online"):
            return wanted
        try:
            found = key_is_configured()
        except ConfigError as error:
            log.warning("%s: this run is kept in files", error)
            return "offline"
        if wanted == "online" and not found:
            log.warning("W&B has no key (`wandb login` makes one): this run is kept in files")
        return "online" if found else "offline"

    def _start(self, run: TrackedRun, worker: Worker, limit: float) -> None:
        settings = wandb.Settings(
            init_timeout=limit,
            finish_timeout=self._finish_limit,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=0.2,  # so that rows survive a kill
            console="off",
        )
        started = worker.put(
            lambda: wandb.init(
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
                mode=self.mode,  # type: ignore[arg-type]
                reinit="finish_previous",
                settings=settings,
            )
        )
        purpose = f"waiting for W&B to start ({self.mode}), at most {limit + MARGIN:.0f} s"
        self.run = worker.wait(started, limit + MARGIN, purpose)

    def _go_on(self, run: TrackedRun, before: Sequence[Row]) -> None:
        """Send the rows of the record that W&B lacks because of a kill in between."""
        self._put(lambda client: client.define_metric(STEP))
        self._put(lambda client: client.define_metric("*", step_metric=STEP))
        self._put(lambda client: client.summary.update({"status": "running"}))
        self._url = self.run.url if self.mode == "online" else None
        record = [(line.pop("step"), line) for line in Run(run.directory).metrics()]
        arrived = self.run.starting_step if self.mode == "online" else len(before)
        if arrived > len(before):  # the earlier files of W&B are on another machine or disk
            before = [row(step, line) for step, line in record]
        # rows that were being sent to the server when the process was killed have not arrived
        self._logged = set(before[:arrived])
        for step, line in record:
            self._log({k: math.nan if v is None else v for k, v in line.items()}, step)

    def _put(self, action: Callable[[Any], Any]) -> None:
        """Let the thread apply the action to W&B's run; without W&B if an earlier one failed."""
        client, worker = self.run, self._worker
        if client is None or worker is None:
            return
        limit = self._finish_limit + MARGIN
        if self._trouble is None and worker.busy() > limit:
            self._trouble = TimeoutError(f"no answer within {limit:.0f} s")
        if self._trouble is not None:
            self._leave_out(self._trouble)
        else:
            worker.put(lambda: self._apply(action, client))

    def _apply(self, action: Callable[[Any], Any], client: Any) -> None:
        if self._trouble is None:
            try:
                action(client)
            except Exception as error:  # told by the training's thread
                self._trouble = error

    def _leave_out(self, error: Exception) -> None:
        """Go on without W&B."""
        self.run, self._is_left_out = None, True
        self._free_client(grace=0)
        why = " ".join(str(error).split())
        log.warning("W&B is left out from here on (%s); metrics.jsonl has all rows", why)

    def _free_client(self, grace: float) -> None:
        """End W&B's own process, by force after `grace` seconds, and free its client.

        A call that hangs ends with that process, and nothing waits for it when this one ends.
        """
        worker = self._worker
        if worker is None:
            return
        freed = worker.put(_teardown)
        with contextlib.suppress(TimeoutError):
            worker.wait(freed, grace)
        _kill_service()
        with contextlib.suppress(TimeoutError):
            worker.wait(freed, MARGIN)

    @property
    def name(self) -> str | None:
        return None if self._followed is None else self._followed.name

    @property
    def version(self) -> str | None:
        return self._id

    @property
    def sentence(self) -> str:
        """One line for the terminal: where to view the run, or how to upload it."""
        up_to = " (up to where W&B was left out)" if self._is_left_out else ""
        if self._url is not None:
            return f"W&B: {self._url}{up_to}"
        if self._followed is None or not folders(self._followed.directory):
            return "W&B is left out of this run"
        files = shlex.quote(str(self._followed.directory / "wandb"))
        return (
            f"W&B is offline{up_to}; look with `wandb leet {files}`, send with "
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
        new, sent = row(step, values), {**values, STEP: step}
        if new not in self._logged:
            self._logged.add(new)
            self._put(lambda client: client.log(sent))

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing, since the resolved config was sent at the start."""

    @rank_zero_only
    def summarise(self, result: Mapping[str, Any]) -> None:
        """Set the numbers and the verdict of a `result.json` as the run's summary."""
        numbers = {**result["metrics"], "verdict": result["verdict"]}
        self._put(lambda client: client.summary.update(numbers))

    @rank_zero_only
    def close(self, exit_code: int, error: str = "") -> None:
        """End the run on W&B with its exit code, and W&B's own process with it."""
        if self.log_model and exit_code == DONE and self._followed is not None:
            self._log_best(Run(self._followed.directory).checkpoints / "best.ckpt")
        self._put(lambda client: _conclude(client, exit_code, error))
        if self.run is not None and self._worker is not None:
            folder = shlex.quote(str(Path(self.run.dir).parent))
            try:
                self._finish(self.run, self._worker, exit_code)
                self._free_client(grace=MARGIN)
            except Exception as trouble:
                self._free_client(grace=0)
                log.warning(
                    "W&B has not got all of this run (%s); send what its files hold with "
                    "`wandb sync --no-skip-online %s`",
                    trouble,
                    folder,
                )
        if self._worker is not None:
            self._worker.stop()
        self.run = self._worker = None

    def _log_best(self, path: Path) -> None:
        if path.is_file():  # a run without validations has none
            name = f"{self._id}-model"
            self._put(lambda client: client.log_artifact(str(path), name, "model", ["best"]))

    def _finish(self, client: Any, worker: Worker, exit_code: int) -> None:
        limit = self._finish_limit + MARGIN
        purpose = f"waiting for W&B to get the rest of this run, at most {limit:.0f} s"
        worker.wait(worker.put(lambda: client.finish(exit_code=exit_code)), limit, purpose)
        if self._trouble is not None:
            raise self._trouble


def _conclude(client: Any, exit_code: int, error: str) -> None:
    client.summary.update({"status": _ENDS.get(exit_code, "failed"), "error": error})
    if exit_code == PREEMPTED:
        client.mark_preempting()


def _teardown() -> None:
    """Free the client, also of a run that was given up; its process may be gone."""
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()
    wandb.run = None  # else W&B is in use for the next run of this process


def _kill_service() -> None:
    """Kill what is left of W&B's own processes below this one; on Linux alone."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # that process has ended meanwhile
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            if name == "wandb-core" and int(rest.split()[1]) == os.getpid():
                os.kill(int(stat.parent.name), signal.SIGKILL)
