"""Small runs that are stopped and go on, for tests and for `make kills`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from genlab.runs.run import Run, find_runs
from genlab.training import resume

ROOT = Path(__file__).parents[1]
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
    "gan": [
        "model=gan",
        "model/optimizer=adam_gan",
        "model.net.generator.channels=[8]",
        "model.net.discriminator.channels=[8]",
        "model/lr_schedule=warmup_cosine",
        "model/augmentation=differentiable",
        "model.penalty.every=3",
        "model.module.discriminator_steps=2",
        "model.module.discriminator_lr_ratio=2",
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


@contextmanager
def within_step(number: int, action: Callable[[], None]) -> Iterator[None]:
    """Do something in the middle of the step of this number, counted from 1 and from here."""
    steps = iter(range(1, 1000))

    def look(optimizer: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        closure = arguments[1] if len(arguments) > 1 else named.get("closure")
        is_of_a_part = closure is None  # one of the two within `MuonWithAdamW`
        is_of_a_copy = getattr(closure, "__module__", "") == resume.__name__  # before training
        if not is_of_a_part and not is_of_a_copy and next(steps) == number:
            action()

    hook = register_optimizer_step_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()


def send(*signals: signal.Signals) -> None:
    for number in signals:
        os.kill(os.getpid(), number)


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


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    """64 bytes in the middle of the weights, which torch loads without a word."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(255 - byte for byte in content[middle : middle + 64])
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)
