"""A multirun: one directory per config, nothing leaks between jobs, and a comparison at the end."""

from __future__ import annotations

import csv
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from genlab.config.compose import compose
from genlab.report import collect
from genlab.runs.run import find_runs
from genlab.sweeps import group_name, multirun_keys

ROOT = Path(__file__).parents[2]
SMALL = [
    "trainer.max_epochs=2",
    "data.train_images=512",
    "model.net.encoder.hidden=[32]",
    "model.net.decoder.hidden=[32]",
    "model/likelihood=gaussian",
    "model/optimizer=adamw",
    "callbacks=none",
]


def train(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
    )


def test_a_multirun_is_named_after_the_keys_it_varies() -> None:
    overrides = ["model.kl_weight=0,1", "seed=3", "model/noise_schedule=linear,cosine"]
    assert multirun_keys(overrides) == ["model.kl_weight", "model/noise_schedule"]
    config = compose(["model=ddpm", "seed=3"])
    name = group_name(config, overrides)
    assert re.fullmatch("sweep-kl_weight-noise_schedule-[0-9a-f]{6}", name)
    assert re.fullmatch("sweep-[0-9a-f]{6}", group_name(config, ["seed=3"]))


def test_multiruns_share_a_name_only_if_they_differ_in_nothing_but_the_varied_values() -> None:
    def name(*fixed: str, varied: str = "model.kl_weight=0,1") -> str:
        return group_name(compose(list(fixed)), [varied, *fixed])

    same = name()
    assert name(varied="model.kl_weight=4,30") == same
    assert name("model.kl_weight=7") == same  # the value beside the varied ones
    assert name("runs_dir=elsewhere", "logger=none", "trainer.log_every_n_steps=3") == same
    others = ["model/likelihood=gaussian", "trainer.max_epochs=3", "seed=1", "data.flip=true"]
    assert len({same, name(varied="seed=0,1"), *map(name, others)}) == 2 + len(others)
    groups = name(varied="model/likelihood=gaussian,bernoulli")
    assert groups == name("model/likelihood=gaussian", varied="model/likelihood=gaussian,bernoulli")


@pytest.mark.slow
def test_weights_are_compared_and_asked_for_again_nothing_is_trained(tmp_path: Path) -> None:
    sweep = ["-m", *SMALL, "model.kl_weight=0,1,30", f"runs_dir={tmp_path}"]
    first = train(*sweep)
    assert first.returncode == 0, first.stdout + first.stderr
    runs = find_runs(tmp_path)
    (folder,) = {run.path.parent for run in runs}
    assert all(run.is_completed for run in runs)

    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["model.kl_weight"]) for row in rows] == [0.0, 1.0, 30.0]
    reconstruction = [float(row["test/reconstruction"]) for row in rows]
    assert reconstruction[0] == min(reconstruction)
    assert (folder / "summary.md").read_text().count("|") > 10
    assert (folder / "rate_distortion.png").read_bytes().startswith(b"\x89PNG")
    forecast = [record.metric("forecast/active_units") for record in collect(folder)]
    assert sorted(f for f in forecast if f is not None)[0] == 0

    before = {run.path: run.metrics_path.stat().st_mtime_ns for run in runs}
    again = train(*sweep)
    assert again.returncode == 0
    assert again.stdout.count("completed before") == 3
    assert {r.path: r.metrics_path.stat().st_mtime_ns for r in find_runs(tmp_path)} == before
    header = next(line for line in first.stdout.splitlines() if line.startswith("kl_weight  "))
    table = first.stdout[first.stdout.index(header) :].split("\n\n")[0]
    assert table in again.stdout

    alone = train(*SMALL, "model.kl_weight=30.0", f"runs_dir={tmp_path / 'alone'}", "logger=none")
    assert alone.returncode == 0
    (single,) = find_runs(tmp_path / "alone")
    (third,) = (run for run in runs if run.name.endswith(single.name[-8:]))
    metrics = [run.result["metrics"] for run in (single, third) if run.result is not None]
    assert metrics[0] == metrics[1], "what a job gives must not depend on the jobs before it"


@pytest.mark.slow
@pytest.mark.parametrize("group", [None, "mine"])
def test_experiments_are_swept_in_one_group_and_not_compared(
    tmp_path: Path, group: str | None
) -> None:
    """Each of the two has a group of its own in its file, and another likelihood."""
    chosen = "experiment=vae/kl_weight,vae/rate_distortion"
    asked = ["-m", chosen, "trainer=smoke", "callbacks=none", "logger=none", f"runs_dir={tmp_path}"]
    done = train(*asked, *([f"group={group}"] if group else []))
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    assert group is None or folder.name == group
    assert len(find_runs(folder)) == 2
    assert f"{folder.name}: vae/kl_weight" in done.stdout
    assert "not compared, since they differ in the unit of the bound" in done.stdout
    assert "missing" not in done.stdout


@pytest.mark.slow
def test_two_ends_of_one_curve(tmp_path: Path) -> None:
    """The rates are those of another small VAE at these weights, whose decoder has another scale:
    0.62, 0.073, 0.034 and 0.0003 bits/dim.
    """
    weights = [0, 1, 4, 30]
    done = train(
        *("-m", "experiment=vae/rate_distortion", f"model.kl_weight={','.join(map(str, weights))}"),
        *("data.batch_size=256", "trainer.max_steps=700", "logger=none", "callbacks=none"),
        f"runs_dir={tmp_path}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = sorted(collect(tmp_path), key=lambda run: run.config["model"]["kl_weight"])
    bits = {
        name: [(run.metric(f"test/{name}") or 0.0) / (784 * math.log(2)) for run in runs]
        for name in ("kl", "reconstruction", "neg_elbo")
    }
    assert bits["kl"] == sorted(bits["kl"], reverse=True)
    assert bits["reconstruction"] == sorted(bits["reconstruction"])
    assert min(bits["neg_elbo"]) == bits["neg_elbo"][weights.index(1)]
    for rate, low, high in zip(
        bits["kl"], (0.2, 0.05, 0.02, 0), (1, 0.1, 0.05, 0.003), strict=True
    ):
        assert low <= rate < high, bits["kl"]
