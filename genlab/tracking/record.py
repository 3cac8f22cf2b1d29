"""The logger that writes `metrics.jsonl`, the run directory's own record of all logged rows."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from genlab.runs.directory import RunDirectory


class RecordLogger(Logger):
    """Appends every logging event to `metrics.jsonl` and updates the status file's heartbeat."""

    def __init__(self, run: RunDirectory) -> None:
        super().__init__()
        self.run = run

    @property
    def name(self) -> str:
        return "record"

    @property
    def version(self) -> str:
        return self.run.path.name

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {key: float(value) for key, value in metrics.items() if key != "epoch"}
        if row:
            self.run.append_metrics(step or 0, int(metrics.get("epoch", 0)), row)
        self.run.heartbeat(step)

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing, since `config.yaml` holds them."""
