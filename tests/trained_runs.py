"""Runs that tests train in their own process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from genlab.config.build import build
from genlab.config.check import check, from_yaml
from genlab.config.compose import compose
from genlab.data.datamodule import ImageData
from genlab.runs.run import Run
from genlab.training import run
from genlab.training.load import load


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


def load_with_data(path: Path, checkpoint: str = "best") -> tuple[Any, ImageData]:
    """A run's model, and the data that the test itself trained it on, which are not read yet."""
    config = from_yaml(Run(path).config_text or "", "config.yaml")
    return load(path, checkpoint), build(check(config["data"], "data"), "data")
