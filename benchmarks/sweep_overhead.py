"""Measure the overhead of a sweep: `launcher=process` against the same commands by hand.

    python benchmarks/sweep_overhead.py

Eight jobs of one epoch, two at a time and one at a time: once as one multirun, once as eight calls
of `train.py`. Measured are the wall time and the CPU time of all processes, each process with one
thread; rounds are interleaved.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rounds import HERE, ROOT, Job, environment, interleaved, save, spread, written_by

WEIGHTS = (0, 0.25, 0.5, 1, 2, 4, 8, 30)
JOB = (
    *("trainer.max_epochs=1", "data.train_images=8960", "callbacks=none", "logger=none"),
    "forecast=false",
)
_PR_SET_CHILD_SUBREAPER = 36


def start(*overrides: str) -> subprocess.Popen[bytes]:
    """Start `train.py` with these overrides."""
    return subprocess.Popen(
        [sys.executable, "train.py", *overrides, *JOB],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
    )


def sweep(slots: int, folder: str) -> None:
    """Run all weights in one command."""
    weights = ",".join(map(str, WEIGHTS))
    slotted = ("-m", "launcher=process", f"hydra.launcher.slots={slots}")
    _succeed(start(*slotted, f"model.kl_weight={weights}", f"runs_dir={folder}"))


def by_hand(slots: int, folder: str) -> None:
    """Run a command per weight, `slots` at once; the next starts as soon as one has ended."""
    waiting = iter(WEIGHTS)
    running: list[subprocess.Popen[bytes]] = []
    while True:
        for weight in itertools.islice(waiting, slots - len(running)):
            running.append(start(f"model.kl_weight={weight}", f"runs_dir={folder}"))
        if not running:
            return
        time.sleep(0.01)
        for done in [process for process in running if process.poll() is not None]:
            _succeed(done)
            running.remove(done)


def _succeed(process: subprocess.Popen[bytes]) -> None:
    if process.wait() != 0:
        sys.exit(f"{process.args} ended with {process.returncode}")


def measured(way: Callable[[int, str], None], slots: int) -> dict[str, list[float]]:
    """Return wall and CPU seconds."""
    name = way.__name__.replace("_", " ")
    with tempfile.TemporaryDirectory() as folder:
        cpu, wall = _cpu_seconds(), time.perf_counter()
        way(slots, folder)
        wall = time.perf_counter() - wall
        # a forkserver ends a moment after the command that started it
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
        cpu = _cpu_seconds() - cpu
    return {f"{slots} {name} wall": [wall], f"{slots} {name} cpu": [cpu]}


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure both ways in turns, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "sweep_overhead.md")
    options = parser.parse_args()
    # so that the times of processes whose parent has ended are counted here
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    jobs: dict[str, Job] = {
        f"{slots} {way.__name__}": lambda w=way, s=slots: measured(w, s)
        for slots in (2, 1)
        for way in (sweep, by_hand)
    }
    seconds = interleaved(jobs, options.rounds, unit="s")
    lines = [
        f"# {len(WEIGHTS)} jobs of one epoch: one sweep beside a command for each",
        "",
        written_by(f"python benchmarks/sweep_overhead.py --rounds {options.rounds}"),
        f"Median (lowest to highest) of {options.rounds} interleaved rounds, in seconds; CPU is "
        "that of all processes together.",
        "",
        "| at once | variant | wall | CPU | CPU a job |",
        "|---|---|---|---|---|",
    ]
    for slots in (2, 1):
        for name, told in (("sweep", "`launcher=process`"), ("by hand", "commands by hand")):
            wall, cpu = (seconds[f"{slots} {name} {kind}"] for kind in ("wall", "cpu"))
            each = statistics.median(cpu) / len(WEIGHTS)
            lines.append(f"| {slots} | {told} | {spread(wall)} | {spread(cpu)} | {each:.2f} |")
    save(options.out, lines)


if __name__ == "__main__":
    main()
