"""A command ends as documented, whenever a signal comes and wherever its files have gone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from PIL import Image

from genlab.config.compose import compose
from genlab.errors import TrainingError
from genlab.runs.directory import RunDirectory
from genlab.runs.run import Run, find_runs
from genlab.training import interrupts, run
from genlab.training.faults import explanation
from genlab.training.interrupts import Stopped

ROOT = Path(__file__).parents[2]
QUICK = [
    *("trainer=smoke", "callbacks=none", "logger=none", "forecast=false", "data.batch_size=32"),
    *("model.net.encoder.hidden=[16]", "model.net.decoder.hidden=[16]"),
]

#: Python runs this at its start: the signal comes with the first event of this kind.
AT_EVENT = """
import os, signal, sys
def hook(event, arguments, sent=[]):
    if not sent and event == {event!r} and {what!r} in str(arguments[0]):
        sent.append(1)
        os.kill(os.getpid(), {signum})
sys.addaudithook(hook)
"""
MOMENTS = {
    "first import": ("import", "genlab.config.secrets"),
    "import of Hydra": ("import", "hydra.core"),
    "import of torch": ("import", "torch.nn"),
    "import of Lightning": ("import", "lightning.pytorch.callbacks"),
    "import of the run": ("import", "genlab.modules.base"),
    "the data": ("open", "train-images"),
    "the lock": ("open", "/.lock"),
    "the config": ("open", ".config.yaml."),
    "the status": ("open", ".status.json."),
    "the record": ("open", "metrics.jsonl"),
    "a checkpoint": ("open", ".last.ckpt."),
    "the result": ("open", ".result.json."),
}


def start(
    folder: Path, *arguments: str, program: tuple[str, ...] = ("train.py",), **variables: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_stopped(process: subprocess.Popen[str], folder: Path, code: int) -> None:
    output, errors = process.communicate()
    assert process.returncode == code, output + errors
    assert "Traceback" not in errors
    assert not [there.path for there in find_runs(folder) if there.state == "running"]
    assert not list(folder.rglob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize(("event", "what"), MOMENTS.values(), ids=MOMENTS)
def test_a_signal_at_any_moment_ends_as_documented(tmp_path: Path, event: str, what: str) -> None:
    # each of the two at every other moment
    signum = (signal.SIGTERM, signal.SIGINT)[list(MOMENTS.values()).index((event, what)) % 2]
    hook = AT_EVENT.format(event=event, what=what, signum=int(signum))
    (tmp_path / "sitecustomize.py").write_text(hook)
    process = start(tmp_path, *QUICK, f"runs_dir={tmp_path / 'runs'}")
    assert_stopped(process, tmp_path / "runs", 128 + signum)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("event", "what"),
    [("import", "genlab.cli"), ("import", "torch.nn"), ("open", "grid.png")],
)
def test_a_signal_ends_a_command_without_a_word(
    tmp_path: Path, event: str, what: str, signum: signal.Signals
) -> None:
    trained = run.run(compose([*QUICK, f"runs_dir={tmp_path / 'runs'}"])).path
    assert trained is not None
    hook = AT_EVENT.format(event=event, what=what, signum=int(signum))
    (tmp_path / "sitecustomize.py").write_text(hook)
    arguments = ["sample", str(trained), "--n", "4"]
    process = start(tmp_path, *arguments, program=("-m", "genlab"))
    assert_stopped(process, tmp_path, 128 + signum)


@pytest.mark.slow
def test_a_signal_after_any_delay_ends_as_documented(tmp_path: Path) -> None:
    """One process after the other is stopped later, until one has trained a while."""
    for number, delay in enumerate([0.3, 1.0, 2.0, 4.0, 8.0]):
        folder = tmp_path / str(number)
        process = start(tmp_path, *QUICK, "trainer.max_epochs=10000", f"runs_dir={folder}")
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        assert_stopped(process, folder, 143)


@pytest.mark.slow
def test_a_partial_cache_does_not_outlive_a_signal(tmp_path: Path) -> None:
    for name in "ab":
        for i in range(60):
            path = tmp_path / "tree" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), i).save(path)
    hook = AT_EVENT.format(event="open", what="a/30.png", signum=int(signal.SIGTERM))
    (tmp_path / "sitecustomize.py").write_text(hook)
    data = ["data=folder", f"data.source.root={tmp_path / 'tree'}", "data.source.image_size=8"]
    data += [f"data.source.cache_dir={tmp_path / 'cache'}", "data.source.channels=1"]
    process = start(tmp_path, *QUICK, *data, f"runs_dir={tmp_path / 'runs'}")
    assert_stopped(process, tmp_path / "runs", 143)
    assert list((tmp_path / "cache" / "folder").iterdir()) == []


def test_a_signal_that_a_library_swallows_still_stops_the_training(tmp_path: Path) -> None:
    with interrupts.raised():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            while True:
                time.sleep(0.01)
        except BaseException:  # as a bare except of a library does
            pass
        assert interrupts.received() == signal.SIGTERM
        with pytest.raises(Stopped):
            run.run(compose([*QUICK, f"runs_dir={tmp_path}"]))
    (there,) = find_runs(tmp_path)
    assert there.state == "preempted"
    assert interrupts.received() == 0


def test_handlers_of_others_stay_and_other_threads_install_none(
    request: pytest.FixtureRequest,
) -> None:
    def mine(signum: int, frame: Any) -> None: ...

    # a shell starts what it puts in the background with SIGINT ignored
    before = {
        signum: signal.signal(signum, handler)
        for signum, handler in (
            (signal.SIGTERM, mine),
            (signal.SIGINT, signal.default_int_handler),
        )
    }
    request.addfinalizer(lambda: [signal.signal(*pair) for pair in before.items()])
    with interrupts.raised():
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    seen: list[Any] = []

    def elsewhere() -> None:
        with interrupts.raised():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def move(path: Path) -> None:
    path.rename(path.with_name("moved"))


def replace(path: Path) -> None:
    move(path)
    shutil.copytree(path.with_name("moved"), path)


AWAY: list[Callable[[Path], object]] = [move, shutil.rmtree, replace]


@pytest.mark.parametrize("away", AWAY, ids=["moved", "removed", "replaced"])
@pytest.mark.parametrize("when", ["on_train_batch_end", "on_validation_start", "on_test_end"])
def test_a_directory_that_goes_away_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: Callable[[Path], object], when: str
) -> None:
    def go(self: pl.Callback, *_: Any, **__: Any) -> None:
        if not gone:
            (there,) = find_runs(tmp_path)
            gone.append(there.path)
            away(there.path)

    gone: list[Path] = []
    monkeypatch.setattr("genlab.training.throughput.Throughput." + when, go, raising=False)
    with pytest.raises(TrainingError, match="was moved or removed during the run") as told:
        run.run(compose([*QUICK, f"runs_dir={tmp_path}"]))
    assert told.value.exit_code == 1
    assert not (gone[0] / "result.json").exists()
    if away is not replace:
        assert not gone[0].exists()  # no second half
    if away is not shutil.rmtree:
        assert Run(gone[0].with_name("moved")).is_interrupted
        assert not Run(gone[0].with_name("moved")).is_completed


@pytest.mark.parametrize("name", [".result.json.", ".last.ckpt."])
def test_a_directory_that_goes_away_within_a_write_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def replaced(self: Path, target: Path) -> Path:
        if name in self.name and not gone:
            (there,) = find_runs(tmp_path)
            gone.append(there.path)
            move(there.path)
        return rename(self, target)

    gone: list[Path] = []
    rename = Path.replace
    monkeypatch.setattr(Path, "replace", replaced)
    with pytest.raises(TrainingError, match="was moved or removed during the run"):
        run.run(compose([*QUICK, f"runs_dir={tmp_path}"]))
    assert gone


def test_every_write_asks_whether_the_directory_is_in_its_place(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as directory:
        directory.write_status("running")
        directory.append_metrics(1, 0, {"a": 1.0})
        (tmp_path / "run").rename(tmp_path / "moved")
        for write in (
            lambda: directory.write_status("completed"),
            lambda: directory.write_result({}),
            lambda: directory.append_metrics(2, 0, {"a": 1.0}),
            lambda: directory.heartbeat(2),
        ):
            with pytest.raises(TrainingError, match="move it back"):
                write()
        (tmp_path / "moved").rename(tmp_path / "run")
        directory.write_status("completed")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(24, "Too many open files", "x"), "no more files can be opened"),
        (ImportError("libtorch.so: cannot open shared object file: Too many open files"), "ulimit"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "processes or threads"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
    ],
)
def test_a_limit_of_the_system_is_named(error: Exception, told: str) -> None:
    assert told in (explanation(error) or "")


@pytest.mark.slow
@pytest.mark.parametrize("files", [6, 9, 12, 20])
def test_few_open_files_are_told_in_a_sentence(tmp_path: Path, files: int) -> None:
    command = f"ulimit -n {files}; exec '{sys.executable}' train.py {' '.join(QUICK)}"
    done = subprocess.run(
        ["bash", "-c", f"{command} runs_dir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
