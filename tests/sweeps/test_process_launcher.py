"""`launcher=process` with real processes and signals: whatever ends a job, or the launcher itself,
loses nothing, and the same command again does only what is missing."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from genlab.runs.directory import RunDirectory
from genlab.runs.manifest import Job, Manifest
from genlab.runs.run import Run, find_runs
from genlab.sweeps.display import display
from genlab.sweeps.resources import Settings
from genlab.sweeps.run_progress import RunProgress
from genlab.sweeps.supervisor import Task, _resident_bytes

ROOT = Path(__file__).parents[2]
STEPS_PER_EPOCH, EPOCHS = 10, 3
STEPS = STEPS_PER_EPOCH * EPOCHS
SMALL = [
    "launcher=process",
    "data.batch_size=32",
    "data.eval_batch_size=100",
    f"data.train_images={32 * STEPS_PER_EPOCH}",
    "model.net.encoder.hidden=[32]",
    "model.net.decoder.hidden=[32]",
    f"trainer.max_epochs={EPOCHS}",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=2",
    "trainer.log_every_n_steps=1",
    "checkpoint_every_n_steps=3",
    "callbacks=none",
    "logger=none",
    "forecast=false",
    "runs_dir=runs",
    "+callbacks.fault={_target_: faults.Fault, file: faults.json}",
]
TIMES = ("images_per_second", "mfu")

#: What befalls a run of a given KL weight is read from a file, so that the cause can be mended.
FAULT = """
import json
import os
import time
from pathlib import Path

import lightning.pytorch as pl


