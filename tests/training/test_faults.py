"""A training that the machine stops ends in one sentence, keeps its files, and can resume."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from disks import mounted
from interruption import assert_same, finish, start, stop_after

from genlab.config.compose import compose
from genlab.errors import RunDirectoryError, TrainingError
from genlab.runs.directory import RunDirectory
from genlab.runs.run import Run, find_runs
from genlab.training import planning, run
from genlab.training.faults import explanation
from genlab.training.weights import read

ROOT = Path(__file__).parents[2]
QUICK = ["trainer=smoke", "callbacks=none", "logger=none", "forecast=false", "data.batch_size=32"]
NO_ROOM = "error: nothing more can be written"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The undisturbed run."""
    return finish("vae", tmp_path_factory.mktemp("reference"))


class Disk:
    """Room for what a process writes, until there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, process: subprocess.Popen[str], leave: int) -> None:
        """Whatever the process writes, from here on no file grows beyond `leave` bytes."""
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (leave, leave))

    def free(self) -> None:
        """For the next process nothing is left of it."""


class SmallDisk(Disk):
    """A real one, which only root can mount."""

    def fill(self, process: subprocess.Popen[str], leave: int) -> None:
        with (self.path / "filling").open("wb") as file, suppress(OSError):
            while True:
                os.write(file.fileno(), bytes(1 << 16))
        with (self.path / "filling").open("r+b") as file:
            file.truncate(max(0, file.seek(0, os.SEEK_END) - leave))

    def free(self) -> None:
        (self.path / "filling").unlink()


@pytest.fixture(params=["limit", "disk"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A limit on the size of files, which everybody can set; and a small disk, where root can
    mount one.
    """
    if request.param == "limit":
        yield Disk(tmp_path)
        return
    with mounted(tmp_path / "disk", "size=16m") as done:
        yield (SmallDisk if done else Disk)(tmp_path / "disk")


def fill_after(rows: int, leave: int, disk: Disk, *overrides: str) -> tuple[int, str]:
    """Let a run have so many rows before its disk is full; its exit code and what it printed."""
    process = start("vae", disk.path / "runs", *overrides)
    while process.poll() is None:
        written = sum(p.read_bytes().count(b"\n") for p in disk.path.glob("runs/*/*/metrics.jsonl"))
        if written >= rows:
            disk.fill(process, leave)
            break
        time.sleep(0.002)
    output, _ = process.communicate()
    return process.returncode, output


@pytest.mark.slow
@pytest.mark.parametrize("what", ["checkpoint", "metrics"])
def test_a_full_disk_ends_a_run_in_one_sentence_and_loses_nothing(
    disk: Disk, reference: Run, what: str
) -> None:
    if what == "checkpoint":
        code, output = fill_after(14, 200_000, disk, "checkpoint_every_n_steps=1")
    else:
        code, output = fill_after(14, 0, disk, "checkpoint_every_n_steps=100")
    assert code == 1, output
    (said,) = [line for line in output.splitlines() if "error" in line.lower()]
    assert said.startswith(NO_ROOM) and "goes on from the last checkpoint" in said
    assert "Traceback" not in output
    (stopped,) = find_runs(disk.path / "runs")
    assert stopped.state in ("failed", "running") and not stopped.is_completed
    steps = read(stopped.checkpoints / "last.ckpt")["global_step"]
    assert steps >= 10
    assert max(row["step"] for row in stopped.metrics()) >= steps - 1
    disk.free()
    assert_same(finish("vae", disk.path / "runs"), reference)
    assert not list(stopped.path.rglob(".*.tmp"))


