"""Print the part of requirements.lock with some packages and all of their dependencies.

    python locked.py setuptools 'genlab[video,search]'

genlab stands for the requirements in pyproject.toml. The comments of the lock (`# via`) give the
dependencies. Only the standard library is used, since this runs before anything is installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
_ELSEWHERE = {"torch"}  # requirements-torch.lock


def entries(lock: str) -> dict[str, str]:
    """Return the lines of each package by name: version, hashes, dependents."""
    found = re.findall(r"^[a-z0-9].*\n(?: .*\n)*", lock, re.MULTILINE)
    return {entry.partition("==")[0]: entry for entry in found}


def needed_by(entry: str) -> set[str]:
    """Return the packages that need this one."""
    return set(entry.partition("# via")[2].replace("#", " ").split())


def asked(requirement: str, project: dict[str, Any]) -> set[str]:
    """Return the names that a requirement stands for: its own, or the project's with extras."""
    match = re.match(r"([A-Za-z0-9._-]+)(?:\[(.*?)\])?", requirement)
    if match is None:
        raise SystemExit(f"{requirement!r} is no name of a package")
    name = re.sub(r"[._-]+", "-", match[1]).lower()
    if name != project["name"]:
        return {name}
    lines = list(project["dependencies"])
    for extra in re.findall(r"[^\s,]+", match[2] or ""):
        if extra not in project["optional-dependencies"]:
            choices = ", ".join(project["optional-dependencies"])
            raise SystemExit(f"{name} has no extra {extra!r}; there are: {choices}")
        lines += project["optional-dependencies"][extra]
    return {name for line in lines for name in asked(line, project)}


def part(lock: str, names: set[str]) -> str:
    """Return the lock's options and the entries that `names` need; exit if it lacks one."""
    all_entries = entries(lock)
    if missing := names - all_entries.keys() - _ELSEWHERE:
        raise SystemExit(f"not in requirements.lock: {', '.join(sorted(missing))}")
    kept: set[str] = set()
    more = names
    while more:
        kept |= more
        more = {name for name, entry in all_entries.items() if needed_by(entry) & more} - kept
    options = re.findall(r"^-.*\n", lock, re.MULTILINE)
    return "".join([*options, *(entry for name, entry in all_entries.items() if name in kept)])


def main(requirements: list[str]) -> None:
    """Print the part of the lock for these requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {name for requirement in requirements for name in asked(requirement, project)}
    print(part((ROOT / "requirements.lock").read_text(encoding="utf-8"), names), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
