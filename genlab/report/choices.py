"""Names of the files, such as `linear_log_snr`, that the components of a config were made from."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from genlab.config.folder import directory
from genlab.runs.identity import flatten

_TARGET = "_target_"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def choices(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of each component of a model, by its group: `model/noise_schedule`.

    It is the name of the file in the group's folder that holds the component's classes, and of
    several such files of the one that most values are from. Of a component from no such file, it is
    the name of its class as `class_name` writes it.
    """
    model = config.get("model")
    nodes = {f"model/{key}": node for key, node in _components(model)}
    return {
        group: name
        for group, node in nodes.items()
        if (name := _file(group, node) or class_name(node.get(_TARGET)))
    }


def data_choice(config: Mapping[str, Any]) -> str:
    """Return the name of the data, by its source as for `choices`; empty if it has none."""
    data = config.get("data")
    node = data if isinstance(data, Mapping) else {}
    source = node.get("source")
    target = source.get(_TARGET) if isinstance(source, Mapping) else node.get(_TARGET)
    return _file("data", {"source": source} if source else {}) or class_name(target)


def class_name(target: Any) -> str:
    """Write the class of a `_target_` as genlab's files are named: `linear_log_snr`.

    A class from elsewhere keeps its name, for it is typed so; what is no text has an empty one.
    """
    if not isinstance(target, str):
        return ""
    package, _, name = target.rpartition(".")
    if package.partition(".")[0] != "genlab":
        return name
    return _WORDS.sub("_", name.removesuffix("Likelihood")).lower()


def _components(model: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, node in model.items() if isinstance(model, Mapping) else ():
        if isinstance(node, Mapping) and (node.get(_TARGET) or f"model/{key}" in _all_files()):
            yield str(key), node


def _file(group: str, node: Mapping[str, Any]) -> str:
    """Return the file of a group that a component was made from; empty if there is none."""
    flat = flatten(node)
    best, most = "", -1
    for name, given in _all_files().get(group, {}).items():
        targets = [key for key in given if key.rpartition(".")[2] == _TARGET]
        if targets and all(flat.get(key) == given[key] for key in targets):
            same = len(targets) + sum(flat.get(key) == value for key, value in given.items())
            best, most = (name, same) if same > most else (best, most)
    return best


@functools.cache
def _all_files() -> dict[str, dict[str, dict[str, Any]]]:
    """Read the files of `data` and of each group of `model` under dotted keys, by their names."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted([*directory().glob("data/*.yaml"), *directory().glob("model/*/*.yaml")]):
        content = yaml.load(path.read_text(encoding="utf-8"), _LOADER)
        if isinstance(content, dict):
            content.pop("defaults", None)
            group = path.parent.relative_to(directory()).as_posix()
            found.setdefault(group, {})[path.stem] = flatten(content)
    return found
