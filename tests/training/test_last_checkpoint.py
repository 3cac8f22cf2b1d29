"""The last checkpoint: the moments when it is written, and its state after a kill."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from interruption import send, within_step

import genlab
from genlab.config.compose import compose
from genlab.runs.run import Run, find_runs
from genlab.training import run
from genlab.training.checkpoints import AtomicCheckpointIO

STEPS_PER_EPOCH = 3
SMALL = [
    *("data.batch_size=32", f"data.train_images={32 * STEPS_PER_EPOCH}", "trainer.max_epochs=3"),
    *("trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
    *("trainer.log_every_n_steps=1", "callbacks=none", "logger=none", "forecast=false"),
    *("model.net.encoder.hidden=[8]", "model.net.decoder.hidden=[8]"),
]


def train(runs_dir: Path, *overrides: str) -> int:
    """Start a run or go on with it; its exit code."""
    try:
        outcome = run.train(compose([*SMALL, f"runs_dir={runs_dir}", *overrides]))
    except SystemExit as end:
        return int(str(end.code))
    return outcome.exit_code


def only(runs_dir: Path) -> Run:
    (found,) = find_runs(runs_dir)
    return found


def last_step(runs_dir: Path) -> int:
    path = only(runs_dir).checkpoints / "last.ckpt"
    return int(torch.load(path, weights_only=True)["global_step"]) if path.exists() else 0


@pytest.mark.parametrize(
    "often", ["checkpoint_every_n_steps=1", "checkpoint_every_n_minutes=1e-9", "a signal"]
)
def test_on_the_last_step_of_an_epoch_nothing_is_saved_before_its_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, often: str
) -> None:
    """A run that goes on from there would never do that validation."""
    saved: list[tuple[int, int]] = []
    original = torch.save

    def save(checkpoint: Any, *args: Any, **kwargs: Any) -> None:
        if "optimizer_states" in checkpoint:
            validations = sum("val/loss" in row for row in only(tmp_path).metrics())
            saved.append((checkpoint["global_step"], validations))
        original(checkpoint, *args, **kwargs)

    monkeypatch.setattr(torch, "save", save)
    if often == "a signal":
        with within_step(STEPS_PER_EPOCH, lambda: send(signal.SIGTERM)):
            assert train(tmp_path) == 143
        assert last_step(tmp_path) == STEPS_PER_EPOCH
        assert train(tmp_path) == 0
    else:
        assert train(tmp_path, often) == 0
        assert {step for step, _ in saved} == set(range(1, 3 * STEPS_PER_EPOCH + 1))
    assert saved and all(step // STEPS_PER_EPOCH == count for step, count in saved)
    validated = [row["step"] for row in only(tmp_path).metrics() if "val/loss" in row]
    assert validated == [STEPS_PER_EPOCH * epoch for epoch in (1, 2, 3)]


KILLED = 99


def write(path: Path, number: int) -> None:
    weights = {"w": torch.full((10_000,), float(number))}
    AtomicCheckpointIO().save_checkpoint({"global_step": number, "state_dict": weights}, path)


def content(path: Path) -> int | None:
    """The number of a checkpoint that is whole, None where there is none."""
    return int(torch.load(path, weights_only=True)["global_step"]) if path.exists() else None


def is_killed_at(moment: int, path: Path, number: int) -> bool:
    """Write a checkpoint in a process that dies at this line of genlab's; False if none is left."""
    if (child := os.fork()) == 0:
        package, lines = str(Path(genlab.__file__).parent), 0

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal lines
            if not frame.f_code.co_filename.startswith(package):
                return None
            lines += event == "line"
            if lines == moment:
                os._exit(KILLED)
            return trace

        try:
            sys.settrace(trace)
            write(path, number)
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


@pytest.mark.parametrize("written", [0, 1, 2])
@pytest.mark.slow
def test_killed_at_any_line_of_its_writing_the_old_checkpoint_or_the_new_one_is_whole(
    tmp_path: Path, written: int
) -> None:
    """The one before it is another one, for the day on which that cannot be read."""
    states = {(old or None, old - 1 if old > 1 else None) for old in (written, written + 1)}
    renamed = (written + 1, written - 1 if written > 1 else None)
    moment, is_killed = 0, True
    while is_killed:
        moment += 1
        path = tmp_path / str(moment) / "last.ckpt"
        for number in range(1, written + 1):
            write(path, number)
        is_killed = is_killed_at(moment, path, written + 1)
        found = (content(path), content(path.with_name("last.before.ckpt")))
        assert found in {*states, renamed}
    assert moment > 10  # else the lines were not seen
    assert found == (written + 1, written or None)


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ((signal.SIGTERM, signal.SIGTERM), 143),
        ((signal.SIGINT, signal.SIGTERM), 143),
        ((signal.SIGTERM, signal.SIGINT), 130),
        ((signal.SIGUSR1, signal.SIGUSR1), 143),
    ],
    ids=lambda value: " ".join(s.name for s in value) if isinstance(value, tuple) else "",
)
def test_a_second_signal_waits_for_the_step_as_the_first_one_does(
    tmp_path: Path, signals: tuple[signal.Signals, ...], code: int
) -> None:
    with within_step(2, lambda: send(*signals)):
        assert train(tmp_path) == code
    assert last_step(tmp_path) == 2
    assert only(tmp_path).state == "preempted"
    assert only(tmp_path).status["message"] == signals[-1].name


def test_only_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    with within_step(2, lambda: send(signal.SIGINT, signal.SIGINT)):
        assert train(tmp_path) != 0
    assert last_step(tmp_path) == 0
    assert only(tmp_path).state == "preempted"


def test_the_seconds_of_a_run_are_those_of_all_its_parts(tmp_path: Path) -> None:
    pause = 0.7

    def stop_later() -> None:
        time.sleep(pause)
        send(signal.SIGTERM)

    began = time.monotonic()
    for _ in range(2):
        with within_step(2, stop_later):
            assert train(tmp_path) == 143
    assert train(tmp_path) == 0
    result = only(tmp_path).result
    assert result is not None
    assert 2 * pause < result["wall_seconds"] < time.monotonic() - began
    rate = result["steps"] * 32 / result["wall_seconds"]
    assert result["images_per_second"] == pytest.approx(rate)
