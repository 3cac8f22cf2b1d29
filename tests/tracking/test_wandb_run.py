"""Runs on W&B as a server or W&B's own reader sees them: resumed, failed, stopped, unreachable."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from wandb_stub import WandbStub

from genlab.config.compose import compose
from genlab.media import pictures
from genlab.runs.directory import RunDirectory
from genlab.runs.run import Run, find_runs
from genlab.tracking.files import Row, folders, logged_rows, row
from genlab.tracking.loggers import TrackedRun
from genlab.tracking.wandb import WandbLogger
from genlab.training import run
from genlab.vae.model import VAE

ROOT = Path(__file__).parents[2]
SMALL = [
    "data.batch_size=32",
    "data.eval_batch_size=100",
    "data.train_images=320",
    "trainer.max_epochs=3",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=2",
    "trainer.log_every_n_steps=1",
    "model.net.encoder.hidden=[32]",
    "model.net.decoder.hidden=[32]",
    "checkpoint_every_n_steps=3",
    "callbacks=none",
    "forecast=false",
]
TIMES = ("images_per_second", "mfu")


@pytest.fixture
def server() -> Iterator[WandbStub]:
    with WandbStub() as stub:
        yield stub


@pytest.fixture(autouse=True)
def forgetful_client() -> Iterator[None]:
    """W&B's client keeps the server and the mode that it met first in this process."""
    wandb.teardown()
    yield
    wandb.teardown()


def start(runs_dir: Path, *overrides: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "train.py", *SMALL, f"runs_dir={runs_dir}", *overrides],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def written(runs_dir: Path) -> int:
    return sum(p.read_bytes().count(b"\n") for p in runs_dir.glob("*/*/metrics.jsonl"))


def stop_after(rows: int, how: signal.Signals, runs_dir: Path, **variables: str) -> int:
    """Start a run, signal it as soon as its record has so many rows, return its exit code."""
    process = start(runs_dir, **variables)
    while process.poll() is None:
        if written(runs_dir) >= rows:
            process.send_signal(how)
            break
        time.sleep(0.002)
    process.communicate()
    return process.returncode


def sync(paths: str, server: WandbStub, cwd: Path, *options: str) -> None:
    """Run the printed command as a user would."""
    client = shlex.quote(str(Path(sys.executable).with_name("wandb")))
    subprocess.run(
        f"{client} sync {shlex.join(options)} {paths}",
        shell=True,
        cwd=cwd,
        env={**os.environ, **server.variables},
        capture_output=True,
        check=True,
    )


def values(history: list[dict[str, Any]]) -> Counter[tuple[int, str, float]]:
    """(step, name, value) of everything logged, but for times."""
    return Counter(
        (int(item["trainer/global_step"]), name, value)
        for item in history
        for name, value in item.items()
        if name.split("/")[0] in ("train", "val", "test") and not name.endswith(TIMES)
    )


def recorded(run: Run) -> Counter[tuple[int, str, float]]:
    lines = [{**line, "trainer/global_step": line["step"]} for line in run.metrics()]
    return values(lines)


def read_back(run: Run) -> list[list[dict[str, Any]]]:
    """The records of each of W&B's files of a run, by W&B's own reader; a kill may leave none."""
    client = Path(sys.executable).with_name("wandb")
    found = []
    for log in (log for folder in folders(run.path) for log in folder.glob("*.wandb")):
        done = subprocess.run(
            [client, "leet", "inspect", "--json", log], capture_output=True, text=True
        )
        found.append([json.loads(line) for line in done.stdout.splitlines()])
    return found


@pytest.mark.slow
def test_killed_and_resumed_a_run_is_one_run_without_a_gap_or_a_repeat(
    tmp_path: Path, server: WandbStub
) -> None:
    process = start(tmp_path / "whole")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    (whole,) = find_runs(tmp_path / "whole")

    broken = tmp_path / "broken"
    for rows in (7, 17):
        assert stop_after(rows, signal.SIGKILL, broken) == -signal.SIGKILL
    process = start(broken)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    (resumed,) = find_runs(broken)

    starts = read_back(resumed)
    assert len(folders(resumed.path)) == 3
    ids = {r["run"]["run_id"] for records in starts for r in records if r["type"] == "run"}
    assert ids == {f"single-{resumed.name}"}
    history = [r["history"]["item"] for rs in starts for r in rs if r["type"] == "history"]
    (undisturbed,) = read_back(whole)
    expected = [r["history"]["item"] for r in undisturbed if r["type"] == "history"]
    assert values(history) == values(expected) == recorded(resumed)
    assert max(values(history).values()) == 1

    sync(f"{shlex.quote(str(broken))}/*/*/wandb/offline-*", server, tmp_path)
    (synced,) = server.runs.values()
    assert [item["_step"] for item in synced.history] == list(range(len(history)))
    assert values(synced.history) == values(expected)
    assert synced.summary["status"] == "completed"
    assert synced.exit_code == 0


