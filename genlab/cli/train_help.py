"""The help of `genlab train` and `genlab sweep`: options, choices, and keys with their comments."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from genlab.config import compose as composition
from genlab.config import hydra_job
from genlab.config.check import fitting, hints, import_class
from genlab.config.comments import comments
from genlab.runs.identity import flatten

_USAGE = {
    "train": """\
usage: genlab train [KEY=VALUE ...]      train one model
       genlab train -m KEY=A,B,C [...]   train one for each value
       genlab train GROUP=CHOICE --help  the keys of that choice
""",
    "sweep": """\
usage: genlab sweep sweep=NAME [KEY=VALUE ...]  train the models of a study
       genlab sweep sweep=NAME dry=true         print its jobs and their cost
       genlab sweep sweep=NAME KEY=A,B,C        other values, or another setting
""",
}
_OPTIONS = {
    "-m, --multirun": "one run for each combination of the values that commas separate",
    "-c job, --cfg job": "print the config instead of training; with --resolve, -p KEY",
    "-cd DIR, --config-dir DIR": "a folder of your own YAML files, in groups as below",
    "-cn NAME, --config-name NAME": "your own YAML file in the place of the main one",
    "-i, --info": "print how the config is composed, and the plugins",
    "--hydra-help": "all options of Hydra, and its own keys",
    "--version": "print the version of genlab",
}
#: Keys of `genlab sweep` alone, which no file has.
_OF_SWEEP = {
    "dry=false": "true only prints the jobs and their estimated cost",
    "trials=null": "of a search; null is the number in its file",
}
#: Where the second column begins, and the widest line, in letters.
_COLUMN, _WIDEST = 30, 100


def text(name: str, config_name: str, overrides: Sequence[str]) -> str:
    """Return the help of a command for the config and the choices that a command line names.

    Raises:
        ConfigError: the overrides do not compose.
    """
    chosen = [o for o in overrides if not _is_left_out(o)]
    cfg = composition.compose(chosen, config_name, with_hydra=True)
    with initialize_config_dir(str(composition.directory()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        explained = _comments(loader, config_name, chosen)
        groups = dict(_choices(loader, cfg))
    of_sweep = list(_OF_SWEEP.items()) if name == "sweep" else []
    parts = {
        "options, anywhere on the line": list(_OPTIONS.items()),
        "choices, as GROUP=CHOICE, and what is chosen now": list(groups.items()),
        "keys, as KEY=VALUE, and their values now": [*of_sweep, *_keys(cfg, explained)],
    }
    blocks = [f"{title}:\n{''.join(_row(*row) for row in rows)}" for title, rows in parts.items()]
    return "\n".join([_USAGE[name], *blocks]).rstrip()


def _is_left_out(override: str) -> bool:
    """Return whether an override has several values, or is a key of `genlab sweep` itself."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return False  # composing it raises an error with a remedy
    own = {row.partition("=")[0] for row in _OF_SWEEP}
    return bool(parsed.is_sweep_override()) or parsed.key_or_group in own


def _comments(loader: ConfigLoader, name: str, overrides: Sequence[str]) -> dict[str, str]:
    """Return the comments of all files of which the config is composed, by full key."""
    found: dict[str, str] = {}
    composed = loader.compute_defaults_list(name, list(overrides), RunMode.RUN)
    for file in composed.defaults:
        path = composition.directory() / f"{file.config_path}.yaml"
        if path.is_file():
            prefix = f"{file.package}." if file.package else ""
            for key, comment in comments(path.read_text(encoding="utf-8")).items():
                # the first file that has a key defines it; others only choose another value
                found.setdefault(f"{prefix}{key}", comment)
    return found


def _choices(loader: ConfigLoader, cfg: DictConfig) -> Iterator[tuple[str, str]]:
    """Yield each group that this config has, and the choices that it takes."""
    chosen = OmegaConf.to_container(cfg.hydra.runtime.choices)
    assert isinstance(chosen, dict)
    for group, choice in sorted((str(k), v) for k, v in chosen.items()):
        files = group.partition("@")[0]
        if files.startswith("hydra/") or files in hydra_job.FOLLOWING:
            continue
        own = composition.options(files)
        known = sorted({*loader.get_group_options(files), *own})
        fit = _fitting(cfg, group, own)
        listed = [
            name
            for name in known
            if not name.startswith("_")
            and (name not in own or (name in fit and _is_installed(files, name)))
        ]
        now = "none chosen" if choice is None else f"now {choice}"
        yield group, f"{', '.join(listed)} ({now})"


def _fitting(cfg: DictConfig, group: str, known: list[str]) -> list[str]:
    """Return the choices that describe a component of the class that its place needs."""
    place = group.rpartition("@")[2].replace("/", ".")
    parent, _, parameter = place.rpartition(".")
    node: Any = OmegaConf.select(cfg, parent) if parent else None
    if "@" in group or not isinstance(node, DictConfig) or "_target_" not in node:
        return known
    hint = hints(import_class(node["_target_"], parent)).get(parameter)
    return known if hint is None else fitting(hint, place)


def _is_installed(group: str, choice: str) -> bool:
    """Return whether the extra of genlab that a file says it needs is installed."""
    path = composition.directory() / group / f"{choice}.yaml"
    extra = re.search(r"genlab\[(\w+)\]", path.read_text(encoding="utf-8"))
    try:
        needed = importlib.metadata.requires("genlab") or [] if extra else []
        for line in needed:
            if extra and re.search(rf"extra == ['\"]{extra[1]}['\"]", line):
                importlib.metadata.version(re.split(r"[^\w.-]", line)[0])
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _keys(cfg: DictConfig, explained: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each key with its value, and its comment."""
    container = OmegaConf.to_container(cfg)
    assert isinstance(container, dict)
    container["hydra"] = container.pop("hydra")  # last, since Hydra puts it first
    for key, value in flatten({str(k): v for k, v in container.items()}).items():
        is_hydras = key.startswith("hydra.") and not key.startswith("hydra.launcher.")
        if key.endswith(("_target_", "_partial_")) or key in cfg.hydra.runtime.choices or is_hydras:
            continue
        if key in explained or not key.startswith("hydra."):
            yield f"{key}={_value(value)}", explained.get(key, "")


def _value(value: Any) -> str:
    if value == "???":
        return "(needed)"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _row(left: str, right: str) -> str:
    """Return a row of two columns; the second is wrapped, and begins below a long first one."""
    width = max(_COLUMN + 20, min(_WIDEST, shutil.get_terminal_size().columns))
    lines = textwrap.wrap(right, width - _COLUMN, break_on_hyphens=False)
    if len(left) + 4 > _COLUMN:
        lines.insert(0, "")
    rows = zip_longest([f"  {left}"], lines, fillvalue="")
    return "".join(f"{first:{_COLUMN}}{rest}".rstrip() + "\n" for first, rest in rows)
