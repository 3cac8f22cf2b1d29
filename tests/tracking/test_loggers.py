"""Any logger of Lightning's kind holds the rows of metrics.jsonl; several may log at once."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from trained_runs import logged

from genlab.config.compose import compose
from genlab.errors import ConfigError
from genlab.runs.run import Run, find_runs
from genlab.tracking.loggers import Loggers, RunTracker, TakesImages, TakesVideos, TrackedRun
from genlab.training.run import run as train
from genlab.training.run_config import RunConfig

ROOT = Path(__file__).parents[2]
SMALL = [
    *("data=mnist_mini", "trainer=smoke", "trainer.max_epochs=2", "trainer.log_every_n_steps=1"),
    *("data.batch_size=32", "data.train_images=96", "model.latent_dim=2"),
    *("model.net.encoder.hidden=[16]", "model.net.decoder.hidden=[16]"),
    *("callbacks=none", "forecast=false"),
]
#: A package of a user's own: a logger, and callbacks that draw a picture and that fail once.
OWN = """
import json
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger
from PIL import Image

from genlab.tracking.loggers import TakesImages


class Rows(Logger):
    def __init__(self, save_dir: str, shout: bool = False) -> None:
        super().__init__()
        self.path = Path(save_dir) / "rows.jsonl"
        self.shout = shout

    name = version = "rows"

    def _add(self, kind, **content):
        with self.path.open("a") as file:
            file.write(json.dumps({"kind": kind, **content}) + "\\n")

    def log_metrics(self, metrics, step=None):
        self._add("row", step=step, metrics={k: float(v) for k, v in metrics.items()})

    def log_hyperparams(self, params, *args, **kwargs):
        self._add("hyperparameters", params=params, shout=self.shout)


class Draws(pl.Callback):
    def __init__(self, directory: str) -> None:
        self.path = Path(directory) / "own.png"

    def on_validation_epoch_end(self, trainer, pl_module):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (10 * trainer.global_step, 0, 255)).save(self.path)
        for logger in trainer.loggers:
            if isinstance(logger, TakesImages):
                logger.log_image("pictures/own", self.path, trainer.global_step)


class FailsOnce(pl.Callback):
    def __init__(self, directory: str) -> None:
        self.mark = Path(directory).with_name("failed")

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1 and not self.mark.exists():
            self.mark.touch()
            raise RuntimeError("planned")