class Fault(pl.Callback):
    def __init__(self, file: str) -> None:
        self.faults = json.loads(Path(file).read_text())

    def on_validation_start(self, trainer, pl_module) -> None:
        if "validation" in self.faults:
            Path("validating").touch()
            time.sleep(self.faults["validation"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        time.sleep(self.faults.get("seconds", 0))
        if trainer.global_step != 15:
            return
        match self.faults.get(f"{pl_module.model.kl_penalty.weight.quoted:g}"):
            case "raise":
                raise ValueError("the dog ate it")
            case "raise once":
                marker = Path("eaten")
                if not marker.exists():
                    marker.touch()
                    raise ValueError("the dog ate it")
            case "exit":
                os._exit(9)
            case "memory":
                self.hoard = bytearray(3 << 30)
                self.hoard[::4096] = b"x" * len(self.hoard[::4096])
                time.sleep(60)
"""


GROUP = "group=kl_weights"


class Place:
    """A working directory with the faults and the runs."""

    def __init__(self, path: Path, root: Path = ROOT) -> None:
        self.path, self.root = path, root
        (path / "faults.py").write_text(FAULT)
        self.faults()

    def faults(self, **faults: Any) -> None:
        (self.path / "faults.json").write_text(json.dumps(faults))

    def start(self, *overrides: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(self.root / "train.py"), "-m", *SMALL, GROUP, *overrides],
            cwd=self.path,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(self.path), str(self.root)]),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, *overrides: str, code: int = 0) -> str:
        process = self.start(*overrides)
        output, _ = process.communicate()
        assert process.returncode == code, output
        return output

    @property
    def sweep(self) -> Path:
        return self.path / "runs" / GROUP.partition("=")[2]

    def runs(self) -> dict[str, Run]:
        """By the text of the KL weight, those that have a directory."""
        manifest = Manifest.read(self.sweep)
        assert manifest is not None
        names = {job.run_id: f"{job.point['model.kl_weight']:g}" for job in manifest.jobs}
        return {names[run.name]: run for run in find_runs(self.sweep)}

    def states(self) -> dict[str, str]:
        return {weight: run.state for weight, run in self.runs().items()}

    def rows(self) -> int:
        return sum(path.read_bytes().count(b"\n") for path in self.sweep.glob("*/metrics.jsonl"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Yield a folder, and end the processes that a failed test left in it."""
    yield Place(tmp_path)
    for pid in processes_of(tmp_path):
        os.kill(pid, signal.SIGKILL)


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)


def assert_done_once(run: Run) -> None:
    """Every training step is in the record, none of them twice."""
    steps = [row["step"] for row in run.metrics() if "train/loss" in row]
    assert steps == list(range(1, STEPS + 1))
    assert run.result is not None and run.result["steps"] == STEPS


def results(runs: dict[str, Run]) -> dict[str, Any]:
    """The records without times."""
    return {
        weight: [
            {k: v for k, v in row.items() if k.rpartition("/")[2] not in TIMES}
            for row in run.metrics()
        ]
        for weight, run in runs.items()
    }


def processes_of(folder: Path) -> list[int]:
    """Return the processes that work in a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink() == folder:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


WEIGHTS = "model.kl_weight=0,1,4"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A sweep that nothing disturbed."""
    place = Place(tmp_path_factory.mktemp("reference"))
    place.finish(WEIGHTS, "hydra.launcher.slots=2")
    return place


@pytest.mark.slow
def test_a_sweep_is_frozen_completed_and_not_done_again(reference: Place) -> None:
    runs = reference.runs()
    assert {w: run.state for w, run in runs.items()} == dict.fromkeys("014", "completed")
    for run in runs.values():
        assert_done_once(run)
    manifest = Manifest.read(reference.sweep)
    assert manifest is not None
    assert manifest.swept == ("model.kl_weight",)
    assert [job.point for job in manifest.jobs] == [
        {"model.kl_weight": weight} for weight in (0.0, 1.0, 4.0)
    ]
    assert [job.config["model"]["kl_weight"] for job in manifest.jobs] == [0, 1, 4]
    logs = {path.stem for path in (reference.sweep / "jobs").iterdir()}
    assert logs == {job.run_id for job in manifest.jobs}

    before = {p: p.read_bytes() for run in runs.values() for p in run.path.rglob("*.jsonl")}
    output = reference.finish("model.kl_weight=4,1")
    assert "2 of them completed before" in output
    assert "starts" not in output
    assert {p: p.read_bytes() for p in before} == before
    extended = Manifest.read(reference.sweep)
    assert extended is not None
    assert {job.run_id for job in extended.jobs} == {job.run_id for job in manifest.jobs}


@pytest.mark.slow
def test_three_jobs_that_fail_leave_three_whole_and_are_mended(place: Place) -> None:
    sweep = ["model.kl_weight=0,1,2,3,4,5", "hydra.launcher.slots=2", "hydra.launcher.memory_gb=2"]
    place.faults(**{"1": "raise", "2": "exit", "4": "memory"})
    output = place.finish(*sweep, code=1)
    failed = {"1": "the dog ate it", "2": "code 9", "4": "hydra.launcher.memory_gb=2"}
    runs = place.runs()
    for weight in "035":
        assert runs[weight].state == "completed"
        assert_done_once(runs[weight])
    for weight, reason in failed.items():
        assert runs[weight].state == "failed"
        assert reason in runs[weight].status["message"]
        assert f"kl_weight={weight}  failed" in output
        assert reason in output
    assert "    | ValueError: the dog ate it" in output
    assert output.rstrip().endswith("the same command again does only what is missing")
    assert (place.sweep / "summary.csv").read_text().count("failed") == 3

    done = {w: runs[w].metrics_path.stat().st_mtime_ns for w in "035"}
    place.faults()
    output = place.finish(*sweep)
    assert "3 of them completed before" in output
    runs = place.runs()
    for run in runs.values():
        assert_done_once(run)
    assert {w: runs[w].metrics_path.stat().st_mtime_ns for w in "035"} == done


@pytest.mark.slow
def test_a_job_is_tried_again_from_its_checkpoint(place: Place, reference: Place) -> None:
    place.faults(**{"4": "raise once"})
    output = place.finish("model.kl_weight=4", "hydra.launcher.retries=1")
    assert "it is tried again" in output and "attempt 2" in output
    (run,) = find_runs(place.sweep)
    assert_done_once(run)
    (log,) = (place.sweep / "jobs").iterdir()
    assert "(going on)" in log.read_text()
    assert results({"4": run})["4"] == results(reference.runs())["4"]


@pytest.mark.slow
def test_overwrite_repeats_completed_jobs_and_a_retry_of_one_goes_on(place: Place) -> None:
    asked = ["model.kl_weight=4", "hydra.launcher.retries=1"]
    place.finish(*asked)
    (first,) = find_runs(place.sweep)
    before = results({"4": first})
    (first.path / "notes.txt").write_text("mine")
    manifest = Manifest.read(place.sweep)
    assert manifest is not None
    replace(manifest, created="2020-01-02T03:04:05+00:00").write(place.sweep)

    place.faults(**{"4": "raise once"})
    output = place.finish(*asked, "overwrite=true")
    assert "completed before" not in output and "it is tried again" in output
    (run,) = find_runs(place.sweep)
    assert_done_once(run)
    assert results({"4": run}) == before
    # the retry set nothing aside, but went on where the first attempt was
    asides = [path.name for path in place.sweep.iterdir() if ".old-" in path.name]
    assert asides == [f"{run.name}.old-1"]
    assert (place.sweep / asides[0] / "notes.txt").read_text() == "mine"
    assert not (run.path / "notes.txt").exists()
    (log,) = (place.sweep / "jobs").iterdir()
    assert log.read_text().count("(going on)") == 1
    manifest = Manifest.read(place.sweep)
    assert manifest is not None and manifest.created == "2020-01-02T03:04:05+00:00"


@pytest.mark.slow
def test_a_killed_launcher_loses_nothing(place: Place, reference: Place) -> None:
    sweep = [WEIGHTS, "hydra.launcher.slots=2"]
    place.faults(seconds=0.05)
    launcher = place.start(*sweep)
    until(lambda: place.rows() > 20, launcher)
    launcher.kill()
    launcher.communicate()

    place.faults()
    place.finish(*sweep)
    assert not processes_of(place.path)
    for run in place.runs().values():
        assert_done_once(run)
    assert results(place.runs()) == results(reference.runs())


@pytest.mark.slow
def test_a_killed_job_is_the_only_one_to_be_repeated(place: Place, reference: Place) -> None:
    place.faults(seconds=0.05)
    launcher = place.start(WEIGHTS, "hydra.launcher.slots=3")
    until(lambda: place.rows() > 20 and len(place.runs()) == 3, launcher)
    os.kill(place.runs()["1"].status["pid"], signal.SIGKILL)
    output, _ = launcher.communicate()
    assert launcher.returncode == 1, output
    assert place.states() == {"0": "completed", "1": "failed", "4": "completed"}
    assert "killed by SIGKILL" in place.runs()["1"].status["message"]

    place.faults()
    assert "2 of them completed before" in place.finish(WEIGHTS)
    assert_done_once(place.runs()["1"])
    assert results(place.runs()) == results(reference.runs())


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_ends_in_order_and_all_can_go_on(
    place: Place, reference: Place, how: signal.Signals, code: int
) -> None:
    # a launcher that is refused takes its time in between
    place.faults(seconds=0.5 if how is signal.SIGINT else 0.05)
    launcher = place.start(WEIGHTS, "hydra.launcher.slots=2")
    until(lambda: place.rows() > 10 and len(place.runs()) == 2, launcher)
    if how is signal.SIGINT:
        second = place.finish("model.kl_weight=7", code=2)
        assert f"runs/kl_weights is in use by pid {launcher.pid}" in second
        assert "Traceback" not in second
    launcher.send_signal(how)
    output, _ = launcher.communicate()
    assert launcher.returncode == code, output
    assert place.states() == {"0": "preempted", "1": "preempted"}
    assert "stopped with 3 of 3 jobs to do; the same command goes on:" in output
    assert all((run.checkpoints / "last.ckpt").exists() for run in place.runs().values())
    assert not processes_of(place.path)

    place.faults()
    place.finish(WEIGHTS, "hydra.launcher.slots=2")
    for run in place.runs().values():
        assert_done_once(run)
    assert results(place.runs()) == results(reference.runs())


@pytest.mark.slow
def test_a_stop_during_a_validation_loses_no_step(place: Place, reference: Place) -> None:
    place.faults(validation=2)
    launcher = place.start("model.kl_weight=4")
    until((place.path / "validating").exists, launcher)
    launcher.terminate()
    output, _ = launcher.communicate()
    assert launcher.returncode == 143, output
    (run,) = find_runs(place.sweep)
    assert run.state == "preempted"
    assert [row["step"] for row in run.metrics() if "val/loss" in row] == [STEPS_PER_EPOCH]

    place.faults()
    place.finish("model.kl_weight=4")
    assert_done_once(run)
    assert results({"4": run})["4"] == results(reference.runs())["4"]


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(place: Place) -> None:
    place.faults(seconds=3600)
    launcher = place.start("model.kl_weight=0,1", "hydra.launcher.slots=2")
    training = '"total_steps"'
    until(
        lambda: sum(training in p.read_text() for p in place.sweep.glob("*/status.json")) == 2,
        launcher,
    )
    launcher.send_signal(signal.SIGINT)
    time.sleep(1)
    launcher.send_signal(signal.SIGINT)
    output, _ = launcher.communicate()
    assert launcher.returncode == 130, output
    assert place.states() == {"0": "preempted", "1": "preempted"}
    assert not processes_of(place.path)


@pytest.mark.slow
def test_one_bad_config_is_refused_before_any_job_starts(place: Place) -> None:
    output = place.finish("model.kl_weight=0,-1,-2,1", code=2)
    assert "2 of 4 jobs are refused" in output and "Traceback" not in output
    for weight in ("-1", "-2"):
        assert f"model.kl_weight={weight}: " in output
    assert not find_runs(place.path / "runs")
    assert not (place.sweep / "manifest.json").exists()


@pytest.mark.slow
def test_an_edit_is_noticed_and_reaches_no_job(tmp_path: Path, reference: Place) -> None:
    root = tmp_path / "checkout"
    for folder in ("genlab", "conf", "hydra_plugins"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
    shutil.copy(ROOT / "train.py", root)
    (tmp_path / "work").mkdir()
    place = Place(tmp_path / "work", root)
    place.faults(seconds=0.05)
    launcher = place.start(WEIGHTS)
    until(lambda: place.rows() > 2, launcher)
    optimizer = root / "conf/model/optimizer/adam.yaml"
    optimizer.write_text(optimizer.read_text().replace("lr: 1.0e-3", "lr: 1.0e-2"))
    output, _ = launcher.communicate()
    assert launcher.returncode == 0, output
    assert "code or configs were edited since the sweep began" in output
    assert results(place.runs()) == results(reference.runs())

    optimizer.write_text((ROOT / "conf/model/optimizer/adam.yaml").read_text() + "# remark\n")
    output = place.finish(WEIGHTS)
    assert "code or configs were edited since this sweep was last started" in output
    assert "3 of them completed before" in output


@pytest.mark.slow
def test_a_job_may_consist_of_several_processes(place: Place) -> None:
    place.finish("model.kl_weight=0,1", "trainer.devices=2", "+trainer.strategy=ddp")
    for run in place.runs().values():
        assert_done_once(run)
    assert not processes_of(place.path)


@pytest.mark.slow
def test_several_processes_a_job_are_refused_where_they_cannot_be(place: Place) -> None:
    output = place.finish("model.kl_weight=1,2", "trainer.devices=2", "launcher=basic", code=1)
    assert "trainer.devices=2" in output and "launcher=process" in output
    assert not find_runs(place.path / "runs")


def test_a_manifest_keeps_when_it_was_first_made_and_every_job_asked_for(tmp_path: Path) -> None:
    def asked(created: str, *run_ids: str, question: str | None = None) -> Manifest:
        jobs = tuple(Job(run_id, (), {"model.kl_weight": run_id}, 0) for run_id in run_ids)
        swept = ("model.kl_weight",)
        return Manifest("demo", swept, jobs, question, ("train.py", created), {}, created)

    for manifest in (
        asked("2020", "a", "b", question="Why?"),
        asked("2021", "c"),
        asked("2022", "b", "a"),
    ):
        manifest.after(Manifest.read(tmp_path)).write(tmp_path)
    found = Manifest.read(tmp_path)
    assert found is not None
    assert (found.created, found.question) == ("2020", "Why?")
    assert [job.run_id for job in found.jobs] == ["b", "a", "c"]
    assert found.command == ("train.py", "2022")


def test_gpus_go_to_slots_in_turn() -> None:
    def gpus(slots: int | None, have: int, each: int, visible: str = "") -> list[tuple[str, ...]]:
        environment = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
        return [s.gpus for s in Settings(slots=slots).places(have, each, environment)]

    assert gpus(None, 0, 1) == [()]
    assert gpus(3, 0, 1) == [(), (), ()]
    assert gpus(None, 4, 1) == [("0",), ("1",), ("2",), ("3",)]
    assert gpus(None, 4, 2) == [("0", "1"), ("2", "3")]
    assert gpus(2, 1, 1) == [("0",), ("0",)]
    assert gpus(None, 2, 1, "5,GPU-8f3a") == [("5",), ("GPU-8f3a",)]


def test_processors_are_shared_unless_somebody_says_how_many() -> None:
    processors = len(os.sched_getaffinity(0))
    assert Settings().threads_each(1, {}) == processors
    assert Settings().threads_each(10 * processors, {}) == 1
    assert Settings().threads_each(2, {"OMP_NUM_THREADS": "3"}) == 3
    assert Settings(threads=5).threads_each(2, {"OMP_NUM_THREADS": "3"}) == 5


def test_progress_is_that_of_the_process_that_runs_now(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as directory:
        directory.write_status("running", step=0, total_steps=30)
        directory.append_metrics(10, 0, {"val/reconstruction": 90.5, "val/kl": 7.0})
        directory.append_metrics(12, 1, {"train/loss": 99.0, "train/images_per_second": 1e4})
        other, mine = (RunProgress(directory.path, pid) for pid in (1, os.getpid()))
        for progress in (other, mine):
            progress.look()
        assert (other.step, other.total, other.metrics) == (None, None, {})
        assert (mine.step, mine.total, mine.images_per_second) == (12, 30, 1e4)
        assert mine.metrics == {"reconstruction": 90.5, "kl": 7.0}
        time.sleep(0.01)
        directory.append_metrics(20, 1, {"val/reconstruction": 80.0})
        mine.look()
        assert mine.metrics == {"reconstruction": 80.0, "kl": 7.0}
        left = mine.seconds_left
        assert left is not None and left > 0


def test_a_table_of_many_jobs_fits_the_terminal(tmp_path: Path) -> None:
    tasks = [
        Task(f"kl_weight={i}", f"run-{i}", tmp_path / str(i), tmp_path / f"{i}.log")
        for i in range(200)
    ]
    tasks[150].state, tasks[199].state = "running", "failed"
    console = Console(
        file=io.StringIO(), force_terminal=True, width=100, height=20, color_system=None
    )
    with display(tasks, console) as shown:
        shown.refresh()
    assert isinstance(console.file, io.StringIO)
    frame = console.file.getvalue().rpartition("\x1b[2K")[2]
    assert len(frame.splitlines()) < 20
    for text in ("kl_weight=150", "kl_weight=199", "1 running, 198 waiting, 1 failed", "185 jobs"):
        assert text in frame


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("slots=0", "hydra.launcher.slots=0: give a whole number of at least 1"),
        ("memory_gb=-1", "hydra.launcher.memory_gb=-1: give a finite number, above 0"),
        ("retries=0.5", "hydra.launcher.retries=0.5: give a whole number of at least 0"),
    ],
)
def test_settings_are_refused_by_name(place: Place, override: str, said: str) -> None:
    output = place.finish(f"hydra.launcher.{override}", code=2)
    assert said in output and "Traceback" not in output


def test_the_memory_of_a_job_is_that_of_all_its_processes() -> None:
    held = 64 << 20
    hold = f"import sys; held = bytearray(b'x') * {held}; print(flush=True); sys.stdin.read()"
    both = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {hold!r}]); {hold}"
    with subprocess.Popen(
        [sys.executable, "-c", both],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline(), process.stdout.readline()
        assert 2 * held < _resident_bytes(process.pid) < 4 * held
        process.stdin.close()  # which both wait for
    assert _resident_bytes(None) == 0


@pytest.mark.slow
def test_no_module_of_the_working_directory_replaces_one_of_the_standard_library(
    tmp_path: Path,
) -> None:
    for name in ("struct", "selectors", "random", "torch"):
        (tmp_path / f"{name}.py").write_text("open('imported', 'w')")
    start = (
        "import sys; sys.path.remove('')\n"
        "import os\n"
        "from omegaconf import OmegaConf\n"
        "from genlab.sweeps import process\n"
        "process._import_ahead(OmegaConf.create({}), 1)\n"
        "one = process._FORKS.Process(target=os.getpid)\n"
        "one.start(); one.join(); print(one.exitcode, 'PYTHONSAFEPATH' in os.environ)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", start], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "0 False\n", done.stderr
    assert not (tmp_path / "imported").exists()
