"""Runs that tests train in their own process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from genlab.config.compose import compose
from genlab.runs.directory import Run
from genlab.training import run


def train_in(folder: Path, *overrides: str) -> Run:
    """Train and test a run of these overrides below a folder."""
    outcome = run.run(compose([f"runs_dir={folder}", *overrides]))
    assert outcome.path is not None
    return Run(outcome.path)


def logged(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[int, str], float]:
    """The values of rows as of metrics.jsonl, by step and name."""
    return {
        (row["step"], name): value
        for row in rows
        for name, value in row.items()
        if name not in ("step", "epoch")
    }
