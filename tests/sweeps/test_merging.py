"""Settings with one identity are one run, however they were typed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from genlab.report import collect
from genlab.report.collect import swept_keys
from genlab.report.replicates import summarise
from genlab.runs.manifest import Manifest
from genlab.runs.run import find_runs
from genlab.sweeps.merging import firsts

ROOT = Path(__file__).parents[2]
QUICK = ["trainer=smoke", "callbacks=none", "logger=none", "forecast=false"]


def command(*arguments: str, program: str = "train.py") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, program, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_the_first_job_of_each_identity_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    ids = [f"x_{i}-{'ab'[i % 2]}0000000" for i in range(20)]
    assert firsts(ids, [f"x={i}" for i in range(20)]) == [0, 1] * 10
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "merged: x=2 is the same run as x=0, since it computes the same"
    assert len(told) == 6 and told[-1] == "merged: and 13 more jobs"
    assert firsts(["a-1", "a-2"], ["", ""]) == [0, 1] and not capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "typed", "runs"),
    [
        ("basic", ["model.kl_weight=1,1.0,1e0"], 1),
        ("process", ["model.kl_weight=1,1.0,1e0"], 1),
        ("joblib", ["model.kl_weight=1,1.0,1e0"], 1),
        ("basic", ["seed=0,1,1"], 2),
        ("process", ["data.num_workers=0,1"], 1),
        ("basic", ["trainer.limit_train_batches=1,1.0"], 2),  # one batch, and all of them
    ],
)
def test_equal_jobs_are_one_run(tmp_path: Path, launcher: str, typed: list[str], runs: int) -> None:
    done = command("-m", *QUICK, *typed, f"launcher={launcher}", f"runs_dir={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = find_runs(tmp_path)
    assert len(found) == runs and all(run.is_completed for run in found)
    jobs = len(typed[0].split(","))
    assert done.stdout.count("merged: ") == jobs - runs
    records = collect(found[0].path.parent)
    seeds = {record.config["seed"] for record in records}
    assert [point.runs for point in summarise(records, swept_keys(records))] == [len(seeds)]


@pytest.mark.slow
def test_a_study_and_its_dry_run_merge_as_well(tmp_path: Path) -> None:
    typed = ["sweep=kl_weight", *QUICK, "model.kl_weight=1,1.0", "seed=0,0", f"runs_dir={tmp_path}"]
    dry = command(*typed, "dry=true", program="sweep.py")
    assert dry.returncode == 0, dry.stdout + dry.stderr
    assert "\n1 jobs; to do: " in dry.stdout
    done = command(*typed, program="sweep.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(find_runs(tmp_path)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "process", "joblib"])
def test_all_jobs_are_checked_before_the_first_one_trains(tmp_path: Path, launcher: str) -> None:
    typed = ["model.kl_weight=1,-1", f"launcher={launcher}", f"runs_dir={tmp_path}"]
    done = command("-m", *QUICK, *typed)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "model.kl_weight=-1" in done.stderr and "Traceback" not in done.stderr
    assert find_runs(tmp_path) == []


@pytest.mark.slow
def test_multiruns_with_another_likelihood_have_folders_of_their_own(tmp_path: Path) -> None:
    sweep = ["-m", *QUICK, "model.kl_weight=0,1", f"runs_dir={tmp_path}"]
    for likelihood in ([], ["model/likelihood=gaussian"]):
        done = command(*sweep, *likelihood)
        assert done.returncode == 0, done.stdout + done.stderr
    reports = list(tmp_path.glob("*/report.html"))
    assert len(reports) == 2
    assert [len(find_runs(report.parent)) for report in reports] == [2, 2]


def test_the_choice_that_lacks_a_key_is_named() -> None:
    done = command("-m", *QUICK, "model=vae,ddpm", "model.kl_weight=0")
    assert done.returncode == 2
    told = (
        "error: model.kl_weight=0: there is no such key with model=ddpm; leave out one of the two"
    )
    assert done.stderr.strip() == told


@pytest.mark.slow
def test_a_key_that_is_added_is_swept_under_its_name(tmp_path: Path) -> None:
    added = "+trainer.overfit_batches=0.0,0.5"
    done = command("-m", *QUICK, added, f"runs_dir={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = tmp_path.iterdir()
    manifest = Manifest.read(folder)
    assert manifest is not None and manifest.swept == ("trainer.overfit_batches",)
    assert [job.point for job in manifest.jobs] == [
        {"trainer.overfit_batches": 0.0},
        {"trainer.overfit_batches": 0.5},
    ]
