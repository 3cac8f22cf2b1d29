"""The folder of the config files."""

from __future__ import annotations

from pathlib import Path


def directory() -> Path:
    """Return the folder of YAML files: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"
