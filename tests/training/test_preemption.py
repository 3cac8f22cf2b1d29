"""A preempted job is queued again exactly once, by SLURM or by itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from genlab.training.checkpoints import LastCheckpoint
from genlab.training.signals import StopOnSignal, Stopped

#: What `scontrol show job` says of a job, and whether it must queue itself.
JOBS = {
    "taken, with time to leave": ("JobState=RUNNING PreemptTime=2026-01-01T00:00:00", True),
    "taken, and queued by SLURM": ("JobState=COMPLETING PreemptTime=None Restarts=1", False),
    "cancelled": ("JobState=CANCELLED PreemptTime=None", False),
    "told to stop by somebody": ("JobState=RUNNING PreemptTime=None", False),
    "without an answer": ("", False),
}


@pytest.fixture
def trainer() -> Any:
    saved: list[Path] = []
    return SimpleNamespace(
        world_size=1,
        is_global_zero=True,
        accumulate_grad_batches=1,
        saved=saved,
        save_checkpoint=saved.append,
    )


@pytest.fixture
def stop(tmp_path: Path) -> StopOnSignal:
    return StopOnSignal(LastCheckpoint(tmp_path))


@pytest.fixture
def queued() -> Iterator[list[int]]:
    """The signals on which the job was queued again, by a handler as submitit's."""
    signals: list[int] = []

    def queue_again(signum: int, frame: object) -> None:
        signals.append(signum)
        raise SystemExit(-1)

    before = signal.signal(signal.SIGUSR2, queue_again)
    yield signals
    assert signal.getsignal(signal.SIGUSR2) is queue_again
    signal.signal(signal.SIGUSR2, before)


def in_a_job(monkeypatch: pytest.MonkeyPatch, folder: Path, answer: str) -> None:
    scontrol = folder / "scontrol"
    scontrol.write_text(
        f'#!/bin/sh\ntest "$*" = "--oneliner show job 7" && echo "JobId=7 {answer}"\n'
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")


@pytest.mark.parametrize(("answer", "must"), JOBS.values(), ids=JOBS)
def test_a_job_whose_node_is_taken_is_queued_again_by_one(
    stop: StopOnSignal,
    trainer: Any,
    queued: list[int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    answer: str,
    must: bool,
) -> None:
    in_a_job(monkeypatch, tmp_path, answer)
    with pytest.raises(SystemExit if must else Stopped), stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        stop.on_train_batch_start(trainer, None, None, 1)
    assert len(trainer.saved) == 1
    assert queued == ([signal.SIGTERM] if must else [])


def test_outside_of_slurm_nobody_is_asked(
    stop: StopOnSignal, trainer: Any, queued: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(Stopped), stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        stop.on_train_batch_start(trainer, None, None, 1)
    assert queued == []


@pytest.mark.parametrize("when", ["before the test", "in the test"])
def test_a_job_is_queued_again_from_its_test_too(
    stop: StopOnSignal, trainer: Any, queued: list[int], when: str
) -> None:
    with pytest.raises(SystemExit) as end, stop.listening():
        if when == "before the test":
            os.kill(os.getpid(), signal.SIGUSR2)
        stop.on_test_start(trainer, None)
        if when == "in the test":
            os.kill(os.getpid(), signal.SIGUSR2)
        stop.on_test_batch_end(trainer)
    assert queued == [signal.SIGUSR2]
    assert isinstance(end.value.__cause__, Stopped)
    assert end.value.__cause__.exit_code == 143


def test_a_run_stops_where_it_is_once_the_batches_of_its_test_are_done(
    stop: StopOnSignal, trainer: Any
) -> None:
    with pytest.raises(Stopped), stop.listening():
        stop.on_test_start(trainer, None)
        stop.on_test_batch_start(trainer, None, None, 0)
        os.kill(os.getpid(), signal.SIGTERM)  # within a batch it waits
        assert stop.received == signal.SIGTERM
        stop.received = 0
        stop.on_test_batch_end(trainer)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("a callback at the end of the test would hold the signal up")


def test_processes_that_wait_for_one_another_are_not_left_alone(
    stop: StopOnSignal, trainer: Any
) -> None:
    trainer.world_size = 2
    with stop.listening():
        stop.on_test_batch_end(trainer)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.received == signal.SIGTERM
