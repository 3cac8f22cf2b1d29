"""The data sent to W&B, read back by its own reader, are those of the run directory."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
from trained_runs import logged

from genlab.runs.run import Run, find_runs
from genlab.tracking.account import key_is_configured

ROOT = Path(__file__).parents[2]
SMOKE = [
    "trainer=smoke",
    "callbacks=pictures",
    "model.kl_weight=2",
    "notes=a remark",
    "tags=[mine]",
]


def train(runs_dir: Path, *overrides: str, **variables: str) -> tuple[Run, str]:
    command = [sys.executable, "train.py", *SMOKE, f"runs_dir={runs_dir}", *overrides]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "WANDB_MODE": "offline", **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = find_runs(runs_dir)
    return run, done.stdout + done.stderr


def records(run: Run) -> list[dict[str, Any]]:
    (log,) = run.wandb.glob("offline-run-*/*.wandb")
    reader = Path(sys.executable).with_name("wandb")
    done = subprocess.run(
        [reader, "leet", "inspect", "--json", log], capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    return train(tmp_path_factory.mktemp("offline"))


def history(run: Run) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records(run) if record["type"] == "history"]


@pytest.mark.slow
def test_wandb_holds_every_row_of_the_record(offline: tuple[Run, str]) -> None:
    run, _ = offline
    sent: dict[tuple[int, str], float] = {}
    for row in history(run):
        for name, value in row.items():
            if name.split("/")[0] in ("train", "val", "test"):
                sent[int(row["trainer/global_step"]), name] = value
    kept = logged(run.metrics())
    assert len(kept) > 30
    assert sent.keys() == kept.keys()
    assert all(math.isclose(sent[key], kept[key], rel_tol=1e-12) for key in kept)


@pytest.mark.slow
def test_wandb_holds_the_pictures_the_config_and_the_names(offline: tuple[Run, str]) -> None:
    run, _ = offline
    names = {name for row in history(run) for name in row}
    for picture in ("reconstructions", "samples", "interpolation", "traversal", "latent_map"):
        assert any(name.startswith(f"pictures/{picture}") for name in names), picture
        assert list(run.pictures.glob(f"{picture}-final.png"))
    (start,) = (record["run"] for record in records(run) if record["type"] == "run")
    config = start["config"]["update"]
    assert config["model"]["kl_weight"] == 2
    assert config["model"]["likelihood"]["_target_"].endswith("Bernoulli")
    assert start["run_group"] == "single"
    assert start["job_type"] == "train"
    assert start["notes"] == "a remark"
    assert {"mine", "data:mnist_mini", "model/likelihood:bernoulli"} <= set(start["tags"])


@pytest.mark.slow
def test_offline_says_how_to_send_it_and_never_asks(offline: tuple[Run, str]) -> None:
    _, output = offline
    assert output.count("wandb sync") == 1
    assert "Enter your choice" not in output


@pytest.mark.slow
def test_an_unreachable_server_stops_no_training(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run, output = train(
        tmp_path,
        "callbacks=none",
        WANDB_MODE="online",
        WANDB_API_KEY="0" * 40,
        WANDB_BASE_URL=f"http://127.0.0.1:{port}",
    )
    assert run.is_completed
    assert "kept in files" in output
    assert any(record["type"] == "history" for record in records(run))


def test_a_key_is_found_in_the_environment_or_in_the_netrc_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    wandb.teardown()  # its client keeps what it has found
    assert not key_is_configured()
    netrc.write_text(f"machine api.wandb.ai login user password {'0' * 40}\n")
    netrc.chmod(0o600)
    assert key_is_configured()
    netrc.unlink()
    wandb.teardown()
    monkeypatch.setenv("WANDB_API_KEY", "1" * 40)
    assert key_is_configured()
    wandb.teardown()
