"""The parts of which mutations of run directories are made."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from attack.sandbox import MARK

MARKUP = "\"'></script><evil onerror=evil()>"
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\rowned\x08\u202e"
FORMULA = '=HYPERLINK("http://192.0.2.1/";"x")'
TEXTS = (
    *("", "x" * 5000, "../../private", "/", "..", "\0", "\ud800", "nan", "None", "9" * 400),
    *(ESCAPES, FORMULA, "+1+1", "-1+1", "@SUM(A1)", MARKUP, "${oc.env:HOME}", "[bold]x[/nope]"),
    *("http://192.0.2.1/x", "local:///tmp", f"__import__('os').system('{MARK}')", "| a | b |"),
)
NUMBERS = (0, -1, 1, 0.5, 10**400, -(10**30), 1e308, 5e-324, float("nan"), float("inf"), 2**63)
OTHERS = (None, True, [], {}, [1], ["x"], {"x": 1}, [[[]]], [None], {"": None}, [10**400], "1")


@dataclass(frozen=True)
class Place:
    """Folders in which a mutant lies.

    Attributes:
        base: the folder of all that there is.
        run: the run directory that is mutated, possibly under another name.
    """

    base: Path
    run: Path

    @property
    def out(self) -> Path:
        return self.base / "out"

    @property
    def private(self) -> Path:
        return self.base / "private"


class Mutation(NamedTuple):
    """A change of one part of a run directory.

    Attributes:
        may_refuse: the report as a whole may be refused, and not only the run.
        reader: the one that it is meant for, if any.
        is_last: other mutations could not read what it leaves.
    """

    part: str
    change: Callable[[Place, random.Random], None]
    may_refuse: bool = False
    reader: str = ""
    is_last: bool = False


MUTATIONS: dict[str, Mutation] = {}
Change = Callable[[Place, random.Random], None]


def mutation(part: str, may_refuse: bool = False, reader: str = "") -> Callable[[Change], Change]:
    def add(change: Change) -> Change:
        MUTATIONS[change.__name__] = Mutation(part, change, may_refuse, reader)
        return change

    return add


def nodes(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all nodes below the root."""
    items: Any = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    return [found for key, value in items for found in ((*path, key), *nodes(value, (*path, key)))]


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def awkward(chance: random.Random, more: tuple[Any, ...] = ()) -> Any:
    kind = chance.choice((TEXTS, NUMBERS, OTHERS, more or OTHERS))
    return copy.deepcopy(chance.choice(kind))


def change_tree(tree: Any, chance: random.Random, value: Any) -> Any:
    """Put a value in, at a node or beside it, or remove or move a node."""
    paths = nodes(tree)
    if not paths or chance.random() < 0.02:
        return value
    *parents, key = chance.choice(paths)
    parent = at(tree, tuple(parents))
    match chance.randrange(6):
        case 0:
            del parent[key]
        case 1:
            parent[key] = copy.deepcopy(at(tree, chance.choice(paths)))
        case 2 if isinstance(parent, dict):
            parent[chance.choice(["x", "", 0, None, *TEXTS])] = value
        case 3 if isinstance(parent, dict):
            parent[f"{key}x"] = parent.pop(key)
        case _:
            parent[key] = value
    return tree


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + closing * depth


def write_sparse(path: Path, size: int) -> None:
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def dump(value: Any) -> str:
    return json.dumps(value, default=str)
