"""W&B's own files of a run, read back by W&B's own reader: what was logged before a resume."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: The axis on which everything is logged.
STEP = "trainer/global_step"
#: What tells one logged row from another: the step, and what was logged at it.
Row = tuple[int, frozenset[str]]


def row(step: int, names: Mapping[str, Any]) -> Row:
    """The identity of what is logged under these names at a step; `epoch` is no name."""
    return step, frozenset(names) - {"epoch", STEP}


def folders(run_directory: Path) -> list[Path]:
    """W&B's folders in the order in which they were started, one for each start of the run."""
    found = (run_directory / "wandb").glob("*run-*/")
    return sorted(found, key=lambda folder: folder.name.removeprefix("offline-"))


def logged_rows(run_directory: Path, run_id: str) -> list[Row]:
    """The rows that W&B's files have of the run of this id, in the order of its steps on W&B.

    A folder of an offline start counts from 0 again, and `wandb sync` appends it.
    """
    at: dict[int, Row] = {}
    for folder in folders(run_directory):
        if folder.name.removeprefix("offline-").split("-", 2)[-1] != run_id:
            continue  # of a sweep that handed out the same point before
        before = len(at) if folder.name.startswith("offline-") else 0
        for log in folder.glob("*.wandb"):
            for item in _history(log):
                if STEP in item:
                    at[before + int(item["_step"])] = row(int(item[STEP]), _names(item))
    return [at[index] for index in sorted(at)]


def _names(item: Mapping[str, Any]) -> dict[str, Any]:
    """The logged names; an image or a video has its parts under `name.part`."""
    media = {key.removesuffix("._type") for key in item if key.endswith("._type")}
    parts = tuple(f"{name}." for name in media)
    plain = {k for k in item if not k.startswith(("_", *parts))}
    return dict.fromkeys(media | plain)


def _history(log: Path) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    # Of a file that a kill cut off, what is whole is printed before the reader complains.
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        record = json.loads(line)
        if record["type"] == "history":
            yield record["history"]["item"]
