"""Weights & Biases. No trouble of its own may stop, slow or prompt a training."""

from __future__ import annotations

import logging
import netrc
import os
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import wandb
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

log = logging.getLogger(__name__)

#: Seconds to wait for the server at the start and at the end of a run; a closed port or a stalling
#: server otherwise holds up a run by minutes.
INIT_TIMEOUT, FINISH_TIMEOUT = 15.0, 30.0


def key_is_configured() -> bool:
    """Whether a W&B key can be found without asking: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    path = os.environ.get("NETRC") or str(Path.home() / ".netrc")
    try:
        return host is not None and netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class WandbLogger(Logger):
    """One run on W&B: online where a key is configured, else in files that one command sends up.

    Lightning's logger of this name reuses whatever run the process had before and leaves a failed
    run marked as finished; this one belongs to one run directory and is told how the run ended.

    Args:
        directory: the run directory; the files go to its `wandb/`.
        run_id: the run's id on W&B; the same id continues the same run.
        group, job_type, name, tags, notes: as W&B shows them.
        config: the resolved, nested config.
        project, entity: where on W&B.
        mode: `auto` (online where a key is configured), `online` or `offline`.
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
        self._name, self._id, self.directory = name, run_id, directory
        wanted = os.environ.get("WANDB_MODE") or mode
        if wanted == "auto":
            wanted = "online" if key_is_configured() else "offline"
        self.run: Any = None

        def start(mode: str) -> None:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", project),
                entity=entity,
                dir=directory,
                id=run_id,
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
                    init_timeout=INIT_TIMEOUT,
                    finish_timeout=FINISH_TIMEOUT,
                    x_transaction_log_flush_interval=0.2,  # rows survive a kill
                    silent=True,
                    console="off",
                ),
            )

        if wanted == "online" and not self._safely(lambda: start("online")):
            log.warning("W&B cannot be reached: this run is kept in files instead")
            wandb.teardown()  # W&B's own process still holds the run's id
            wanted = "offline"
        if self.run is None:
            self._safely(lambda: start(wanted))
        self._safely(lambda: self.run.define_metric("trainer/global_step"))
        self._safely(lambda: self.run.define_metric("*", step_metric="trainer/global_step"))
        self.mode = wanted

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
        if self.run is None:
            return "W&B is left out of this run"
        if self.mode == "online":
            return f"W&B: {self.run.url}"
        files = self.directory / "wandb"
        return (
            f"W&B is offline; look with `wandb leet {files}`, send with "
            f"`wandb sync {files}/offline-*`"
        )

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.run is not None:
            row = {**metrics, "trainer/global_step": step or 0}
            self._safely(lambda: self.run.log(row))

    @rank_zero_only
    def log_image(self, key: str, path: Path, step: int) -> None:
        """The PNG at `path` as a media panel."""
        if self.run is not None:
            row = {key: wandb.Image(str(path)), "trainer/global_step": step}
            self._safely(lambda: self.run.log(row))

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing: the resolved config was given at the start."""

    @rank_zero_only
    def summarise(self, result: Mapping[str, Any]) -> None:
        """The final numbers as the run's summary."""
        if self.run is not None:
            self._safely(lambda: self.run.summary.update(dict(result)))

    @rank_zero_only
    def close(self, exit_code: int) -> None:
        """End the run on W&B with how it ended here; a later run of this process starts clean."""
        if self.run is not None:
            self._safely(lambda: self.run.finish(exit_code=exit_code))
        self.run = None
