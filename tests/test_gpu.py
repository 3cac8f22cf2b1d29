"""The laws of the CPU hold on a CUDA GPU: repeats bit for bit, jobs of a sweep, errors.

Skipped where there is none; `make gpu` runs these alone.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from interruption import (
    EPOCHS,
    MODELS,
    ROOT,
    SMALL,
    STEPS_PER_EPOCH,
    assert_same,
    finish,
    start,
    stop_after,
)

from genlab.runs.run import find_runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here"),
]
GPU = ("trainer=gpu", "compile=true", "channels_last=true")
# Whatever a GPU does in an order of its own: convolutions, attention, sums by index.
NETWORKS = {"vae": (), "ddpm": ("model.net.attention=[14]",)}


@pytest.mark.parametrize("model", NETWORKS)
def test_a_killed_run_in_bf16_and_compiled_ends_bit_for_bit_as_an_undisturbed_one(
    tmp_path: Path, model: str
) -> None:
    overrides = (*GPU, *NETWORKS[model], "trainer.deterministic=true")
    reference = finish(model, tmp_path / "undisturbed", *overrides)
    rows = random.Random(model).randrange(2, EPOCHS * STEPS_PER_EPOCH)
    killed = tmp_path / "killed"
    assert stop_after(rows, signal.SIGKILL, model, killed, *overrides) == -signal.SIGKILL
    run = finish(model, killed, *overrides)
    assert_same(run, reference)
    assert run.result is not None
    assert run.result["peak_gpu_memory_bytes"] > 2**20
    assert all(np.isfinite(list(run.result["metrics"].values())))


def test_forked_jobs_of_a_sweep_train_on_the_gpu(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "-m", *SMALL, *MODELS["vae"], f"runs_dir={tmp_path}"]
    sweep = ["model.kl_weight=0,1,2,4", "launcher=process", "hydra.launcher.slots=2"]
    done = subprocess.run(
        [*command, *sweep, "trainer=gpu", "group=forked"],
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = find_runs(tmp_path)
    assert [run.state for run in runs] == ["completed"] * 4
    assert all((run.result or {})["peak_gpu_memory_bytes"] > 0 for run in runs)


def test_too_little_memory_of_the_gpu_names_what_to_lower(tmp_path: Path) -> None:
    process = start(
        *("ddpm", tmp_path, "trainer=gpu", "model.net.channels=1024", "data.batch_size=9000"),
        *("data.train_images=null", "data.val_images=1000", "data.eval_batch_size=1000"),
    )
    output, _ = process.communicate()
    assert process.returncode == 1, output
    assert "error: out of memory on the GPU when" in output
    assert "data.batch_size" in output


def test_samples_of_the_gpu_are_those_of_the_cpu(tmp_path: Path) -> None:
    """The noise is drawn on the CPU, so that only rounding is left."""
    run = finish("ddpm", tmp_path / "runs", "trainer=gpu")
    images = {}
    for device in ("cpu", "cuda"):
        command = [sys.executable, "-m", "genlab", "sample", str(run.path), "--n", "4"]
        settings = ["--steps", "10", "--device", device, "--out", str(tmp_path / device)]
        subprocess.run([*command, *settings], cwd=ROOT, check=True)
        with np.load(tmp_path / device / "samples.npz") as content:
            images[device] = content["images"].astype(int)
    assert images["cpu"].std() > 1
    assert np.abs(images["cpu"] - images["cuda"]).max() <= 2
