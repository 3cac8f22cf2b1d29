"""A killed run, run again, ends as if nothing had happened: bit for bit but for times."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from genlab.results import Run, find_runs

ROOT = Path(__file__).parent.parent
STEPS_PER_EPOCH, EPOCHS = 10, 3
SMALL = [
    "data.batch_size=32",
    f"data.train_images={32 * STEPS_PER_EPOCH}",
    "model.net.encoder.hidden=[32]",
    "model.net.decoder.hidden=[32]",
    f"trainer.max_epochs={EPOCHS}",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=2",
    "trainer.log_every_n_steps=1",
    "model.kl_schedule.steps=20",
    "model/kl_schedule=linear",
    "model/optimizer=adamw",
    "data.binarisation=dynamic",
    "ema_decay=0.9",
    "checkpoint_every_n_steps=3",
    "callbacks=none",
    "logger=none",
    "forecast=false",
]
TIMES = ("images_per_second", "mfu", "wall_seconds")


def start(runs_dir: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "train.py", *SMALL, f"runs_dir={runs_dir}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(runs_dir: Path, *overrides: str) -> Run:
    process = start(runs_dir, *overrides)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    (run,) = find_runs(runs_dir)
    return run


def stop_after(rows: int, how: signal.Signals, runs_dir: Path, *overrides: str) -> int:
    """Start a run, signal it as soon as its record has so many rows, return its exit code."""
    process = start(runs_dir, *overrides)
    while process.poll() is None:
        written = sum(p.read_bytes().count(b"\n") for p in runs_dir.glob("*/*/metrics.jsonl"))
        if written >= rows:
            process.send_signal(how)
            break
        time.sleep(0.002)
    process.communicate()
    return process.returncode


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in record.items() if k.rsplit("/", 1)[-1] not in TIMES}
    return {k: without_times(v) if isinstance(v, dict) else v for k, v in kept.items()}


def assert_same(run: Run, reference: Run) -> None:
    assert run.name == reference.name
    assert [without_times(r) for r in run.metrics()] == [
        without_times(r) for r in reference.metrics()
    ]
    assert run.result is not None
    assert reference.result is not None
    assert without_times(run.result) == without_times(reference.result)
    for name in ("best.ckpt", "last.ckpt"):
        ours, theirs = (
            torch.load(r.checkpoints / name, weights_only=True) for r in (run, reference)
        )
        assert ours["state_dict"].keys() == theirs["state_dict"].keys()
        for key, value in ours["state_dict"].items():
            assert torch.equal(value, theirs["state_dict"][key]), (name, key)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finish(tmp_path_factory.mktemp("reference"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_sigkill_at_random_moments_changes_nothing(
    reference: Run, tmp_path: Path, workers: int
) -> None:
    chance = random.Random(workers)
    overrides = [f"data.num_workers={workers}"]
    total = EPOCHS * (STEPS_PER_EPOCH + 1)
    kills = sorted(chance.sample(range(1, total), 2))
    for rows in kills:
        assert stop_after(rows, signal.SIGKILL, tmp_path, *overrides) == -signal.SIGKILL
        (run,) = find_runs(tmp_path)
        assert run.is_interrupted
    assert_same(finish(tmp_path, *overrides), reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code", "rows"), [(signal.SIGTERM, 143, 14), (signal.SIGINT, 130, 22)]
)
def test_a_stop_saves_the_step_and_says_so(
    reference: Run, tmp_path: Path, how: signal.Signals, code: int, rows: int
) -> None:
    assert stop_after(rows, how, tmp_path) == code
    (run,) = find_runs(tmp_path)
    assert run.state == "preempted"
    saved = torch.load(run.checkpoints / "last.ckpt", weights_only=True)["global_step"]
    last_row = max(row["step"] for row in run.metrics())
    assert saved >= last_row - 1
    assert_same(finish(tmp_path), reference)


@pytest.mark.slow
def test_a_run_is_bitwise_the_same_when_repeated(reference: Run, tmp_path: Path) -> None:
    assert_same(finish(tmp_path), reference)


@pytest.mark.slow
def test_a_completed_run_is_not_trained_again(reference: Run) -> None:
    before = {p: p.read_bytes() for p in reference.path.rglob("*") if p.is_file()}
    process = start(reference.path.parent.parent)
    output, _ = process.communicate()
    assert process.returncode == 0
    assert "completed before" in output
    assert {p: p.read_bytes() for p in reference.path.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_overwrite_keeps_what_was_there(tmp_path: Path) -> None:
    first = finish(tmp_path)
    old = json.dumps(first.result)
    second = finish(tmp_path, "overwrite=true")
    assert second.path == first.path
    aside = Run(first.path.with_name(f"{first.name}.old-1"))
    assert json.dumps(aside.result) == old
