"""A long test shows its remaining time, keeps the heartbeat going, and obeys signals."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from trained_runs import train_in

from genlab.diffusion.model import DDPM
from genlab.runs.directory import RunDirectory
from genlab.runs.run import Run, find_runs
from genlab.training import countdown
from genlab.training.countdown import in_words
from genlab.training.interrupts import Stopped

STEPS, BATCHES = 20, 2
DDPM_20 = [
    *("model=ddpm", f"model.steps={STEPS}", "model.sampler.steps=5", "model.net.channels=8"),
    *("model.net.multipliers=[1,1]", "model.net.attention=[]", "trainer=smoke"),
    *("data.batch_size=8", "data.eval_batch_size=4", f"trainer.limit_test_batches={BATCHES}"),
    *("logger=none", "callbacks=none"),
]


class Predictions:
    """Counts the predictions in the exact test, and does something at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, action: Any) -> None:
        self.count = 0
        real = DDPM.predict

        def predict(model: DDPM, x_t: Tensor, t: Tensor, labels: Any = None) -> Any:
            if not torch.is_grad_enabled() and len(set(t.tolist())) == 1 and self.is_testing():
                self.count += 1
                if self.count == at:
                    action()
            return real(model, x_t, t, labels)

        self.folder = Path()
        monkeypatch.setattr(DDPM, "predict", predict)

    def is_testing(self) -> bool:
        # the last checkpoint of the training is written, and its validation is over
        return any(self.folder.rglob("last.ckpt"))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heard_between_the_terms_of_the_exact_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    found = Predictions(monkeypatch, 3, lambda: os.kill(os.getpid(), how))
    found.folder = tmp_path
    with pytest.raises(Stopped):
        train_in(tmp_path, *DDPM_20)
    assert found.count == 3
    (run,) = find_runs(tmp_path)
    assert run.state == "preempted" and run.result is None
    # and the same command ends what was begun
    found.count = 100
    assert train_in(tmp_path, *DDPM_20).is_completed


def test_the_exact_test_tells_what_is_done_and_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(countdown.Countdown.__init__, "__defaults__", (0.0,))
    train_in(tmp_path, *DDPM_20)
    lines = re.findall(r"test +(\d+)% done, (.+) to go", capsys.readouterr().out)
    total = STEPS * BATCHES
    assert [f"{share}%" for share, _ in lines] == [f"{i / total:.0%}" for i in range(1, total)]


def test_a_short_test_has_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_in(tmp_path, *DDPM_20)
    assert "to go" not in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (89, "89 s"), (840, "14 min")])
def test_a_duration_is_rounded(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_a_run_is_alive_by_the_clock_whatever_it_does(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, heartbeat_seconds=0.01) as directory:
        directory.write_status("running")
        with directory.beating():
            directory.heartbeat(7)
            written = directory.status_path.stat().st_mtime_ns
            while directory.status_path.stat().st_mtime_ns == written:
                time.sleep(0.01)
            assert Run(tmp_path).status["step"] == 7
        directory.write_status("completed")
    assert Run(tmp_path).state == "completed"


def test_a_heartbeat_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run", heartbeat_seconds=0.01) as directory:
        directory.write_status("running")
        with directory.beating():
            (tmp_path / "run").rename(tmp_path / "moved")
            time.sleep(0.1)
            (tmp_path / "moved").rename(tmp_path / "run")
            written = directory.status_path.stat().st_mtime_ns
            while directory.status_path.stat().st_mtime_ns == written:
                time.sleep(0.01)