@pytest.mark.slow
def test_online_the_server_gets_the_record_also_after_a_kill(
    tmp_path: Path, server: WandbStub
) -> None:
    assert stop_after(15, signal.SIGKILL, tmp_path, **server.variables) == -signal.SIGKILL
    process = start(tmp_path, **server.variables)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    (run,) = find_runs(tmp_path)
    ((name, online),) = server.runs.items()
    assert f"/runs/{name}" in output
    assert values(online.history) == recorded(run)
    assert [item["_step"] for item in online.history] == list(range(len(online.history)))
    assert run.result is not None
    for metric, value in run.result["metrics"].items():
        assert online.summary[metric] == pytest.approx(value, rel=1e-12)
    assert online.summary["status"] == "completed"
    assert online.exit_code == 0
    assert online.told("groupName") == "single"
    assert online.config["model"]["latent_dim"] == 20


@pytest.mark.slow
def test_a_preempted_run_says_so_on_wandb(tmp_path: Path, server: WandbStub) -> None:
    assert stop_after(14, signal.SIGTERM, tmp_path, **server.variables) == 143
    (online,) = server.runs.values()
    assert online.exit_code == 143
    assert online.preempting
    assert online.summary["status"] == "preempted"


@pytest.mark.slow
def test_a_failed_run_is_failed_on_wandb(tmp_path: Path, server: WandbStub) -> None:
    process = start(tmp_path, "model.optimizer.lr=1e30", **server.variables)
    output, _ = process.communicate()
    assert process.returncode == 1, output
    (online,) = server.runs.values()
    assert online.exit_code == 1
    assert not online.preempting
    assert online.summary["status"] == "failed"
    assert online.summary["error"].startswith("TrainingError: ")


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["stall", "refuse"])
def test_a_server_lost_in_mid_run_stops_nothing_and_loses_nothing(
    tmp_path: Path, server: WandbStub, behaviour: Any
) -> None:
    process = start(tmp_path, WANDB_FINISH_TIMEOUT="2", **server.variables)
    while process.poll() is None and not written(tmp_path):
        time.sleep(0.002)
    server.behaviour = behaviour
    output, _ = process.communicate()
    assert process.returncode == 0, output
    (run,) = find_runs(tmp_path)
    assert run.is_completed
    command = next(part for part in output.split("`") if part.startswith("wandb sync"))
    server.behaviour = "answer"
    server.released.set()
    *options, folder = shlex.split(command)[2:]
    sync(shlex.quote(folder), server, tmp_path, *options)
    (online,) = server.runs.values()
    assert values(online.history) == recorded(run)


@pytest.mark.slow
def test_a_server_that_never_answers_leaves_the_run_in_files(
    tmp_path: Path, server: WandbStub
) -> None:
    server.behaviour = "stall"
    process = start(tmp_path, WANDB_INIT_TIMEOUT="2", **server.variables)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "kept in files" in output
    (run,) = find_runs(tmp_path)
    history = read_back(run)[-1]
    assert values([r["history"]["item"] for r in history if r["type"] == "history"]) == recorded(
        run
    )


def open_logger(path: Path, mode: Any = "offline") -> WandbLogger:
    logger = WandbLogger(mode=mode)
    logger.begin(TrackedRun(path, "the-run", "the-group", "the name", [], None, {}))
    return logger


def test_nothing_is_logged_twice_and_what_the_record_has_is_caught_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    picture = tmp_path / "picture.png"
    pictures.save_png(picture, np.zeros((8, 8, 3), np.uint8))
    with RunDirectory(tmp_path / "run") as record:
        record.append_metrics(1, 0, {"train/loss": 3.0})
        first = open_logger(record.path)
        first.log_metrics({"train/loss": 3.0, "epoch": 0}, 1)
        first.log_image("pictures/samples", picture, 1)
        first.log_image("pictures/samples", picture, 1)
        first.close(143)
        record.append_metrics(2, 0, {"train/loss": float("nan")})
        record.append_metrics(2, 0, {"val/loss": 5.0})
        second = open_logger(record.path)
        second.log_metrics({"train/loss": 3.0, "epoch": 0}, 1)
        second.log_image("pictures/samples", picture, 1)
        second.log_image("pictures/samples", picture, 2)
        second.close(0)
    expected: list[Row] = [
        row(1, {"train/loss": 3.0}),
        row(1, {"pictures/samples": picture}),
        row(2, {"train/loss": 3.0}),
        row(2, {"val/loss": 5.0}),
        row(2, {"pictures/samples": picture}),
    ]
    assert logged_rows(tmp_path / "run", "the-run") == expected


@pytest.mark.parametrize(("exit_code", "kept"), [(0, 1), (1, 0)])
def test_the_best_checkpoint_of_a_completed_run_is_an_artifact_if_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exit_code: int, kept: int
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with RunDirectory(tmp_path / "run") as record:
        (record.checkpoints / "best.ckpt").write_bytes(b"weights")
        logger = WandbLogger(mode="offline", log_model=True)
        logger.begin(TrackedRun(record.path, "the-run", "the-group", "the name", [], None, {}))
        logger.close(exit_code)
    (records,) = read_back(Run(tmp_path / "run"))
    artifacts = [json.dumps(r) for r in records if "best.ckpt" in json.dumps(r)]
    assert len(artifacts) == kept
    assert all("the-run-model" in text and '"model"' in text for text in artifacts)


