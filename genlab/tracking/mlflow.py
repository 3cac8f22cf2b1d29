"""MLflow: Lightning's logger, with one store for all runs and one MLflow run for each run."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from genlab.errors import DONE, INTERRUPTED, PREEMPTED
from genlab.runs.files import write_atomically
from genlab.runs.reading import ID, descriptor_of_regular, read_bytes
from genlab.tracking.loggers import TrackedRun

if find_spec("mlflow") is None:
    raise ImportError("the package mlflow is not installed: pip install genlab[mlflow]")

MLFLOW_TRACKING_URI = "MLFLOW_TRACKING_URI"
#: File in the run directory with the id of its run on MLflow.
_RUN_ID = "mlflow_run_id"
_ENDS = {DONE: "FINISHED", INTERRUPTED: "KILLED", PREEMPTED: "KILLED"}


class MLflowLogger(MLFlowLogger):
    """Logs one run to MLflow; its group is the experiment.

    Args:
        save_dir: the run directory, `<runs_dir>/<group>/<run>`.
        experiment_name, run_name: as MLflow shows them.
        tracking_uri: a server or a folder; None is `MLFLOW_TRACKING_URI`, else the folder `mlruns`
            in runs_dir.
    """

    def __init__(
        self,
        save_dir: str,
        experiment_name: str,
        run_name: str,
        tracking_uri: str | None = None,
    ) -> None:
        # MLflow 3.17 otherwise refuses folders; its SQL stores need more packages
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported
        from mlflow import MlflowClient

        directory = Path(save_dir).absolute()
        runs_dir = directory.parents[1]
        self.uri = (
            tracking_uri or os.environ.get(MLFLOW_TRACKING_URI) or (runs_dir / "mlruns").as_uri()
        )
        with _alone_in(runs_dir):
            client = MlflowClient(self.uri)
            if client.get_experiment_by_name(experiment_name) is None:
                client.create_experiment(experiment_name)
        kept = directory / _RUN_ID
        run_id = self._earlier(client, kept, experiment_name, run_name)
        self._is_new = run_id is None
        super().__init__(
            experiment_name=experiment_name,
            run_name=run_name,
            tracking_uri=self.uri,
            run_id=run_id,
        )
        with _kept(MLFLOW_TRACKING_URI):
            write_atomically(kept, f"{self.run_id}\n")

    @staticmethod
    def _earlier(client: Any, kept: Path, experiment_name: str, run_name: str) -> str | None:
        """Return the id in a file, if MLflow knows it as this very run."""
        try:
            run_id = read_bytes(kept, ID).decode().strip()
            found = client.get_run(run_id) if re.fullmatch("[0-9a-f]{32}", run_id) else None
        except Exception:  # none there, or none that MLflow has; it is begun anew
            return None
        of = client.get_experiment_by_name(experiment_name)
        is_this = (
            found is not None
            and found.info.run_name == run_name
            and found.info.experiment_id == of.experiment_id
        )
        return run_id if is_this else None

    @property
    def sentence(self) -> str:
        """One line for the terminal on where to view the run."""
        return f"MLflow: run {self.run_id} in {self.uri}"

    @rank_zero_only
    def begin(self, run: TrackedRun) -> None:
        """Log config, tags and notes; MLflow refuses to change the parameters of a resumed run."""
        self.experiment.update_run(self.run_id, status="RUNNING")
        if self._is_new:
            self.log_hyperparams(dict(run.config))
        self.experiment.set_tag(self.run_id, "tags", ", ".join(run.tags))
        if run.notes is not None:
            self.experiment.set_tag(self.run_id, "mlflow.note.content", run.notes)

    @rank_zero_only
    def log_image(self, key: str, path: Path, step: int) -> None:
        """Store the file at `path` as an artifact."""
        self.experiment.log_artifact(self.run_id, str(path), str(PurePosixPath(key).parent))

    log_video = log_image

    @rank_zero_only
    def summarise(self, result: Mapping[str, Any]) -> None:
        """Set the verdict as a tag; the metrics are already there as their last rows."""
        self.experiment.set_tag(self.run_id, "verdict", str(result["verdict"]))

    @rank_zero_only
    def close(self, exit_code: int, error: str = "") -> None:
        """End the run with its exit code."""
        if error:
            self.experiment.set_tag(self.run_id, "error", error)
        self.finalize(_ENDS.get(exit_code, "FAILED"))


@contextmanager
def _alone_in(runs_dir: Path) -> Iterator[None]:
    """Let one process at a time create the experiment, which two at once would create twice."""
    descriptor = descriptor_of_regular(runs_dir / ".mlruns.lock", os.O_RDWR | os.O_CREAT)
    with os.fdopen(descriptor, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _kept(variable: str) -> Iterator[None]:
    """Undo what is done to an environment variable.

    MLflow sets `MLFLOW_TRACKING_URI` with its first run; the next run of this process, which may
    have another runs_dir, would take it for the user's.
    """
    value = os.environ.get(variable)
    try:
        yield
    finally:
        os.environ.pop(variable, None)
        if value is not None:
            os.environ[variable] = value
