"""What a multirun is called, and which knobs it turns."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf


def swept_keys(overrides: list[str]) -> list[str]:
    """The keys of a command line that have several values."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [str(o.key_or_group) for o in parsed if o.is_sweep_override()]


def group_name(overrides: list[str]) -> str:
    """What a multirun without a `group` is called: the knobs that it turns, without a clock."""
    names = [key.rsplit(".", 1)[-1].rsplit("/", 1)[-1] for key in swept_keys(overrides)]
    return f"sweep-{'-'.join(sorted(names))}" if names else "sweep"


def announce(group: str, swept: Iterable[str]) -> None:
    """Tell the jobs, through the environment, what sweep they belong to and which keys it turns.

    The seed is left out of the keys: runs that differ in it alone are replicates.
    """
    os.environ["GENLAB_SWEEP_GROUP"] = group
    os.environ["GENLAB_SWEEP_KEYS"] = json.dumps([key for key in swept if key != "seed"])


def _sweep_group(group: str | None) -> str:
    return group or os.environ.get("GENLAB_SWEEP_GROUP", "sweep")


OmegaConf.register_new_resolver("sweep_group", _sweep_group, replace=True)
