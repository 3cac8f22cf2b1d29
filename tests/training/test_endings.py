"""A command ends as documented, whenever a signal comes and wherever its files have gone."""

from __future__ import annotations

import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from interruption import send
from PIL import Image

from genlab.config import hydra_job
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
@pytest.mark.slow
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


@pytest.fixture(params=[False, True], ids=["run", "multirun"])
def is_multirun(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(hydra_job, "is_multirun", lambda: request.param)
    monkeypatch.setattr(hydra_job, "must_raise_refusals", lambda: False)
    return bool(request.param)


@dataclass(frozen=True)
class End:
    """The end of a job: its exit code, whether that ends the process, and what it left."""

    code: Any
    is_of_process: bool
    there: list[Run]


def ended_by(
    monkeypatch: pytest.MonkeyPatch, folder: Path, method: str, act: Callable[[], object]
) -> End:
    """Train, and act once at the first call of a method."""

    def acting(*arguments: Any, **named: Any) -> Any:
        if not acted:
            acted.append(True)
            act()
        return original(*arguments, **named)

    acted: list[bool] = []
    original = pkgutil.resolve_name(f"genlab.{method}")
    monkeypatch.setattr(f"genlab.{method}", acting)
    try:
        code, is_of_process = run.train(compose([*QUICK, f"runs_dir={folder}"])).exit_code, False
    except SystemExit as end:
        code, is_of_process = end.code, True  # type: ignore[assignment]
    assert acted
    return End(code, is_of_process, list(find_runs(folder)))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "method",
    ["data.datamodule.ImageData.train_dataloader", "training.throughput.Throughput.on_train_start"],
    ids=["with our handler", "with that of Lightning"],
)
def test_a_signal_between_the_start_of_lightning_and_the_first_step_stops_all_jobs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_multirun: bool,
    method: str,
    signum: signal.Signals,
) -> None:
    """Lightning would end the process with exit code 0 instead."""
    end = ended_by(monkeypatch, tmp_path, method, lambda: send(signum))
    assert (end.code, end.is_of_process) == (128 + signum, True)
    (there,) = end.there
    assert (there.state, there.status["message"]) == ("preempted", signum.name)
    assert not list(there.metrics())


def interrupt() -> None:
    raise KeyboardInterrupt


INTERRUPTIONS = {"Ctrl-C twice": lambda: send(signal.SIGINT, signal.SIGINT), "raised": interrupt}


@pytest.mark.parametrize("act", INTERRUPTIONS.values(), ids=INTERRUPTIONS)
def test_an_interruption_within_a_step_stops_all_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_multirun: bool, act: Callable[[], object]
) -> None:
    method = "training.throughput.Throughput.on_train_batch_end"
    end = ended_by(monkeypatch, tmp_path, method, act)
    assert (end.code, end.is_of_process) == (130, True)
    assert [there.state for there in end.there] == ["preempted"]


@pytest.mark.parametrize("code", [0, None, 3])
@pytest.mark.parametrize(
    "method",
    ["data.datamodule.ImageData.setup", "training.throughput.Throughput.on_train_batch_end"],
    ids=["before training", "in training"],
)
def test_a_part_of_a_run_that_exits_has_failed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_multirun: bool,
    method: str,
    code: int | None,
) -> None:
    """In a multirun the other jobs go on."""
    end = ended_by(monkeypatch, tmp_path, method, lambda: sys.exit(code))
    assert (end.code, end.is_of_process) == (1, not is_multirun)
    assert {there.state for there in end.there} <= {"failed"}
    assert f"called sys.exit({code})" in capsys.readouterr().err


def test_the_exit_of_another_program_on_a_signal_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """End the process, as the handler of submitit does when it has queued the job again."""
    before = signal.signal(signal.SIGUSR2, lambda *_: sys.exit(-1))
    request.addfinalizer(lambda: signal.signal(signal.SIGUSR2, before))
    monkeypatch.setattr(hydra_job, "is_multirun", lambda: True)
    method = "data.datamodule.ImageData.setup"
    end = ended_by(monkeypatch, tmp_path, method, lambda: send(signal.SIGUSR2))
    assert (end.code, end.is_of_process) == (-1, True)


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