@contextmanager
def limited(what: int, soft: int) -> Iterator[None]:
    before = resource.getrlimit(what)
    resource.setrlimit(what, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def train(runs_dir: Path, *overrides: str) -> run.Outcome:
    return run.run(compose([*QUICK, *overrides, f"runs_dir={runs_dir}"]))


def test_pictures_and_videos_that_find_no_room_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = ["callbacks=default", "model/net=linear", "model.latent_dim=2"]
    chosen += ["callbacks.samples.images=2000", "callbacks.video_prior_walk.images=100"]
    with limited(resource.RLIMIT_FSIZE, 200_000), caplog.at_level(logging.WARNING):
        outcome = train(tmp_path, *chosen)
    assert outcome.exit_code == 0 and outcome.path is not None
    completed = Run(outcome.path)
    assert completed.is_completed
    assert (completed.pictures / "reconstructions-final.png").exists()
    assert (completed.videos / "interpolation-final.webp").exists()
    assert not (completed.pictures / "samples-final.png").exists()
    assert not list(completed.path.rglob("*prior_walk*"))
    said = [record.getMessage() for record in caplog.records]
    assert "no samples at step 4: [Errno 27] File too large" in said
    assert any(message.startswith("no video_prior_walk at step 4:") for message in said)


def memory_in_use() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


@pytest.mark.parametrize(
    ("room", "overrides"),
    [
        (1 << 30, ["model.net.encoder.hidden=[1000000]"]),
        (400 << 20, ["model.net.encoder.hidden=[20000]", "data.batch_size=5000"]),
    ],
    ids=["network", "batch"],
)
def test_too_little_memory_names_what_to_lower(
    tmp_path: Path, room: int, overrides: list[str]
) -> None:
    with (
        limited(resource.RLIMIT_AS, memory_in_use() + room),
        pytest.raises(TrainingError, match=r"^out of memory on this machine when .* GiB") as caught,
    ):
        train(tmp_path, *overrides)
    for remedy in ("data.batch_size", "data.eval_batch_size", "model.net"):
        assert remedy in str(caught.value)
    for found in find_runs(tmp_path):
        assert (found.state, found.status["message"]) == ("failed", str(caught.value))


@pytest.mark.parametrize(
    ("error", "begins"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
            "out of memory on the GPU when 2.00 GiB were asked for: lower data.batch_size",
        ),
        (RuntimeError("CUDA error: out of memory"), "out of memory on the GPU: lower"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "out of memory on the GPU: lower"),
        (MemoryError(), "out of memory on this machine: lower"),
        (OSError(12, "Cannot allocate memory"), "out of memory on this machine: lower"),
        (OSError(28, "No space left on device", "/runs/a"), "nothing more can be written at /runs"),
        (OSError(30, "Read-only file system"), "nothing more can be written (Read-only"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_lack_has_its_sentence(error: Exception, begins: str) -> None:
    assert (explanation(error) or "").startswith(begins)
    with pytest.raises(RuntimeError) as later:
        try:
            raise error
        finally:
            raise RuntimeError("what came of it")
    assert (explanation(later.value) or "").startswith(begins)


def test_a_path_that_is_too_long_is_told_by_its_beginning() -> None:
    with pytest.raises(OSError) as caught:
        Path("runs/" + "a" * 5000).is_dir()
    told = explanation(caught.value)
    assert told is not None and told.startswith("a path begins with 'runs/aaa") and len(told) < 140


def test_other_errors_stay_what_they_are() -> None:
    for error in (RuntimeError("shape mismatch"), FileNotFoundError(2, "No such file"), KeyError()):
        assert explanation(error) is None


def test_a_read_only_place_is_refused(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "ro") as done:
        place = tmp_path / "disk"
        if not done:
            # modes hold for everybody but root, who cannot write into /proc either
            place.chmod(0o500)
            place = Path("/proc") if os.access(place, os.W_OK) else place
        with pytest.raises(RunDirectoryError, match=r"cannot be written \(.*set runs_dir"):
            train(place / "runs")


def test_two_trainings_in_one_directory_are_refused(tmp_path: Path) -> None:
    path = planning.plan(compose([*QUICK, f"runs_dir={tmp_path}"]), []).path
    with RunDirectory(path) as first:
        first.write_status("running")
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        with pytest.raises(RunDirectoryError, match=f"in use by pid {os.getpid()} on host"):
            train(tmp_path)
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


BACKWARDS = """
import time
started, real = time.monotonic(), time.time
time.time = lambda: real() - 3600 * (time.monotonic() - started)
time.time_ns = lambda: int(1e9 * time.time())
"""


@pytest.mark.slow
def test_a_clock_that_is_set_back_changes_nothing(
    tmp_path: Path, reference: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour in every second, while it runs; and it is resumed before it was stopped."""
    (tmp_path / "sitecustomize.py").write_text(BACKWARDS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    runs_dir, often = tmp_path / "runs", "checkpoint_every_n_minutes=0.001"
    assert stop_after(14, signal.SIGTERM, "vae", runs_dir, often) == 143
    resumed = finish("vae", runs_dir, often)
    assert_same(resumed, reference)
    assert resumed.result is not None and 0 < resumed.result["wall_seconds"] < 600


def command(arguments: list[str], **variables: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


@pytest.mark.slow
def test_without_a_terminal_and_in_the_locale_c_all_is_said(tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    runs_dir = tmp_path / "L\u00e4ufe \u03b2"
    chosen = [*QUICK, "callbacks=default", f"runs_dir='{runs_dir}'"]
    done = command(["train.py", "-m", *chosen, "group=s", "model.kl_weight=0,1"], **plain)
    said = done.stdout.decode("ascii")
    assert done.returncode == 0, done.stderr.decode()
    assert "Traceback" not in said and done.stderr == b""
    assert "\x1b" not in said and "\r" not in said
    again = command(["-m", "genlab", "report", str(runs_dir / "s")], **plain)
    assert again.returncode == 0 and again.stdout.isascii(), again.stderr.decode()
    assert [completed.state for completed in find_runs(runs_dir)] == ["completed"] * 2
    assert (runs_dir / "s" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("output", ["a pipe that nobody reads", "closed", "a full disk"])
def test_a_training_ends_well_although_nobody_can_hear_it(tmp_path: Path, output: str) -> None:
    chosen = [*QUICK, f"runs_dir={tmp_path / 'runs'}"]
    with (tmp_path / "errors").open("w+") as errors, Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            [sys.executable, "train.py", *chosen],
            cwd=ROOT,
            stdout=full if output == "a full disk" else subprocess.PIPE,
            stderr=errors,
            preexec_fn=(lambda: os.close(1)) if output == "closed" else None,
        )
        if process.stdout is not None:
            process.stdout.close()
        assert process.wait() == 0
        errors.seek(0)
        assert errors.read() == ""
    (completed,) = find_runs(tmp_path / "runs")
    assert completed.is_completed
    assert len(completed.metrics()) > 2  # and nothing was printed into them