"""
Rows = dict[tuple[int, str], float]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_tracking").mkdir()
    (tmp_path / "own_tracking" / "__init__.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_tracking", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def trained(runs_dir: Path, *overrides: str) -> Run:
    train(compose([*SMALL, f"runs_dir={runs_dir}", *overrides]))
    (run,) = find_runs(runs_dir)
    return run


def recorded(run: Run) -> Rows:
    rows = logged(run.metrics())
    assert len(rows) > 30
    return rows


def rows_of_csv(run: Run) -> Rows:
    rows = {}
    for path in run.path.glob("csv/version_*/metrics.csv"):
        for line in csv.DictReader(path.open()):
            values = {k: v for k, v in line.items() if v and k not in ("step", "epoch")}
            rows |= {(int(line["step"]), name): float(v) for name, v in values.items()}
    return rows


def events(run: Run) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.path / "tensorboard"), {"scalars": 0, "images": 0})
    return found.Reload()


def rows_of_tensorboard(run: Run) -> Rows:
    found = events(run)
    return {
        (event.step, name): event.value
        for name in found.Tags()["scalars"]
        for event in found.Scalars(name)
        if name != "epoch"
    }


def mlflow_runs(run: Run) -> tuple[Any, list[Any]]:
    from mlflow import MlflowClient

    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow's readers need it too
    client = MlflowClient((run.path.parents[1] / "mlruns").as_uri())
    experiment = client.get_experiment_by_name(run.path.parent.name)
    assert experiment is not None
    return client, list(client.search_runs([experiment.experiment_id]))


def rows_of_mlflow(run: Run) -> Rows:
    client, (found,) = mlflow_runs(run)
    return {
        (metric.step, name): metric.value
        for name in found.data.metrics
        for metric in client.get_metric_history(found.info.run_id, name)
        if name != "epoch"
    }


def rows_of_wandb(run: Run) -> Rows:
    (log,) = run.wandb.glob("offline-run-*/*.wandb")
    reader = Path(sys.executable).with_name("wandb")
    command = [reader, "leet", "inspect", "--json", log]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return {
        (int(item["trainer/global_step"]), name): value
        for item in (r["history"]["item"] for r in records if r["type"] == "history")
        for name, value in item.items()
        if name.split("/")[0] in ("train", "val", "test")
    }


@pytest.mark.parametrize(
    ("choice", "stores"),
    [
        ("csv", {rows_of_csv: 1e-12}),
        ("tensorboard", {rows_of_tensorboard: 1e-6}),  # of float32
        ("mlflow", {rows_of_mlflow: 1e-12}),
        ("[wandb,tensorboard]", {rows_of_wandb: 1e-12, rows_of_tensorboard: 1e-6}),
    ],
    ids=["csv", "tensorboard", "mlflow", "wandb+tensorboard"],
)
def test_a_logger_holds_the_steps_names_and_values_of_the_record(
    tmp_path: Path, own: None, choice: str, stores: dict[Callable[[Run], Rows], float]
) -> None:
    run = trained(tmp_path / "runs", f"logger={choice}")
    kept = recorded(run)
    for rows_of, precision in stores.items():
        rows = rows_of(run)
        assert rows.keys() == kept.keys()
        for key, value in kept.items():
            assert rows[key] == pytest.approx(value, rel=precision), key


def test_tensorboard_and_mlflow_get_the_pictures(tmp_path: Path, own: None) -> None:
    import io

    from PIL import Image

    run = trained(
        tmp_path / "runs",
        "logger=[tensorboard,mlflow]",
        "+callbacks.own._target_=own_tracking.Draws",
    )
    shown = events(run).Images("pictures/own")
    steps = [row["step"] for row in run.metrics() if "val/loss" in row]
    assert [image.step for image in shown] == steps
    for image in shown:
        pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
        assert pixels.shape == (4, 6, 3)
        assert pixels[0, 0].tolist() == [10 * image.step, 0, 255]
    client, (found,) = mlflow_runs(run)
    (artifact,) = client.list_artifacts(found.info.run_id, "pictures")
    assert artifact.path == "pictures/own.png"


def test_a_resumed_run_goes_on_in_the_same_place(tmp_path: Path, own: None) -> None:
    overrides = (
        "logger=[csv,tensorboard,mlflow]",
        "+callbacks.own._target_=own_tracking.FailsOnce",
    )
    with pytest.raises(Exception, match="planned"):
        trained(tmp_path / "runs", *overrides)
    (stopped,) = find_runs(tmp_path / "runs")
    _, (found,) = mlflow_runs(stopped)
    assert found.info.status == "FAILED"
    assert "planned" in found.data.tags["error"]
    run = trained(tmp_path / "runs", *overrides)
    assert run.path == stopped.path
    kept = recorded(run)
    assert {step for step, _ in kept} > {row["step"] for row in run.metrics() if row["epoch"] == 0}
    for rows_of in (rows_of_csv, rows_of_tensorboard, rows_of_mlflow):
        assert rows_of(run).keys() == kept.keys()
    _, (found,) = mlflow_runs(run)
    assert found.info.status == "FINISHED"
    assert found.data.params["model/latent_dim"] == "2"
    assert run.result is not None
    assert found.data.tags["verdict"] == run.result["verdict"]


def test_the_second_run_of_a_process_has_the_store_of_its_own_runs_dir(tmp_path: Path) -> None:
    for name in ("first", "second"):
        run = trained(tmp_path / name, "logger=mlflow", "trainer.max_epochs=1")
        _, found = mlflow_runs(run)
        assert len(found) == 1


@pytest.mark.parametrize("kept", ["other", "../../../evil", "0" * 32, "same"])
def test_mlflow_goes_on_with_this_very_run_alone(tmp_path: Path, own: None, kept: str) -> None:
    from genlab.tracking.mlflow import MLflowLogger

    folder = tmp_path / "runs" / "group" / "run"
    folder.mkdir(parents=True)
    earlier = MLflowLogger(str(folder), "group", "run" if kept == "same" else "other")
    text = earlier.run_id if kept in ("other", "same") else kept
    (folder / "mlflow_run_id").write_text(str(text))
    assert (MLflowLogger(str(folder), "group", "run").run_id == earlier.run_id) is (kept == "same")


#: Logs one row to MLflow in the directory of the first argument; tells every name looked up.
MLFLOW_SCRIPT = """
import sys, threading
looked_up = []
sys.addaudithook(lambda event, given: event == "socket.getaddrinfo" and looked_up.append(given[0]))
from pathlib import Path
from genlab.tracking.mlflow import MLflowLogger
logger = MLflowLogger(sys.argv[1], "group", "run")
logger.log_metrics({"train/loss": 1.0}, 1)
logger.close(0)
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join(5)
print(looked_up)
"""


@pytest.mark.slow
def test_mlflow_in_a_folder_looks_up_no_name(tmp_path: Path) -> None:
    """In an environment where MLflow sees neither a test nor a CI, in which it sends nothing."""
    folder = tmp_path / "runs" / "group" / "run"
    folder.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", MLFLOW_SCRIPT, folder],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_logger_from_outside_gets_rows_and_hyperparameters(tmp_path: Path, own: None) -> None:
    run = trained(
        tmp_path / "runs",
        "logger=none",
        "+logger.mine._target_=own_tracking.Rows",
        "+logger.mine.shout=true",
    )
    lines = [json.loads(line) for line in (run.path / "rows.jsonl").read_text().splitlines()]
    first, *rows = lines
    assert first["kind"] == "hyperparameters"
    assert first["shout"] is True
    assert first["params"]["model"]["latent_dim"] == 2
    assert {row["kind"] for row in rows} == {"row"}
    told = {
        (row["step"], name): value
        for row in rows
        for name, value in row["metrics"].items()
        if name != "epoch"
    }
    assert told == recorded(run)


def test_a_stock_logger_gets_the_hyperparameters(tmp_path: Path) -> None:
    node = {"_target_": "lightning.pytorch.loggers.CSVLogger"}
    run = TrackedRun(tmp_path, "id", "group", "name", [], None, {"model": {"latent_dim": 3}})
    loggers = Loggers({"csv": node, "left_out": None}, run)
    (logger,) = loggers.all
    assert isinstance(logger, CSVLogger)
    loggers.summarise({})
    loggers.close(0)
    assert loggers.sentences == []
    logger.log_metrics({"x": 1.0}, 1)
    logger.save()
    assert "latent_dim: 3" in (Path(logger.log_dir) / "hparams.yaml").read_text()


def test_a_logger_that_cannot_begin_ends_those_that_began(tmp_path: Path) -> None:
    class Tracker(CSVLogger):
        ended: list[int] = []  # noqa: RUF012
        sentence = ""

        def begin(self, run: TrackedRun) -> None:
            if self.name == "bad":
                raise OSError("planned")

        def summarise(self, result: Any) -> None: ...

        def close(self, exit_code: int, error: str = "") -> None:
            self.ended.append(exit_code)
            assert "planned" in error

    assert isinstance(Tracker("."), RunTracker)
    run = TrackedRun(tmp_path, "id", "group", "name", [], None, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tracker_of_a_test", type(sys)("tracker_of_a_test"))
        sys.modules["tracker_of_a_test"].Tracker = Tracker  # type: ignore[attr-defined]
        node = {"_target_": "tracker_of_a_test.Tracker"}
        with pytest.raises(OSError, match="planned"):
            Loggers({"good": {**node, "name": "good"}, "bad": {**node, "name": "bad"}}, run)
    assert Tracker.ended == [1]


def test_the_abilities_of_the_loggers() -> None:
    from genlab.tracking.mlflow import MLflowLogger
    from genlab.tracking.tensorboard import TensorBoardLogger
    from genlab.tracking.wandb import WandbLogger

    takes_images = {WandbLogger, TensorBoardLogger, MLflowLogger}
    takes_videos = {WandbLogger, MLflowLogger}
    for cls in (WandbLogger, TensorBoardLogger, MLflowLogger, CSVLogger):
        assert issubclass(cls, TakesImages) is (cls in takes_images)
        assert issubclass(cls, TakesVideos) is (cls in takes_videos)


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ([], ["wandb"]),
        (["logger=wandb"], ["wandb"]),
        (["logger=csv"], ["csv"]),
        (["logger=[csv]"], ["csv"]),
        (["logger=[wandb,tensorboard]"], ["wandb", "tensorboard"]),
        (["logger=[wandb,csv,tensorboard,mlflow]"], ["wandb", "csv", "tensorboard", "mlflow"]),
        (["logger=none"], []),
        (["logger=[wandb,csv]", "~logger.csv"], ["wandb"]),
    ],
    ids=str,
)
def test_one_or_several_loggers_are_chosen_by_name(overrides: list[str], names: list[str]) -> None:
    assert list(RunConfig.of(compose(["callbacks=none", *overrides])).logger) == names


def test_a_key_of_one_of_several_loggers_is_set_by_its_name() -> None:
    config = RunConfig.of(compose([*SMALL, "logger=[csv,wandb]", "logger.wandb.mode=offline"]))
    assert config.logger["wandb"]["mode"] == "offline"
    with pytest.raises(ConfigError, match=r"logger=nothing: there is no such file"):
        compose(["logger=[wandb,nothing]"])
    with pytest.raises(ConfigError, match=r"logger.wandb.mode=.*never"):
        RunConfig.of(compose([*SMALL, "logger.wandb.mode=never"]))
    with pytest.raises(ConfigError, match="Logger is needed"):
        RunConfig.of(compose([*SMALL, "logger=none", "+logger.x._target_=torch.nn.Linear"]))


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_package_is_refused_with_the_config(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"genlab.tracking.{name}", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"logger\.{name}.*pip install genlab\[{name}\]"):
        RunConfig.of(compose([*SMALL, f"logger={name}"]))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "process"])
def test_a_multirun_takes_several_loggers(tmp_path: Path, launcher: str) -> None:
    several = ["logger=[wandb,csv,mlflow]", "logger.wandb.mode=offline"]
    swept = ["model.kl_weight=1,2", f"launcher={launcher}", f"runs_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "train.py", "-m", *SMALL, "trainer.max_epochs=1", *several, *swept],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "WANDB_MODE"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = find_runs(tmp_path)
    assert len(runs) == 2
    for run in runs:
        rows = {(row["step"], name) for row in run.metrics() for name in row}
        rows = {(step, name) for step, name in rows if name not in ("step", "epoch")}
        assert rows_of_csv(run).keys() == rows_of_wandb(run).keys() == rows
    _, found = mlflow_runs(runs[0])
    assert {item.data.params["model/kl_weight"] for item in found} == {"1.0", "2.0"}
