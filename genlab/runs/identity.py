"""The identity of a run: 8 hex digits that do not depend on machine, disk or logger."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

#: Keys of the location and the hardware of a run, which do not change what it computes: they are
#: left out of its identity, so that an experiment is the same run on another machine or disk.
NOT_IDENTITY = (
    "runs_dir",
    "group",
    "overwrite",
    "traceback",
    "experiment",
    "notes",
    "tags",
    "logger",
    "launcher",
    "checkpoint_every_n_steps",
    "checkpoint_every_n_minutes",
    "data.data_dir",
    "data.device",
    "data.num_workers",
    "data.source.cache_dir",
    "trainer.accelerator",
    "trainer.benchmark",
    "trainer.deterministic",
    "trainer.devices",
    "trainer.inference_mode",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.log_every_n_steps",
    "trainer.profiler",
)


#: Keys whose value is a run directory, or a checkpoint, that a run starts from.
ORIGINS = ("init_from", "continue_from", "model.codec.run")
#: The identity at the end of the name of a run directory.
DIGITS = re.compile(r"-([0-9a-f]{8})$")


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten {"a": {"b": 1}} to {"a.b": 1}; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def is_identity(key: str) -> bool:
    """Return whether a dotted key is part of a run's identity."""
    return not any(key == left_out or key.startswith(f"{left_out}.") for left_out in NOT_IDENTITY)


def identity(config: Mapping[str, Any]) -> str:
    """Return 8 hex digits that identify what a run with this resolved config computes."""
    kept = {key: value for key, value in flatten(config).items() if is_identity(key)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]
