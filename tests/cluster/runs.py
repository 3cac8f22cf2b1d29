"""Compare the runs of a sweep with undisturbed ones.

    python tests/cluster/runs.py FOLDER UNDISTURBED --runs 4
    python tests/cluster/runs.py FOLDER UNDISTURBED --runs 1 --within 2e-4

All are completed, have each step of the training once, and the same metrics, result and weights:
bit for bit, or but for rounding.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from genlab.runs.run import Run, find_runs

TIMES = ("images_per_second", "mfu", "wall_seconds")


def differences(run: Run, reference: Run, within: float) -> list[str]:
    """List what is wrong with a run, in sentences; empty if nothing is."""
    if run.state != "completed" or reference.state != "completed":
        return [f"is {run.state}, the undisturbed one {reference.state}"]
    assert run.result is not None
    assert reference.result is not None
    counts = Counter(row["step"] for row in run.metrics() if "train/loss" in row)
    steps = range(1, run.result["steps"] + 1)
    said = [f"step {step} is there {counts[step]} times" for step in steps if counts[step] != 1]
    said += [f"step {step} is one too many" for step in counts if step not in steps]
    rows, theirs = list(run.metrics()), list(reference.metrics())
    if len(rows) != len(theirs):
        said.append(f"has {len(rows)} rows of metrics, the undisturbed one {len(theirs)}")
    pairs = [*zip(rows, theirs, strict=False), (run.result["metrics"], reference.result["metrics"])]
    said += [
        f"{name} is {mine.get(name)}, undisturbed {other.get(name)}, at step {mine.get('step')}"
        for mine, other in pairs
        for name in mine.keys() | other.keys()
        if name.rpartition("/")[2] not in TIMES
        and not is_close(mine.get(name), other.get(name), within)
    ]
    for name in ("best.ckpt", "last.ckpt"):
        mine, other = (
            torch.load(r.checkpoints / name, weights_only=True)["state_dict"]
            for r in (run, reference)
        )
        said += [
            f"{key} of {name} differs"
            for key, value in other.items()
            if not torch.allclose(mine[key], value, rtol=10 * within, atol=within)
        ]
    return said


def is_close(mine: Any, other: Any, within: float) -> bool:
    if isinstance(mine, float) and isinstance(other, float) and within:
        return abs(mine - other) <= within * (1 + abs(other))
    return bool(mine == other)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("undisturbed", type=Path)
    parser.add_argument("--runs", type=int, required=True, help="how many there must be")
    parser.add_argument("--within", type=float, default=0.0, help="absolute and relative, 0: equal")
    asked = parser.parse_args()
    runs, references = find_runs(asked.folder), find_runs(asked.undisturbed)
    names = [run.name for run in runs]
    if len(runs) != asked.runs or names != [run.name for run in references]:
        print(f"{asked.folder} has {names}, {asked.undisturbed} {[r.name for r in references]}")
        return 1
    failed = False
    equal = f"equal within {asked.within:g}" if asked.within else "equal bit for bit"
    for run, reference in zip(runs, references, strict=True):
        said = differences(run, reference, asked.within)
        failed = failed or bool(said)
        steps = (run.result or {}).get("steps")
        print(f"{run.name}: {'; '.join(said[:5]) or f'{steps} steps, each once, {equal}'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
