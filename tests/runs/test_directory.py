from __future__ import annotations

import errno
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genlab.errors import RunDirectoryError
from genlab.runs import directory as results
from genlab.runs.directory import RunDirectory, set_aside
from genlab.runs.files import write_atomically
from genlab.runs.run import Run, find_runs

PROJECT = Path(results.__file__).parents[2]

HOLD = """
import sys
from genlab.runs.directory import RunDirectory
run = RunDirectory(sys.argv[1]).open()
run.write_status("running")
print("ready", flush=True)
sys.stdin.read()
"""

WRITE_FOREVER = """
import itertools, sys
from genlab.runs.directory import RunDirectory
run = RunDirectory(sys.argv[1], heartbeat_seconds=0).open()
run.write_status("running")
for step in itertools.count(int(sys.argv[2])):
    run.append_metrics(step, step // 10, {"train/loss": 1 / (step + 1), "train/kl": step / 7})
    if step % 10 == 9:
        run.append_metrics(step, step // 10, {"val/loss": 2 / (step + 1)})
    run.heartbeat()
    if step == int(sys.argv[2]):
        print("ready", flush=True)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()


def append(path: Path, steps: range) -> None:
    """Rows as a training gives them: some at every step, others now and then."""
    with RunDirectory(path) as run:
        for step in steps:
            run.append_metrics(step, step // 3, {"train/loss": 0.1 * step, "train/kl": 1e-20})
            if step % 3 == 2:
                run.append_metrics(step, step // 3, {"val/loss": math.nan})


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "group" / "run") as run:
        run.write_config("seed: 0\n")
        run.write_env({"python": "3"})
        run.write_result({"metrics": {"test/kl": 0.1, "test/fid": math.inf}, "seed": 0})
        run.write_status("completed")
        assert run.checkpoints.is_dir() and run.pictures.is_dir()
    read = Run(tmp_path / "group" / "run")
    assert (read.name, read.state, read.config_text) == ("run", "completed", "seed: 0\n")
    assert read.result == {"metrics": {"test/kl": 0.1, "test/fid": None}, "seed": 0}
    assert read.is_completed and not read.is_interrupted
    assert read.status.keys() == {"state", "command", "pid", "host", "started", "heartbeat"}


def test_the_time_of_start_stays_while_the_status_changes(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, heartbeat_seconds=0) as run:
        run.write_status("running")
        first = Run(tmp_path).status
        time.sleep(1.1)  # times have no fractions of a second
        run.write_status("running", step=3, total_steps=10)
        run.heartbeat(4)
        assert Run(tmp_path).status["started"] == first["started"]
        run.write_status("completed")
    last = Run(tmp_path).status
    assert last["started"] == first["started"]
    assert last["heartbeat"] > first["heartbeat"]


def test_nothing_there_reads_as_missing(tmp_path: Path) -> None:
    run = Run(tmp_path / "none")
    assert (run.status, run.state, run.result, run.metrics()) == ({}, "missing", None, [])
    assert run.config_text is None and not run.is_completed and not run.is_interrupted


def test_completed_without_a_result_is_not_completed(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        run.write_status("completed")
    assert not Run(tmp_path).is_completed


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    for name, metrics in (("a", {"y": 1.0, "x": 0.1}), ("b", {"x": 0.1, "y": 1})):
        with RunDirectory(tmp_path / name) as run:
            run.append_metrics(3, 0, metrics)
    expected = b'{"step": 3, "epoch": 0, "x": 0.1, "y": 1.0}\n'
    assert Run(tmp_path / "a").metrics_path.read_bytes() == expected
    assert Run(tmp_path / "b").metrics_path.read_bytes() == expected


def test_cut_at_any_byte_and_resumed_the_metrics_have_no_gap_and_no_repeat(tmp_path: Path) -> None:
    append(tmp_path, range(7))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        rows = Run(tmp_path).metrics()
        assert len(rows) == whole[:length].count(b"\n")
        checkpoint = rows[-1]["step"] if rows else 0
        append(tmp_path, range(max(0, checkpoint - 2), 7))
        assert path.read_bytes() == whole


def test_sigkill_at_random_moments_leaves_a_prefix(tmp_path: Path) -> None:
    chance = random.Random(0)
    resume_from = 0
    for _ in range(6):
        process = start(WRITE_FOREVER, tmp_path / "run", resume_from)
        time.sleep(chance.uniform(0, 0.03))
        kill(process)
        assert Run(tmp_path / "run").is_interrupted
        rows = Run(tmp_path / "run").metrics()
        steps = [row["step"] for row in rows if "train/loss" in row]
        assert steps == list(range(len(steps)))
        # The last checkpoint lies some steps before the last row.
        resume_from = max(0, steps[-1] - chance.randrange(20))
    rows = Run(tmp_path / "run").metrics()
    assert all(row["train/loss"] == 1 / (row["step"] + 1) for row in rows if "train/loss" in row)
    val_steps = [row["step"] for row in rows if "val/loss" in row]
    assert val_steps == list(range(9, 10 * len(val_steps) + 9, 10))
    RunDirectory(tmp_path / "run").open().close()
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_a_spoilt_line_is_named(tmp_path: Path) -> None:
    append(tmp_path, range(3))
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for spoilt in (b"{]\n", b"\n", b"7\n", b'{"epoch": 0}\n', lines[1][:9] + b"\n"):
        path.write_bytes(b"".join([lines[0], spoilt, *lines[2:]]))
        with pytest.raises(RunDirectoryError, match=r"metrics\.jsonl line 2 "):
            RunDirectory(tmp_path).open()
        with pytest.raises(RunDirectoryError, match=r"metrics\.jsonl line 2 "):
            Run(tmp_path).metrics()
    path.write_bytes(b"".join(lines))
    append(tmp_path, range(3))
    assert path.read_bytes() == b"".join(lines)


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write
    room = [10]

    def write(descriptor: int, data: memoryview) -> int:
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(descriptor, data[: room.pop()])

    with RunDirectory(tmp_path) as run:
        run.append_metrics(0, 0, {"loss": 1.0})
        with monkeypatch.context() as full:
            full.setattr(results.os, "write", write)
            with pytest.raises(OSError, match="No space"):
                run.append_metrics(1, 0, {"loss": 0.5})
        run.append_metrics(1, 0, {"loss": 0.5})
    assert [row["loss"] for row in Run(tmp_path).metrics()] == [1.0, 0.5]


def test_a_second_process_is_refused_by_name_and_let_in_when_the_first_is_killed(
    tmp_path: Path,
) -> None:
    holder = start(HOLD, tmp_path / "run")
    named = f"in use by pid {holder.pid} on host {socket.gethostname()}"
    with pytest.raises(RunDirectoryError, match=named):
        RunDirectory(tmp_path / "run").open()
    with pytest.raises(RunDirectoryError, match=named):
        set_aside(tmp_path / "run")
    assert not Run(tmp_path / "run").is_interrupted
    kill(holder)
    assert Run(tmp_path / "run").is_interrupted
    with RunDirectory(tmp_path / "run") as run:
        run.write_status("running")
        assert not Run(tmp_path / "run").is_interrupted


def test_a_forked_worker_that_outlives_its_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    fork = HOLD.replace(
        "print", "import os\nif os.fork() == 0: sys.stdin.read(); os._exit(0)\nprint"
    )
    parent = start(fork, tmp_path / "run")
    assert parent.stdin is not None and parent.stdout is not None
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    RunDirectory(tmp_path / "run").open().close()
    parent.stdin.close()
    parent.stdout.close()


def test_a_run_on_another_host_is_not_called_interrupted(tmp_path: Path) -> None:
    for host, expected in (("elsewhere.invalid", False), (socket.gethostname(), True)):
        status = {"state": "running", "pid": 2**22 + 1, "host": host}
        (tmp_path / "status.json").write_text(json.dumps(status))
        assert Run(tmp_path).is_interrupted is expected


def test_writing_needs_an_open_directory(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(RunDirectoryError, match="not open"):
        run.write_status("running")
    with pytest.raises(RunDirectoryError, match="not open"):
        run.append_metrics(0, 0, {"loss": 1.0})


def test_an_unwritable_place_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"file/run cannot be written .*set runs_dir"):
        RunDirectory(tmp_path / "file" / "run").open()


def test_unknown_states_and_reserved_metric_names_are_refused(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        with pytest.raises(ValueError, match="state='done'"):
            run.write_status("done")
        with pytest.raises(ValueError, match="'epoch'"):
            run.append_metrics(0, 0, {"epoch": 1.0})


def test_the_heartbeat_is_throttled_and_keeps_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(results.time, "monotonic", lambda: now[0])
    written: list[Path] = []
    real = results.write_atomically
    monkeypatch.setattr(
        results, "write_atomically", lambda path, d: (written.append(path), real(path, d))
    )
    with RunDirectory(tmp_path, heartbeat_seconds=5) as run:
        run.write_status("running", note="x")
        for now[0] in (101.0, 104.9, 105.0, 105.1, 110.0):
            run.heartbeat()
        assert len(written) == 3
        assert Run(tmp_path).status["note"] == "x"
        run.write_status("failed", type="ValueError", message="m", where="fit")
        now[0] = 200.0
        run.heartbeat()
        assert len(written) == 4
    assert Run(tmp_path).status["type"] == "ValueError"


@pytest.mark.parametrize("function", [(os, "fsync"), (Path, "replace")], ids=["sync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: tuple[object, str]
) -> None:
    write_atomically(tmp_path / "a", b"old")

    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(*function, fail)
    with pytest.raises(OSError, match="broken"):
        write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_set_aside_keeps_every_earlier_run(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.yaml").write_text(f"seed: {number}")
        assert set_aside(tmp_path / "run") == tmp_path / f"run.old-{number}"
    texts = [(tmp_path / f"run.old-{n}" / "config.yaml").read_text() for n in (1, 2, 3)]
    assert texts == ["seed: 1", "seed: 2", "seed: 3"]
    with pytest.raises(RunDirectoryError, match="nothing to set aside"):
        set_aside(tmp_path / "run")


def test_find_runs_sees_runs_and_nothing_else(tmp_path: Path) -> None:
    root, outside = tmp_path / "runs", tmp_path / "outside"
    for folder in (
        root / "b" / "run",
        root / "a" / "run",
        root / "a" / "run" / "wandb" / "files",
        root / "a" / "run.old-1",
        root / "a" / ".hydra",
        root / "wandb" / "latest",
        outside,
    ):
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("seed: 0")
    (root / "c").mkdir()
    (root / "c" / "status.json").write_text("{}")
    (root / "link").symlink_to(outside)
    (root / "loop").symlink_to(root)
    assert [run.path for run in find_runs(root)] == [root / "a/run", root / "b/run", root / "c"]
    assert [run.path for run in find_runs(outside)] == [outside]
    assert find_runs(tmp_path / "none") == []


def test_results_need_the_standard_library_alone() -> None:
    script = (
        "import sys, genlab.runs.directory;"
        "assert not {'torch', 'numpy', 'yaml', 'omegaconf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=PROJECT)