@pytest.mark.slow
def test_a_run_that_an_agent_hands_out_again_is_whole_under_its_new_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: WandbStub
) -> None:
    for key, value in server.variables.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("WANDB_SWEEP_ID", "the-sweep")
    with RunDirectory(tmp_path / "run") as record:
        starts = [("first", [1, 2]), ("second", [3]), ("second", [4]), ("offline", [5])]
        for run_id, steps in starts:
            monkeypatch.setenv("WANDB_RUN_ID", run_id)
            monkeypatch.setenv("WANDB_MODE", "offline" if run_id == "offline" else "online")
            wandb.teardown()  # each start is a process of its own
            logger = open_logger(record.path)
            for step in steps:
                record.append_metrics(step, 0, {"train/loss": float(step)})
                logger.log_metrics({"train/loss": float(step)}, step)
            logger.close(143)
            assert logger.version == run_id
    assert set(server.runs) == {"first", "second"}
    for run_id, steps in (("first", [1, 2]), ("second", [1, 2, 3, 4])):
        online = server.runs[run_id]
        assert [item["trainer/global_step"] for item in online.history] == steps
        assert online.told("sweep") == "the-sweep"
    for run_id, count in (("second", 4), ("offline", 5)):
        assert [step for step, _ in logged_rows(record.path, run_id)] == [*range(1, count + 1)]


def test_a_video_is_a_media_panel_and_what_is_no_video_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: WandbStub
) -> None:
    for key, value in server.variables.items():
        monkeypatch.setenv(key, value)
    video = tmp_path / "interpolation-final.mp4"
    video.write_bytes(b"\0\0\0\x18ftypisom")  # W&B looks at the name alone
    logger = open_logger(tmp_path / "run", "online")
    logger.log_video("videos/interpolation", tmp_path / "missing.mp4", 3)
    logger.log_video("videos/interpolation", video.with_suffix(".webp"), 3)
    logger.log_video("videos/interpolation", video, 4)
    logger.close(0)
    online = server.runs["the-run"]
    (item,) = online.history
    assert item["videos/interpolation"]["_type"] == "video-file"
    assert item["trainer/global_step"] == 4
    assert [name for name in online.uploads if name.endswith(".mp4")]


def test_a_run_that_began_offline_goes_on_offline_although_there_is_a_key_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: WandbStub
) -> None:
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    open_logger(tmp_path / "run").close(143)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    second = open_logger(tmp_path / "run", "auto")
    second.close(0)
    assert second.mode == "offline"
    assert not server.runs


@pytest.mark.slow
def test_overwrite_begins_another_run_on_wandb_and_a_resume_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: WandbStub
) -> None:
    for key, value in server.variables.items():
        monkeypatch.setenv(key, value)
    loss = VAE.loss

    def fail(self: VAE, x: Any, labels: Any, step: int, noise: Any) -> Any:
        if step == 5:
            raise RuntimeError("the power went")
        return loss(self, x, labels, step, noise)

    def train(*overrides: str) -> Run:
        wandb.teardown()  # each is a process of its own
        cfg = compose([*SMALL, "trainer.max_epochs=1", f"runs_dir={tmp_path}", *overrides])
        path = run.run(cfg).path
        assert path is not None
        return Run(path)

    first = train()
    (first_id,) = server.runs
    before = list(server.runs[first_id].history)
    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="the power went"):
        broken.setattr(VAE, "loss", fail)
        train("overwrite=true")
    second_id = next(name for name in server.runs if name != first_id)
    second = train()  # goes on with the second
    assert set(server.runs) == {first_id, second_id}
    assert server.runs[first_id].history == before
    assert values(server.runs[second_id].history) == recorded(second)
    third = train("overwrite=true")
    (third_id,) = set(server.runs) - {first_id, second_id}
    assert values(server.runs[third_id].history) == recorded(third)
    assert first.path == second.path == third.path

    def ids(path: Path) -> set[str]:
        return {folder.name.split("-", 2)[-1] for folder in folders(path)}

    asides = [third.path.with_name(f"{third.name}.old-{number}") for number in (1, 2)]
    assert [ids(path) for path in (*asides, third.path)] == [{first_id}, {second_id}, {third_id}]


@pytest.mark.slow
def test_a_run_on_wandb_keeps_its_id_when_an_older_one_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: WandbStub
) -> None:
    for key, value in server.variables.items():
        monkeypatch.setenv(key, value)
    cfg = compose([*SMALL, "trainer.max_epochs=1", f"runs_dir={tmp_path}"])
    again = compose([*SMALL, "trainer.max_epochs=1", f"runs_dir={tmp_path}", "overwrite=true"])
    for config in (cfg, again):
        wandb.teardown()
        path = run.run(config).path
    assert path is not None and len(server.runs) == 2
    shutil.rmtree(path.with_name(f"{path.name}.old-1"))
    wandb.teardown()
    run.run(again)
    assert len(server.runs) == 3
