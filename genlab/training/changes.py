"""The settings of a run that are not the defaults, as overrides that give them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from omegaconf import OmegaConf

from genlab.config.check import Config
from genlab.config.compose import directory
from genlab.runs.identity import flatten

#: Groups whose files set keys that others define.
_OVERLAYS = ("experiment", "debug")
#: Keys that tell where a run is and how it was started, which its path does.
_PLACE = ("runs_dir", "group", "launcher", "sweep")


def changes(config: Config, choices: Mapping[str, str], overrides: Sequence[str]) -> list[str]:
    """Return the choices that are not the default ones, and the values that were set.

    Args:
        config: of the run.
        choices: the file that was chosen in each config group.
        overrides: of the run, as typed.
    """
    typed = {override.partition("=")[0].lstrip("+"): override for override in overrides}
    default = dict(_defaults(choices))
    found = []
    for group, choice in choices.items():
        if choice != default.get(group, None if group in typed else choice):
            found.append(f"{group}={choice}")
    overlays = {group: choices[group] for group in _OVERLAYS if group in choices}
    keys = [key for group, choice in overlays.items() for key in _keys(group, choice)]
    values = flatten(config)
    for key in dict.fromkeys([*keys, *(key for key in typed if key not in choices)]):
        found.append(f"{key}={_text(values[key])}" if key in values else typed.get(key, ""))
    return [text for text in found if text and text.partition("=")[0] not in _PLACE]


def _defaults(choices: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the default choice of each group, as the main file and that of its parent name it."""
    parents = dict.fromkeys(group.rpartition("/")[0] for group in choices)
    for file in ("train", *(f"{group}/{choices[group]}" for group in parents if group in choices)):
        path = directory() / f"{file}.yaml"
        node: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
        for entry in node.get("defaults", ()):
            for group, choice in entry.items() if isinstance(entry, dict) else ():
                if not group.startswith(("/", "override ")):
                    yield str(PurePosixPath(file).parent / group), str(choice)


def _keys(group: str, choice: str) -> list[str]:
    path = directory() / group / f"{choice}.yaml"
    node: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
    return [key for key in flatten(node) if key != "defaults"]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
