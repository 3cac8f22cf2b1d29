"""Launchers of others: their jobs know the sweep's name, and the comparison comes at the end."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from genlab.config import compose as composition
from genlab.errors import ConfigError
from genlab.runs.manifest import Manifest
from genlab.runs.run import find_runs

ROOT = Path(__file__).parents[2]
TINY = [
    *("trainer=smoke", "trainer.max_epochs=1", "data.train_images=512"),
    *("model.net.encoder.hidden=[16]", "model.net.decoder.hidden=[16]"),
    *("callbacks=none", "logger=none"),
]
LOCAL = {
    "joblib": ["launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["launcher=submitit_local"],
}


def start(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, script, *arguments],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith("GENLAB_")},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LOCAL)
def test_a_study_ends_in_its_comparison(launcher: str, tmp_path: Path) -> None:
    asked = ["sweep=kl_weight", *TINY, *LOCAL[launcher], "model.kl_weight=0,30", "seed=0"]
    outcome = start("sweep.py", *asked, f"runs_dir={tmp_path}")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    folder = tmp_path / "kl_weight"
    runs = find_runs(tmp_path)
    assert {run.path.parent for run in runs} == {folder}
    assert len(runs) == 2 and all(run.is_completed for run in runs)
    manifest = Manifest.read(folder)
    assert manifest is not None
    assert {job.run_id for job in manifest.jobs} == {run.name for run in runs}
    assert "kl_weight 30" in outcome.stdout and (folder / "rate_distortion.png").exists()

    stamps = {run.path: run.metrics_path.stat().st_mtime_ns for run in runs}
    again = start("sweep.py", *asked, f"runs_dir={tmp_path}")
    assert again.returncode == 0
    assert {r.path: r.metrics_path.stat().st_mtime_ns for r in find_runs(tmp_path)} == stamps


@pytest.mark.slow
def test_a_multirun_of_train_keeps_its_name_and_tells_a_failure(tmp_path: Path) -> None:
    outcome = start(
        "train.py",
        *("-m", *TINY, *LOCAL["joblib"], "model.latent_dim=2,3", f"runs_dir={tmp_path}"),
        "model.optimizer.lr=1e30",
    )
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr
    runs = find_runs(tmp_path)
    (name,) = {run.path.parent.name for run in runs}
    assert re.fullmatch("sweep-latent_dim-[0-9a-f]{6}", name)
    assert [run.state for run in runs] == ["failed", "failed"]
    assert "No run has a result yet (2 failed)" in outcome.stdout


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "slurm", "ray"])
def test_a_launcher_composes_or_says_what_brings_it(launcher: str) -> None:
    family = "submitit" if launcher in ("submitit_local", "slurm") else launcher
    plugin = f"hydra_plugins.hydra_{family}_launcher"
    if importlib.util.find_spec(plugin) is not None:
        cfg = composition.compose([f"launcher={launcher}"], with_hydra=True)
        assert cfg.launcher == launcher
        assert str(cfg.hydra.launcher._target_).startswith(plugin)
    else:
        with pytest.raises(ConfigError, match=rf"is not installed: pip install genlab\[{family}\]"):
            composition.compose([f"launcher={launcher}"])
