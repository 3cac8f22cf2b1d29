"""Divide the resources of a machine among the jobs of a sweep."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from genlab.errors import number, whole
from genlab.sweeps.supervisor import Limits, Slot


@dataclass(frozen=True)
class Settings:
    """The keys of `conf/launcher/process.yaml`.

    Raises:
        ValueError: a value is outside its range.
    """

    slots: int | None = None
    threads: int | None = None
    retries: int = 0
    memory_gb: float | None = None
    grace_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name in ("slots", "threads"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 1)
        whole("retries", self.retries, 0)
        number("grace_seconds", self.grace_seconds, at_least=0)
        if self.memory_gb is not None:
            number("memory_gb", self.memory_gb, above=0)

    @property
    def limits(self) -> Limits:
        """Return the limits of each job."""
        memory = {} if self.memory_gb is None else {"memory_bytes": self.memory_gb * 2**30}
        return Limits(retries=self.retries, grace_seconds=self.grace_seconds, **memory)

    def places(
        self, gpus: int, gpus_each: int, environment: Mapping[str, str] = os.environ
    ) -> list[Slot]:
        """Return the slots, each with a GPU per process of a job; GPUs are shared if too few.

        Args:
            gpus: number of GPUs for jobs; 0 if the jobs use none.
        """
        if gpus == 0:
            return [Slot(index) for index in range(self.slots or 1)]
        each = min(gpus_each, gpus)
        visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = visible if len(visible) == gpus and visible[0] else [str(i) for i in range(gpus)]
        return [
            Slot(index, tuple(names[(index * each + i) % gpus] for i in range(each)))
            for index in range(self.slots or max(1, gpus // each))
        ]

    def threads_each(self, slots: int, environment: Mapping[str, str] = os.environ) -> int:
        """Return a job's threads: `threads`, else OMP_NUM_THREADS, else its share of processors."""
        if self.threads is not None:
            return self.threads
        threads = environment.get("OMP_NUM_THREADS", "")
        if threads.isdigit() and int(threads) > 0:
            return int(threads)
        return max(1, len(os.sched_getaffinity(0)) // slots)
