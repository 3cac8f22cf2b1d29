"""Runs that tests train in their own process."""

from __future__ import annotations

from pathlib import Path

from genlab.config.compose import compose
from genlab.runs.directory import Run
from genlab.training import run


def train_in(folder: Path, *overrides: str) -> Run:
    """Train and test a run of these overrides below a folder."""
    outcome = run.run(compose([f"runs_dir={folder}", *overrides]))
    assert outcome.path is not None
    return Run(outcome.path)
