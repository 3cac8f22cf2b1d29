"""Shared parts of the benchmarks: fresh processes of one thread, run in turns, and a table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent

#: Function that returns the measurements of a process; a dict, if it measured several variants.
Job = Callable[[], list[float] | dict[str, list[float]]]


def environment() -> dict[str, str]:
    """Return the environment for one thread and the clock callback."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
        "PYTHONPATH": str(HERE),
    }


def output(command: Sequence[str], cwd: Path = ROOT, **variables: str) -> str:
    """Run a command, and return its output.

    Raises:
        SystemExit: the command failed; the message is the end of its output.
    """
    done = subprocess.run(
        command, cwd=cwd, env={**environment(), **variables}, capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def train(*overrides: str) -> list[float]:
    """Return CPU us per image of each epoch but the first, through train.py, all records on."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "clock.jsonl"
        clock = "+callbacks.clock={_target_: clock.Clock}"
        output(
            [sys.executable, "train.py", f"runs_dir={folder}", *overrides, clock],
            BENCH_OUT=str(out),
        )
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    return [row["cpu_us_per_image"] for row in rows[1:]]


def script(name: str, *arguments: str) -> Any:
    """Run a script of this folder, and return its last output line, parsed as JSON."""
    return json.loads(output([sys.executable, str(HERE / name), *arguments]).splitlines()[-1])


def peer(folder: Path, python: str, name: str, *arguments: str) -> list[float]:
    """Return CPU microseconds per image of each chunk of one of the peers' benchmarks."""
    lines = output([python, name, *arguments, "--threads", "1"], cwd=folder).splitlines()
    row = next(line for line in lines if line.startswith("RESULT "))
    return [chunk["cpu_us_img"] for chunk in json.loads(row.removeprefix("RESULT "))["chunks"]]


def interleaved(jobs: Mapping[str, Job], rounds: int, unit: str = "us") -> dict[str, list[float]]:
    """Return the measurements of all jobs, each run once per round: A B C, A B C, ..."""
    measured: dict[str, list[float]] = {}
    for turn in range(rounds):
        for name, job in jobs.items():
            result = job()
            rows = result if isinstance(result, dict) else {name: result}
            for variant, values in rows.items():
                measured.setdefault(variant, []).extend(values)
                load = f"load {os.getloadavg()[0]:.1f}"
                print(f"round {turn + 1} {variant}: {values[-1]:.1f} {unit}, {load}", flush=True)
    return measured


def spread(values: Sequence[float]) -> str:
    """Format values as median (lowest to highest)."""
    return f"{statistics.median(values):,.1f} ({min(values):,.1f} to {max(values):,.1f})"


def machine() -> str:
    """Return the processor and the number of its usable threads."""
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {os.cpu_count()} threads, Python {platform.python_version()}"


def written_by(command: str) -> str:
    """Return the line of a page with its command, date and machine."""
    return f"`{command}`, {time.strftime('%Y-%m-%d')}, {machine()}."


def save(page: Path, lines: Sequence[str]) -> None:
    """Write a page, and print it."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
