"""Read the rows in W&B's files of a run, with W&B's own reader, before the run is resumed.

A count of the rows passed to `wandb.Run.log` would not suffice: the client writes them in another
process, and rows that are not written yet are lost when the run is killed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: The metric that is the x axis of all others.
STEP = "trainer/global_step"
#: The identity of a logged row: its step and its names.
Row = tuple[int, frozenset[str]]


def row(step: int, names: Mapping[str, Any]) -> Row:
    """Identify a row by its step and its names, without `epoch`."""
    return step, frozenset(names) - {"epoch", STEP}


def folders(run_directory: Path) -> list[Path]:
    """List W&B's folders, one for each start of the run, in the order of the starts."""
    found = (run_directory / "wandb").glob("*run-*/")
    return sorted(found, key=lambda folder: folder.name.removeprefix("offline-"))


def logged_rows(run_directory: Path, run_id: str) -> list[Row]:
    """List the rows of the run with this id in W&B's files, in the order of its steps on W&B.

    A folder of an offline start counts its steps from 0 again, and `wandb sync` appends it.
    """
    at: dict[int, Row] = {}
    for folder in folders(run_directory):
        if folder.name.removeprefix("offline-").split("-", 2)[-1] != run_id:
            continue  # of another run, for which a sweep gave the same point
        before = len(at) if folder.name.startswith("offline-") else 0
        for log in folder.glob("*.wandb"):
            for item in _history(log):
                if STEP in item:
                    at[before + int(item["_step"])] = row(int(item[STEP]), _names(item))
    return [at[index] for index in sorted(at)]


def _names(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the logged names; an image or a video stores its parts under `name.part`."""
    media = {key.removesuffix("._type") for key in item if key.endswith("._type")}
    parts = tuple(f"{name}." for name in media)
    plain = {k for k in item if not k.startswith(("_", *parts))}
    return dict.fromkeys(media | plain)


def _history(log: Path) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    # For a file that a kill truncated, the reader returns all complete rows before it fails.
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        record = json.loads(line)
        if record["type"] == "history":
            yield record["history"]["item"]
