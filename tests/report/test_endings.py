"""A report says of every run without a usable result why, and how to go on."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from compared_runs import vae, write
from rich.console import Console

from genlab.report import answer, collect, print_sweep, sweep_table
from genlab.report.endings import command_text, endings
from genlab.report.page import report_page
from genlab.report.replicates import summarise
from genlab.runs.manifest import Job, Manifest

COMMAND = ("/somewhere/train.py", "-m", "model.kl_weight=0,1,2,3,4", "overwrite=true")


def troubled_config(weight: int) -> dict[str, Any]:
    return vae(**{"model.kl_weight": float(weight), "model.optimizer.lr": 100.0})


@pytest.fixture
def troubled(tmp_path: Path) -> Path:
    """A sweep of which one run each was completed, failed, was preempted, diverged, is missing."""
    path = tmp_path / "sweep"
    for weight, state in enumerate(("completed", "failed", "preempted", "completed")):
        config = troubled_config(weight)
        write(path / f"run-{weight}", config, 1e30 if weight == 3 else 100.0, state)
    status = {"state": "failed", "type": "TrainingError", "message": "no room", "where": "fit.py:7"}
    (path / "run-1" / "status.json").write_text(json.dumps(status))
    result = json.loads((path / "run-3" / "result.json").read_text()) | {"verdict": "diverged"}
    (path / "run-3" / "result.json").write_text(json.dumps(result))
    jobs = tuple(
        Job(f"run-{w}", (f"model.kl_weight={w}",), {"model.kl_weight": w}, 0, troubled_config(w))
        for w in range(5)
    )
    Manifest("sweep", ("model.kl_weight",), jobs, command=COMMAND).write(path)
    return path


def test_every_run_without_a_usable_result_is_named_with_its_reason(troubled: Path) -> None:
    lines = endings(collect(troubled))
    assert lines == [
        "kl_weight 1 (failed): TrainingError: no room (in fit.py:7)",
        "kl_weight 2 (preempted): it was told to stop",
        "kl_weight 3 (diverged): its training diverged, so that its numbers are left out: lower "
        "model.optimizer.lr=100 or set trainer.gradient_clip_val",
        "kl_weight 4 (missing): it was never started: there is no status.json",
        "to do what is missing: python train.py -m model.kl_weight=0,1,2,3,4",
    ]
    table = sweep_table(collect(troubled))
    states = [cells[-1] for cells in table.cells()]
    assert states == ["completed", "failed", "preempted", "diverged", "missing"]
    assert table.notes()[1:] == lines


def test_a_replicate_that_is_missing_belongs_to_the_point_of_the_others(tmp_path: Path) -> None:
    """Its config in the manifest has 1 where that of a run has 1.0."""
    jobs = tuple(
        Job(f"run-{s}", (), {"model.kl_weight": 1}, s, vae(**{"model.kl_weight": 1, "seed": s}))
        for s in range(3)
    )
    for seed in range(2):
        write(tmp_path / f"run-{seed}", vae(**{"model.kl_weight": 1.0, "seed": seed}), 100.0)
    Manifest("sweep", ("model.kl_weight", "seed"), jobs, command=COMMAND).write(tmp_path)
    records = collect(tmp_path)
    assert [record.state for record in records].count("missing") == 1
    assert [point.runs for point in summarise(records, ["model.kl_weight", "seed"])] == [2]


def test_a_result_without_a_finite_number_is_no_result(tmp_path: Path) -> None:
    for weight, neg_elbo in enumerate((100.0, 90.0, 80.0)):
        write(tmp_path / f"run-{weight}", troubled_config(weight), neg_elbo, "completed")
    path = tmp_path / "run-1" / "result.json"
    result = json.loads(path.read_text())
    result["metrics"] = dict.fromkeys(result["metrics"], None)
    path.write_text(json.dumps(result))
    records = collect(tmp_path)
    assert endings(records)[0].startswith("kl_weight 1 (diverged): ")
    assert "Without a result, and so left out: 1 diverged." in answer(records)
    page = report_page(records, tmp_path)
    assert "2 runs with a result" in page


def test_the_answer_leaves_out_what_diverged(troubled: Path) -> None:
    said = answer(collect(troubled))
    assert said.startswith("kl_weight 0: ")
    assert said.endswith(
        "Without a result, and so left out: 1 diverged, 1 failed, 1 missing, 1 preempted."
    )


def test_a_single_stopped_run_says_how_to_go_on(tmp_path: Path) -> None:
    path = write(tmp_path / "single" / f"vae-{'long-' * 17}1234abcd", vae(), state="preempted")
    command = ["train.py", "model.kl_weight=3", "notes=a b", "overwrite=true"]
    (path / "status.json").write_text(json.dumps({"state": "preempted", "command": command}))
    assert answer(collect(tmp_path)) == (
        "No run has a result yet (1 preempted): it was told to stop; go on with "
        "`python train.py model.kl_weight=3 'notes=a b'`."
    )
    table = sweep_table(collect(tmp_path))
    assert table.cells() == [["1234abcd", "preempted"]], "not ninety letters"
    assert table.notes()[0].startswith("1234abcd (preempted): ")


def test_the_command_of_a_stranger_is_one_of_genlab_or_none() -> None:
    assert command_text(("/x/sweep.py", "sweep=kl_weight", "a=$(rm -r x)")) == (
        "python sweep.py sweep=kl_weight 'a=$(rm -r x)'"
    )
    assert command_text(("genlab", "train", "-m", "seed=0,1")) == "genlab train -m seed=0,1"
    for command in ((), ("sh", "-c", "x"), ("evil.py",), ("rm", "train.py")):
        assert command_text(command) == ""


@pytest.mark.parametrize("width", [80, 100, 140])
def test_no_line_of_a_terminal_is_longer_than_it_is_wide(troubled: Path, width: int) -> None:
    for seed in (1, 2):
        for weight in (0.0, 1.0):
            config: dict[str, Any] = vae(**{"model.kl_weight": weight, "seed": seed})
            write(troubled / f"more-{weight:g}-{seed}", config, 100.0 + seed + weight)
    console = Console(
        width=width, force_terminal=True, color_system=None, file=io.StringIO(), _environ={}
    )
    print_sweep(collect(troubled), troubled, console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    paths = [line for line in lines if line.startswith(f"  {troubled}")]
    assert paths and max(len(line) for line in lines if line not in paths) <= width
