"""A component from outside genlab, one class and one YAML, is trained with through `train.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SCHEDULE = '''
from genlab.checks import whole
from genlab.vae.kl_schedules import KLSchedule


class Quadratic(KLSchedule):
    """A parabola from 0 to 1 in `steps` optimizer steps."""

    def __init__(self, steps: int) -> None:
        self.steps = whole("model.kl_schedule.steps", steps, 1)

    def weight(self, step: int) -> float:
        return min(1.0, step / self.steps) ** 2
'''

CHOICE = """
_target_: mylab.kl_schedules.Quadratic
steps: 1000
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package `mylab` with one KL schedule, as docs/extending.md describes it."""
    folder = tmp_path / "mylab"
    (folder / "conf/model/kl_schedule").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "conf/__init__.py").touch()
    (folder / "kl_schedules.py").write_text(SCHEDULE)
    (folder / "conf/model/kl_schedule/quadratic.yaml").write_text(CHOICE)
    return folder


def train(package: Path, *arguments: str, plugins: str) -> subprocess.CompletedProcess[str]:
    """`python train.py` for 8 steps, each of them logged, run directories beside the package."""
    return subprocess.run(
        [
            sys.executable,
            str(ROOT / "train.py"),
            *arguments,
            "model/kl_schedule=quadratic",
            "model.kl_schedule.steps=6",
            "model.kl_weight=4",
            *("data=mnist_mini", "trainer=smoke", "logger=none", "callbacks=none"),
            *("trainer.limit_train_batches=8", "trainer.log_every_n_steps=1", "runs_dir=runs"),
        ],
        cwd=package.parent,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(package.parent), str(ROOT)]),
            "GENLAB_PLUGINS": plugins,
        },
        capture_output=True,
        text=True,
    )


def test_a_run_follows_a_kl_schedule_of_another_package(package: Path) -> None:
    outcome = train(package, "hydra.searchpath=[pkg://mylab.conf]", plugins="mylab")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "is not available" not in outcome.stderr
    (record,) = (package.parent / "runs").glob("*/*/metrics.jsonl")
    rows = [json.loads(line) for line in record.read_text().splitlines()]

    steps = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 9))
    for row in steps:
        # A row carries the number of steps taken, so its own step was the one before.
        weight = 4 * min(1.0, (row["step"] - 1) / 6) ** 2
        assert row["train/kl_weight"] == row["train/beta_effective"] == pytest.approx(weight)
        loss = row["train/reconstruction"] + weight * row["train/kl"]
        assert row["train/loss"] == pytest.approx(loss, rel=1e-5)

    (tested,) = [row for row in rows if "test/loss" in row]
    assert tested["test/kl_weight"] == 4
    loss = tested["test/reconstruction"] + 4 * tested["test/kl"]
    assert tested["test/loss"] == pytest.approx(loss, rel=1e-5)


def test_a_package_that_nobody_named_is_refused(package: Path) -> None:
    outcome = train(package, "--config-dir", str(package / "conf"), plugins="")
    assert outcome.returncode == 2
    assert "model.kl_schedule._target_='mylab.kl_schedules.Quadratic'" in outcome.stderr
    assert "GENLAB_PLUGINS" in outcome.stderr and "Traceback" not in outcome.stderr
    assert not (package.parent / "runs").exists()
