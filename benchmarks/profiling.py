"""Profile the steps of a training: what share of the time a device works, on what, and the gaps.

`Profile` is a callback for a training through `train.py`, `profiled` is for a loop; both return the
same numbers. On a GPU they are those of its kernels, on a CPU those of torch's operators.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

#: Microseconds without work that count as a gap.
GAP = 5.0
#: Kernels that the table names.
NAMED = 12


def synchronize(device: torch.device) -> None:
    """Wait for all work of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(
    spans: Iterable[tuple[str, float, float]], seconds: float, steps: int
) -> dict[str, Any]:
    """Summarise what ran, as (name, begin, end) in microseconds, in the wall time of some steps.

    Spans may overlap, such as kernels of several streams; time is then counted once.
    """
    ordered = sorted(spans, key=lambda span: span[1])
    by_name: defaultdict[str, list[float]] = defaultdict(list)
    busy, gaps, last = 0.0, [], None
    for name, begin, end in ordered:
        by_name[name].append(end - begin)
        if last is not None and begin - last > GAP:
            gaps.append(begin - last)
        busy += max(0.0, end - (begin if last is None else max(begin, last)))
        last = end if last is None else max(last, end)
    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:NAMED]
    return {
        "ms": seconds / steps * 1e3,
        "busy": busy / 1e6 / seconds,
        "kernels": len(ordered) / steps,
        "gaps": len(gaps) / steps,
        "gap_ms": sum(gaps) / 1e3 / steps,
        "top": [(name, sum(t) / 1e3 / steps, len(t) / steps) for name, t in longest],
    }


class Recorder:
    """Times `steps` steps without the profiler, and then as many with it, after `first` others."""

    def __init__(self, first: int, steps: int, device: torch.device) -> None:
        self.first, self.steps, self.device = first, steps, device
        on_gpu = device.type == "cuda"
        # the profiler of a GPU alone, since that of the host would make the host slower
        activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
        self._profile = profile(activities=[activity])
        self._kind = DeviceType.CUDA if on_gpu else DeviceType.CPU

    def before(self, step: int) -> dict[str, Any] | None:
        """Take note of a step that is about to begin; return the summary after the last."""
        if step not in (self.first, self.first + self.steps, self.first + 2 * self.steps):
            return None
        synchronize(self.device)
        now = time.perf_counter()
        if step == self.first:
            self._began = now
            return None
        if step == self.first + self.steps:
            self._plain = now - self._began
            self._profile.start()
            self._began = time.perf_counter()
            return None
        self._profile.stop()
        found = summary(self._spans(), now - self._began, self.steps)
        return {**found, "plain_ms": self._plain / self.steps * 1e3}

    def _spans(self) -> list[tuple[str, float, float]]:
        return [
            (event.name, event.time_range.start, event.time_range.end)
            for event in self._profile.events()
            if event.device_type == self._kind
            and not event.is_user_annotation
            and _is_outermost(event)
        ]


def _is_outermost(event: Any) -> bool:
    """Return whether no other operator called this one; annotations are none."""
    parent = event.cpu_parent
    return parent is None or (parent.is_user_annotation and _is_outermost(parent))


def profiled(step: Callable[[], None], first: int, steps: int, device: torch.device) -> Any:
    """Call a step of a training until it is profiled, and return the summary."""
    recorder = Recorder(first, steps, device)
    number = 0
    while (found := recorder.before(number)) is None:
        step()
        number += 1
    return found


class Profile(pl.Callback):
    """Profiles a training, writes the summary to the file that BENCH_OUT names, and ends it."""

    def __init__(self, first: int, steps: int) -> None:
        self.first, self.steps = first, steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._recorder = Recorder(self.first, self.steps, pl_module.device)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        found = self._recorder.before(trainer.global_step)
        if found is not None:
            Path(os.environ["BENCH_OUT"]).write_text(json.dumps(found))
            os._exit(0)  # the rest of the run is of no interest
