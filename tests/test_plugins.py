"""A component from outside genlab, one class and one YAML, is trained with through `train.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

KL_SCHEDULE = '''
from genlab.checks import whole
from genlab.vae.kl_schedules import KLSchedule


class Quadratic(KLSchedule):
    """A parabola from 0 to 1 in `steps` optimizer steps."""

    def __init__(self, steps: int) -> None:
        self.steps = whole("model.kl_schedule.steps", steps, 1)

    def weight(self, step: int) -> float:
        return min(1.0, step / self.steps) ** 2
'''

KL_CHOICE = """
_target_: mylab.kl_schedules.Quadratic
steps: 1000
"""

NOISE_SCHEDULE = '''
from torch import Tensor

from genlab.checks import number
from genlab.diffusion.schedules import NoiseSchedule


class Root(NoiseSchedule):
    """The log-SNR falls like a power of t, from `height` to -`height`."""

    def __init__(self, height: float, power: float = 0.5) -> None:
        super().__init__()
        self.height = number("model.noise_schedule.height", height)
        self.power = number("model.noise_schedule.power", power, above=0)

    def curve(self, u: Tensor) -> Tensor:
        return self.height * (1 - 2 * u**self.power)
'''

NOISE_CHOICE = """
_target_: mylab.noise_schedules.Root
height: 10.0
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package `mylab` with a schedule of each kind, as docs/extending.md describes it."""
    folder = tmp_path / "mylab"
    for kind in ("kl_schedule", "noise_schedule"):
        (folder / "conf/model" / kind).mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "conf/__init__.py").touch()
    (folder / "kl_schedules.py").write_text(KL_SCHEDULE)
    (folder / "conf/model/kl_schedule/quadratic.yaml").write_text(KL_CHOICE)
    (folder / "noise_schedules.py").write_text(NOISE_SCHEDULE)
    (folder / "conf/model/noise_schedule/root.yaml").write_text(NOISE_CHOICE)
    return folder


def train(package: Path, *arguments: str, plugins: str) -> subprocess.CompletedProcess[str]:
    """`python train.py` for 8 steps, each of them logged, run directories beside the package."""
    return subprocess.run(
        [
            sys.executable,
            str(ROOT / "train.py"),
            *arguments,
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


SEARCH = "hydra.searchpath=[pkg://mylab.conf]"
VAE = ["model/kl_schedule=quadratic", "model.kl_schedule.steps=6", "model.kl_weight=4"]
DDPM = [
    *("model=ddpm", "model/noise_schedule=root", "model.steps=20", "model.sampler.steps=20"),
    *("model.net.channels=8", "model.net.attention=[]"),
    *("data.batch_size=8", "data.eval_batch_size=8"),
]


def test_a_run_follows_a_kl_schedule_of_another_package(package: Path) -> None:
    outcome = train(package, SEARCH, *VAE, plugins="mylab")
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


def test_a_run_follows_a_noise_schedule_of_another_package(package: Path) -> None:
    outcome = train(package, SEARCH, *DDPM, "model.noise_schedule.height=9", plugins="mylab")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    (bound,) = (package.parent / "runs").glob("*/*/bound.json")
    spent = json.loads(bound.read_text())
    assert spent["log_snr"] == pytest.approx([9 * (1 - 2 * (i / 20) ** 0.5) for i in range(1, 21)])
    assert spent["time"][-1] == 1
    knob = next(line for line in outcome.stdout.splitlines() if line.startswith("knob"))
    assert "Root schedule, T = 20: log-SNR 4.98 to -9.00" in knob


def test_a_noise_schedule_of_another_package_that_does_not_fall_is_refused(package: Path) -> None:
    outcome = train(package, SEARCH, *DDPM, "model.noise_schedule.height=-9", plugins="mylab")
    assert outcome.returncode == 2
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("error: model.noise_schedule=Root: its log-SNR does not fall")
    assert line.endswith("a schedule must be decreasing")


def test_a_package_that_nobody_named_is_refused(package: Path) -> None:
    outcome = train(package, "--config-dir", str(package / "conf"), *VAE, plugins="")
    assert outcome.returncode == 2
    assert "model.kl_schedule._target_='mylab.kl_schedules.Quadratic'" in outcome.stderr
    assert "GENLAB_PLUGINS" in outcome.stderr and "Traceback" not in outcome.stderr
    assert not (package.parent / "runs").exists()
