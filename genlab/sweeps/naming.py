"""The name of a multirun, and the keys that it varies."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from genlab.runs.points import without_seed


def multirun_keys(overrides: list[str]) -> list[str]:
    """Return the keys of a command line that have several values."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [str(o.key_or_group) for o in parsed if o.is_sweep_override()]


def group_name(overrides: list[str]) -> str:
    """Name a multirun without a `group` after the keys that it varies, without a time stamp."""
    names = [key.rsplit(".", 1)[-1].rsplit("/", 1)[-1] for key in multirun_keys(overrides)]
    return f"sweep-{'-'.join(sorted(names))}" if names else "sweep"


def announce(group: str, swept: Iterable[str]) -> None:
    """Pass the sweep and the keys that vary to the jobs, in environment variables.

    The seed is left out of the keys: runs that differ only in it are replicates.
    """
    os.environ["GENLAB_SWEEP_GROUP"] = group
    os.environ["GENLAB_SWEEP_KEYS"] = json.dumps(without_seed(swept))


def _sweep_group(group: str | None) -> str:
    return group or os.environ.get("GENLAB_SWEEP_GROUP", "sweep")


OmegaConf.register_new_resolver("sweep_group", _sweep_group, replace=True)
