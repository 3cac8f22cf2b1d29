"""A killed run, run again, ends as if nothing had happened: bit for bit but for times."""

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
from typing import Any

import pytest
import torch

from genlab.runs.directory import Run, find_runs

ROOT = Path(__file__).parents[2]
STEPS_PER_EPOCH, EPOCHS = 10, 3
SMALL = [
    "data.batch_size=32",
    "data.eval_batch_size=100",
    f"data.train_images={32 * STEPS_PER_EPOCH}",
    f"trainer.max_epochs={EPOCHS}",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=2",
    "trainer.log_every_n_steps=1",
    "model/optimizer=adamw",
    "ema_decay=0.9",
    "checkpoint_every_n_steps=3",
    "callbacks=none",
    "logger=none",
    "forecast=false",
]
# Whatever has a state of its own, or depends on where a run stands.
MODELS = {
    "vae": [
        "model.net.encoder.hidden=[32]",
        "model.net.decoder.hidden=[32]",
        "model.kl_schedule.steps=20",
        "model/kl_schedule=linear",
        "data.binarisation=dynamic",
    ],
    "ddpm": [
        "model=ddpm",
        "model.net.channels=8",
        "model.net.multipliers=[1,2]",
        "model.net.attention=[]",
        "model/noise_schedule=learned",
        "model.noise_schedule.hidden=8",
        "model/weighting=vlb",
        "model.steps=null",
        "model.test_draws=4",
        "model/time_sampler=importance",
        "model.time_sampler.bins=10",
        "model.time_sampler.history=4",
        "model/reverse_variance=optimal",
        "model.conditional=true",
    ],
}
TIMES = ("images_per_second", "mfu", "wall_seconds", "peak_gpu_memory_bytes")


def start(model: str, runs_dir: Path, *overrides: str) -> subprocess.Popen[str]:
    chosen = [*SMALL, *MODELS[model], f"runs_dir={runs_dir}", *overrides]
    command = [sys.executable, "train.py", *chosen]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(model: str, runs_dir: Path, *overrides: str) -> Run:
    process = start(model, runs_dir, *overrides)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    (run,) = find_runs(runs_dir)
    return run


def stop_after(rows: int, how: signal.Signals, model: str, runs_dir: Path, *overrides: str) -> int:
    """Start a run, signal it as soon as its record has so many rows, return its exit code."""
    process = start(model, runs_dir, *overrides)
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
    assert run.bound == reference.bound
    for name in ("best.ckpt", "last.ckpt"):
        ours, theirs = (
            torch.load(r.checkpoints / name, weights_only=True) for r in (run, reference)
        )
        for kind in ("state_dict", "raw_weights"):
            assert ours.get(kind, {}).keys() == theirs.get(kind, {}).keys()
            for key, value in ours.get(kind, {}).items():
                assert torch.equal(value, theirs[kind][key]), (name, kind, key)


Reference = Callable[[str], Run]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The undisturbed run of a model."""
    return cache(lambda model: finish(model, tmp_path_factory.mktemp(model)))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "workers"), [("vae", 0), ("vae", 2), ("ddpm", 0)])
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
    """As submitit, whose handler puts the job back into the queue."""
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


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    """64 bytes in the middle of the weights, which torch loads without a word."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(255 - byte for byte in content[middle : middle + 64])
    path.write_bytes(content)


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
    """Else the tests above would compare what never changed."""
    state = torch.load(reference("ddpm").checkpoints / "last.ckpt", weights_only=True)["state_dict"]
    assert (state["time_sampler.seen"] >= 4).all()
    assert state["noise_schedule.height"].std() > 0
    assert len(state["reverse_variance.log_snr"]) > 0


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
