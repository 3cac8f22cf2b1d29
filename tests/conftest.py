"""Common state of all tests: one thread, no network, no dependence on time or chance."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

# Before torch is imported anywhere: sums depend on the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("genlab", deadline=None, derandomize=True, database=None)
settings.load_profile("genlab")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests last, so that a broken law is seen early."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(autouse=True)
def same_chance() -> None:
    """Give a test the same random numbers alone, in any order and in any process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def of_no_sweep() -> Iterator[None]:
    """Forget the multirun that a test started in this process, since its jobs ask for it there."""
    yield
    for name in ("GENLAB_SWEEP_GROUP", "GENLAB_SWEEP_KEYS", "GENLAB_SWEEP_START"):
        os.environ.pop(name, None)
