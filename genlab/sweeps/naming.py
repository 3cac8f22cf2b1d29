"""The name of a multirun, and the keys that it varies."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from genlab.runs.identity import flatten, is_identity
from genlab.runs.points import Start, without_seed


def multirun_keys(overrides: list[str]) -> list[str]:
    """Return the keys of a command line that have several values."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [str(o.key_or_group) for o in parsed if o.is_sweep_override()]


def group_name(config: DictConfig, overrides: list[str]) -> str:
    """Name a multirun without a `group` after what it compares, without a time stamp.

    The digits are of everything in the config but the values that vary, so that two multiruns that
    differ in anything else have different names.
    """
    keys = multirun_keys(overrides)
    nested = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    assert isinstance(nested, dict)
    varied = [key.replace("/", ".") for key in keys]
    fixed = {
        key: value
        for key, value in flatten({str(k): v for k, v in nested.items() if k != "hydra"}).items()
        if is_identity(key) and not any(f"{key}.".startswith(f"{one}.") for one in varied)
    }
    digits = hashlib.sha256(json.dumps(fixed, sort_keys=True, default=str).encode()).hexdigest()
    names = sorted(key.rsplit(".", 1)[-1].rsplit("/", 1)[-1] for key in keys)
    return "-".join(["sweep", *names, digits[:6]])


def announce(group: str, swept: Iterable[str], start: Start | None = None) -> None:
    """Pass the sweep and the keys that vary to the jobs, in environment variables.

    The seed is left out of the keys: runs that differ only in it are replicates.
    """
    os.environ["GENLAB_SWEEP_GROUP"] = group
    os.environ["GENLAB_SWEEP_KEYS"] = json.dumps(without_seed(swept))
    if start is None:
        os.environ.pop("GENLAB_SWEEP_START", None)
    else:
        os.environ["GENLAB_SWEEP_START"] = json.dumps(start)


def _sweep_group(group: str | None) -> str:
    return group or os.environ.get("GENLAB_SWEEP_GROUP", "sweep")


OmegaConf.register_new_resolver("sweep_group", _sweep_group, replace=True)
