"""Compose all jobs of a sweep before the first one starts, so that later edits do not affect them.

Hydra would compose each job from the files as they are when that job starts.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from genlab.config import compose as composition
from genlab.training.environment import git_commit

#: Keys of Hydra's part of a config that are long and that a job does not use.
_LEFT_OUT = ("help", "hydra_help", "hydra_logging", "job_logging", "launcher", "sweeper")


def compose_job(
    loader: ConfigLoader, config: DictConfig, overrides: Sequence[str], number: int, group: str
) -> dict[str, Any]:
    """Compose one job to plain containers, Hydra's part included, references unresolved.

    Its mode is that of a single run, so that it ends with its own exit code.
    """
    cfg = loader.load_sweep_config(config, list(overrides))
    with open_dict(cfg):
        cfg.hydra.job.id = str(number)
        cfg.hydra.job.num = number
        cfg.hydra.mode = RunMode.RUN
        cfg.group = group
    container = OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)
    assert isinstance(container, dict)
    for key in _LEFT_OUT:
        container["hydra"].pop(key, None)
    return {str(key): value for key, value in container.items()}


def differing(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return the keys whose overrides differ between the jobs, in order of appearance."""
    parser = OverridesParser.create()
    values: dict[str, set[str | None]] = {}
    for job in jobs:
        for override in parser.parse_overrides(list(job)):
            text = str(override.get_value_element_as_str())
            values.setdefault(override.get_key_element().lstrip("+~"), set()).add(text)
    return [key for key, found in values.items() if len(found) > 1]


def code_state() -> dict[str, Any]:
    """Return a digest of the sources and configs that jobs are made from, and the git commit."""
    return {"digest": code_digest(), "git_commit": git_commit()}


def code_digest() -> str:
    """Return a digest of sources and configs that does not depend on where they are."""
    digest = hashlib.sha256()
    for path in sorted(_sources()):
        digest.update(f"{path.name}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _sources() -> Iterator[Path]:
    yield from Path(composition.__file__).parents[1].rglob("*.py")
    yield from composition.directory().rglob("*.yaml")
    plugins = importlib.util.find_spec("hydra_plugins.genlab")
    if plugins is not None and plugins.origin is not None:
        yield from Path(plugins.origin).parent.glob("*.py")
