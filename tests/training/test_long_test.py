"""A long test shows its remaining time, keeps the heartbeat going, and obeys signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from trained_runs import train_in

from genlab.diffusion.model import DDPM
from genlab.runs.directory import RunDirectory
from genlab.runs.run import Run, find_runs
from genlab.runs.text import in_words
from genlab.training import countdown
from genlab.training.interrupts import Stopped
from genlab.training.kept_terms import read_terms

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


def outcome(run: Run) -> tuple[Any, Any]:
    assert run.result is not None
    return run.result["metrics"], run.bound


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run whose test is not stopped."""
    return train_in(tmp_path_factory.mktemp("whole"), *DDPM_20)


def terms_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("test.*.safetensors"))


def stopped_at(folder: Path, monkeypatch: pytest.MonkeyPatch, term: int) -> Predictions:
    """Stop a run at a term of its test; what is predicted afterwards is counted anew."""
    found = Predictions(monkeypatch, term, lambda: os.kill(os.getpid(), signal.SIGTERM))
    found.folder = folder
    with pytest.raises(Stopped):
        train_in(folder, *DDPM_20)
    found.count = 100
    return found


@pytest.mark.parametrize("term", [STEPS, STEPS + 7])
def test_the_exact_test_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Run, term: int
) -> None:
    found = stopped_at(tmp_path, monkeypatch, term)
    assert terms_in(tmp_path)
    assert outcome(train_in(tmp_path, *DDPM_20)) == outcome(whole)
    assert found.count == 100 + BATCHES * STEPS - term
    assert terms_in(tmp_path) == []


@pytest.mark.slow
def test_a_killed_test_goes_on_from_what_was_written_last(tmp_path: Path, whole: Run) -> None:
    killed = (
        "import os, signal, sys\n"
        "from genlab.training import kept_terms\n"
        "from genlab.__main__ import main\n"
        "write, count = kept_terms.write_atomically, [0]\n"
        "def dying(path, content):\n"
        "    count[0] += 1\n"
        f"    if count[0] == {STEPS + 7}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    write(path, content)\n"
        "kept_terms.write_atomically = dying\n"
        "kept_terms.KeptTerms.__init__.__defaults__ = (0.0,)\n"
        "sys.exit(main(['train', *sys.argv[1:]]))\n"
    )
    command = [sys.executable, "-c", killed, *DDPM_20, f"runs_dir={tmp_path}"]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    # each write holds one term more, and the first batch of them is complete
    assert [len(load_file(path)["terms"]) for path in terms_in(tmp_path)] == [STEPS, 6]
    assert outcome(train_in(tmp_path, *DDPM_20)) == outcome(whole)


def test_terms_of_other_weights_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Run
) -> None:
    found = stopped_at(tmp_path, monkeypatch, 9)
    (last,) = tmp_path.rglob("last.ckpt")
    content = torch.load(last, weights_only=True)
    content["state_dict"]["model.net.last.bias"] += 1
    for checkpoint in (last, last.with_name("best.ckpt")):
        torch.save(content, checkpoint)
    assert outcome(train_in(tmp_path, *DDPM_20)) != outcome(whole)
    assert found.count == 100 + BATCHES * STEPS


def test_a_file_of_terms_is_used_if_it_fits_and_ignored_otherwise(tmp_path: Path) -> None:
    path, shape = tmp_path / "test.0.0.safetensors", (5, 3, 4)
    identity = torch.arange(32, dtype=torch.uint8)
    terms = torch.randn(2, 3, 4, dtype=torch.float64)
    digest = bytes(range(32))
    save_file({"identity": identity, "terms": terms}, path)
    assert torch.equal(torch.stack(read_terms(path, digest, shape)), terms)
    assert read_terms(path, bytes(32), shape) == []
    for others in (terms.float(), terms[0], terms[:, :2].clone(), terms.repeat(3, 1, 1)):
        save_file({"identity": identity, "terms": others}, path)
        assert read_terms(path, digest, shape) == []
    for wrong in (identity.float(), identity[:-1], -identity.double(), torch.tensor([torch.nan])):
        save_file({"identity": wrong, "terms": terms}, path)
        assert read_terms(path, digest, shape) == []
    save_file({"terms": terms}, path)
    assert read_terms(path, digest, shape) == []
    path.write_bytes(path.read_bytes()[:-1])
    assert read_terms(path, digest, shape) == []
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    assert read_terms(path, digest, shape) == []
    path.unlink()
    assert read_terms(path, digest, shape) == []
    os.mkfifo(path)
    assert read_terms(path, digest, shape) == []
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert read_terms(path, digest, shape) == []


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
