"""YAML that may come from a stranger, checked before it is parsed."""

from __future__ import annotations

import re
from typing import Any

import yaml

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast
#: Collections within one another, and values in all.
DEEPEST, MOST = 32, 20_000
# YAML takes time with the square of the length for 1:2:3:..., a number to the base of 60.
_LONG = re.compile(r"[-+]?[0-9][0-9_:.]{200}").match


def parse(text: str) -> Any:
    """Parse YAML as plain Python values.

    Raises:
        ValueError: it is no YAML, or `check` refuses it.
    """
    check(text)
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # of many kinds, by what a tag such as !!int stands before
        raise ValueError(_one_sentence(error)) from error


def check(text: str) -> None:
    """Refuse YAML that would take more memory, or a deeper stack, than the text shows.

    Raises:
        ValueError: it is no YAML, has an alias or a tag, which genlab writes none of, is nested too
            deeply, or has too many values.
    """
    depth = count = 0
    try:
        for event in yaml.parse(text, _Loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"*{event.anchor} repeats a value: write the value itself")
            count += 1
            if (tag := getattr(event, "tag", None)) is not None:
                raise ValueError(f"{tag[:60]} says a kind: write the value alone")
            if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and _LONG(event.value):
                raise ValueError(f"{event.value[:20]}... is no number: it is too long")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"more than {DEEPEST} collections lie within one another")
            if count > MOST:
                raise ValueError(f"it has more than {MOST} values")
    except yaml.YAMLError as error:
        raise ValueError(_one_sentence(error)) from error


def _one_sentence(error: Exception) -> str:
    """Put the lines of YAML's message into one."""
    return " ".join(str(error).split())
