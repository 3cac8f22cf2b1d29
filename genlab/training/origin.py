"""Name what a run starts from by what it is, not by where it lies."""

from __future__ import annotations

from pathlib import Path

from genlab.runs.files import sha256
from genlab.runs.identity import DIGITS
from genlab.runs.run import EXPORTED


def origin(path: str) -> str:
    """Return the identity of a run directory, or of a checkpoint: the same on every machine.

    A run is named by the digits at the end of its name, or else by its name, and a checkpoint in it
    by both; another checkpoint, and the weights of an export, by a hash of their content. What does
    not exist keeps its path, but a run that is gone is still named by its digits.
    """
    there = Path(path).resolve()
    if (there / EXPORTED).is_file():
        there /= EXPORTED
    run = there.parents[1] if there.parent.name == "checkpoints" else there
    name = found[1] if (found := DIGITS.search(run.name)) else run.name
    if there.is_dir() or (run == there and found and not there.exists()):
        return name
    if there.parent.name == "checkpoints" and there.suffix == ".ckpt":
        return f"{name}/{there.stem}"
    return sha256(there)[:8] if there.is_file() else path
