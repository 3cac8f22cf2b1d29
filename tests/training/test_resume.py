"""A killed run, started again, ends bit for bit like an undisturbed one, except for times."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from interruption import (
    EPOCHS,
    MODELS,
    ROOT,
    SMALL,
    STEPS_PER_EPOCH,
    assert_same,
    empty,
    finish,
    flip,
    start,
    stop_after,
    truncate,
)
from kills import torment

from genlab.runs.run import Run, find_runs

Reference = Callable[[str], Run]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The undisturbed run of a model."""
    return cache(lambda model: finish(model, tmp_path_factory.mktemp(model)))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "workers"), [("vae", 0), ("vae", 2), ("ddpm", 0), ("gan", 0)])
def test_sigkill_at_random_moments_changes_nothing(
    reference: Reference, tmp_path: Path, model: str, workers: int
) -> None:
    chance = random.Random(workers)
    overrides = [f"data.num_workers={workers}"]
    total = EPOCHS * (STEPS_PER_EPOCH + 1)
    kills = sorted(chance.sample(range(1, total), 2))
    for rows in kills:
        assert stop_after(rows, signal.SIGKILL, model, tmp_path, *overrides) == -signal.SIGKILL
        (run,) = find_runs(tmp_path)
        assert run.is_interrupted
    assert_same(finish(model, tmp_path, *overrides), reference(model))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "how", "code", "rows"),
    [
        ("vae", signal.SIGTERM, 143, 14),
        ("vae", signal.SIGINT, 130, 22),
        ("vae", signal.SIGUSR1, 143, 8),
        ("ddpm", signal.SIGTERM, 143, 17),
        ("gan", signal.SIGTERM, 143, 17),
    ],
)
def test_a_stop_saves_the_step_and_says_so(
    reference: Reference, tmp_path: Path, model: str, how: signal.Signals, code: int, rows: int
) -> None:
    assert stop_after(rows, how, model, tmp_path) == code
    (run,) = find_runs(tmp_path)
    assert run.state == "preempted"
    saved = torch.load(run.checkpoints / "last.ckpt", weights_only=True)["global_step"]
    last_row = max(row["step"] for row in run.metrics())
    assert saved >= last_row - 1
    assert_same(finish(model, tmp_path), reference(model))


def test_who_handled_a_signal_of_slurm_before_does_so_after_the_checkpoint(tmp_path: Path) -> None:
    """Run under a handler like submitit's, which requeues the job."""
    requeue = "import runpy, signal, sys; signal.signal(signal.SIGUSR2, lambda *_: sys.exit(85)); "
    chosen = [*SMALL, *MODELS["vae"], f"runs_dir={tmp_path}", "trainer.max_epochs=1000"]
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"{requeue}runpy.run_path('train.py', run_name='__main__')",
            *chosen,
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    while not any(p.stat().st_size for p in tmp_path.glob("*/*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR2)
    assert process.wait() == 85
    (run,) = find_runs(tmp_path)
    assert run.state == "preempted"
    assert run.status["message"] == "SIGUSR2"
    assert (run.checkpoints / "last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncate, empty, flip])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_is_used(
    reference: Reference, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    assert stop_after(14, signal.SIGTERM, "vae", tmp_path) == 143
    (run,) = find_runs(tmp_path)
    damage(run.checkpoints / "last.ckpt")
    process = start("vae", tmp_path)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "last.ckpt is no readable checkpoint" in output
    assert "going on from the one before it, last.before.ckpt" in output
    assert_same(run, reference("vae"))


def test_without_a_checkpoint_that_can_be_read_nothing_is_trained_anew(tmp_path: Path) -> None:
    assert stop_after(5, signal.SIGKILL, "vae", tmp_path) == -signal.SIGKILL
    (run,) = find_runs(tmp_path)
    for path in run.checkpoints.glob("last*.ckpt"):
        truncate(path)
    process = start("vae", tmp_path)
    output, _ = process.communicate()
    assert process.returncode == 2
    assert "overwrite=true" in output


@pytest.mark.slow
def test_a_run_is_bitwise_the_same_when_repeated(reference: Reference, tmp_path: Path) -> None:
    assert_same(finish("vae", tmp_path), reference("vae"))


@pytest.mark.slow
def test_a_diffusion_model_uses_the_state_that_is_resumed(reference: Reference) -> None:
    """Otherwise the tests above would compare a constant."""
    state = torch.load(reference("ddpm").checkpoints / "last.ckpt", weights_only=True)["state_dict"]
    assert (state["model.time_sampler.seen"] >= 4).all()
    assert state["model.noise_schedule.height"].std() > 0
    assert len(state["model.reverse_variance.log_snr"]) > 0


@pytest.mark.slow
def test_a_completed_run_is_not_trained_again(reference: Reference) -> None:
    path = reference("vae").path
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    process = start("vae", path.parent.parent)
    output, _ = process.communicate()
    assert process.returncode == 0
    assert "completed before" in output
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_overwrite_keeps_what_was_there(tmp_path: Path) -> None:
    first = finish("vae", tmp_path)
    old = json.dumps(first.result)
    second = finish("vae", tmp_path, "overwrite=true")
    assert second.path == first.path
    aside = Run(first.path.with_name(f"{first.name}.old-1"))
    assert json.dumps(aside.result) == old


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    seen = torment("vae", 2, 0, tmp_path)
    assert seen["kills"] == 2
    assert seen["runs that ended bit for bit as the undisturbed one"] >= 1
