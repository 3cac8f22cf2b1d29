"""The comments of YAML files, which explain the keys of a config."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

#: What Hydra reads and no user sets.
_OF_HYDRA = ("defaults", "_target_", "_partial_")


def comments(text: str) -> dict[str, str]:
    """Return the comment of each dotted key of a YAML file: that behind it, or else that above."""
    lines = text.splitlines()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        return {}
    found = {}
    for key, name, value in _pairs(root, ""):
        is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        end = name.end_mark if is_block else value.end_mark
        comment = _behind(lines[end.line], end.column) or _above(lines, name.start_mark.line)
        if comment:
            found[key] = comment
    return found


def _pairs(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    for name, value in node.value:
        if name.value in _OF_HYDRA:
            continue
        key = f"{prefix}{name.value}"
        yield key, name, value
        if isinstance(value, yaml.MappingNode):
            yield from _pairs(value, f"{key}.")


def _behind(line: str, column: int) -> str:
    rest = line[column:].lstrip(": ")
    return rest.lstrip("# ").rstrip() if rest.startswith("#") else ""


def _above(lines: list[str], number: int) -> str:
    told: list[str] = []
    for line in reversed(lines[:number]):
        text = line.strip()
        if not text.startswith("# ") or text.startswith("# @"):
            break
        told.insert(0, text.lstrip("# "))
    return " ".join(told)
