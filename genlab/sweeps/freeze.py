"""Compose all jobs of a sweep before the first one starts, so that later edits do not affect them.

Hydra would compose each job from the files as they are when that job starts.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import filter_overrides
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from genlab.config import compose as composition
from genlab.config.check import Config, resolve
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


class Composed(NamedTuple):
    """The resolved config of a job, without Hydra's part, and the overrides that it came from."""

    config: Config
    overrides: list[str]


def resolved_jobs(
    loader: ConfigLoader,
    config: DictConfig,
    common: Sequence[str],
    jobs: Sequence[Sequence[str]],
) -> list[Composed]:
    """Compose each job from the `common` overrides and its own, and resolve its references.

    Hydra, which takes 0.2 s of CPU, composes once for each choice of config files; in jobs that
    differ only in values, the values are set in what it composed.
    """
    parser = OverridesParser.create()
    is_group = functools.cache(lambda key: bool(loader.get_group_options(key)))
    bases: dict[tuple[str, ...], DictConfig] = {}
    found = []
    for own in jobs:
        overrides = [*common, *own]
        parsed = parser.parse_overrides(list(own))
        replaced = [o for o in parsed if _is_value(o) and not is_group(o.key_or_group)]
        values = {o.key_or_group: o.value() for o in replaced}
        kind = tuple(str(o.key_or_group if o in replaced else o.input_line) for o in parsed)
        try:
            for key, value in values.items() if kind in bases else ():
                OmegaConf.update(bases[kind], key, value)
        except OmegaConfBaseException:
            del bases[kind]  # Hydra composes this job by itself, and says what is wrong with it
        if kind not in bases:
            cfg = loader.load_sweep_config(config, overrides)
            bases[kind] = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        found.append(Composed(resolve(bases[kind]), list(filter_overrides(overrides))))
    return found


def _is_value(override: Override) -> bool:
    """Return whether an override replaces a value, rather than adding, removing or merging one."""
    changes_keys = override.is_add() or override.is_force_add() or override.is_delete()
    return not changes_keys and not isinstance(override.value(), Mapping)


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
