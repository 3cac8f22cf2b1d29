"""A callback that reads the processor's clock: CPU time per image, epoch by epoch."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl


def tree_cpu_seconds() -> float:
    """Return the CPU seconds, user and system, of this process and of all that it started."""
    parents, seconds = {}, {}
    tick = os.sysconf("SC_CLK_TCK")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
            seconds[int(entry.name)] = sum(map(int, fields[11:15])) / tick
    mine = os.getpid()
    total = 0.0
    for pid, used in seconds.items():
        ancestor = pid
        while ancestor not in (mine, 0):
            ancestor = parents.get(ancestor, 0)
        total += used if ancestor == mine else 0.0
    return total


class Clock(pl.Callback):
    """Appends one JSON row per epoch to the file that BENCH_OUT names.

    A row's time runs from the end of the epoch's first step to the end of its last, so that
    validation and checkpoints are left out, as they are in the loops compared with.
    """

    def __init__(self, directory: Path) -> None:
        self.out = Path(os.environ["BENCH_OUT"])
        self.rows: list[dict[str, Any]] = []

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if batch_idx == 0:
            self.start = tree_cpu_seconds(), time.process_time(), time.perf_counter()
        elif trainer.is_last_batch:
            images = batch_idx * len(batch["image"])
            now = tree_cpu_seconds(), time.process_time(), time.perf_counter()
            tree, own, wall = (end - begin for end, begin in zip(now, self.start, strict=True))
            row = {
                "epoch": trainer.current_epoch,
                "cpu_us_per_image": tree / images * 1e6,
                "own_cpu_us_per_image": own / images * 1e6,
                "wall_us_per_image": wall / images * 1e6,
            }
            with self.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
