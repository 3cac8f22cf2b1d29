"""The layers of the house, kept by import-linter's contracts in pyproject.toml."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the package in `root`, in a process that starts from nothing."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as c; c()",
            "--no-cache",
            "--config",
            "pyproject.toml",
        ],
        cwd=root,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its contracts, to be broken."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(
        ROOT / "genlab",
        tmp_path / "genlab",
        ignore=shutil.ignore_patterns("__pycache__", "*.gz"),
    )
    return tmp_path


def test_the_contracts_are_kept() -> None:
    outcome = lint_imports(ROOT)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("nets/__init__.py", "from genlab import modules", "Each layer imports only"),
        ("vae/__init__.py", "import lightning", "The mathematics knows no framework"),
        ("runs/directory.py", "import torch", "A run directory is read without torch"),
        ("modules/base.py", "from genlab import vae", "The shared module knows no family"),
        ("helpers.py", "", "helpers"),
    ],
    ids=["upwards", "framework", "torch", "family", "homeless"],
)
def test_a_breach_is_noticed(copy: Path, file: str, line: str, broken: str) -> None:
    with (copy / "genlab" / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    outcome = lint_imports(copy)
    assert outcome.returncode != 0
    assert broken in outcome.stdout + outcome.stderr
