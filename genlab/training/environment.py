"""The environment of a run: packages, commit and hardware."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    names = ("genlab", "torch", "lightning", "hydra-core", "omegaconf", "wandb", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "python": platform.python_version()}


def git_commit() -> str | None:
    """Return the commit of the checkout, with `-dirty` if it has changes.

    Outside of a checkout, return GENLAB_REVISION, which container images set, or None.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    # an installed package may lie in somebody's checkout of something else
    is_ours = _output([*git, "ls-files", Path(__file__).name])
    commit = is_ours and _output([*git, "describe", "--always", "--dirty", "--abbrev=40"])
    return commit or os.environ.get("GENLAB_REVISION")


def _output(command: list[str]) -> str:
    """Return what a command prints, nothing if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def environment() -> dict[str, Any]:
    """Return the packages and the hardware of this process."""
    import torch  # here, since a launcher needs the commit, but not torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": versions(),
        "git_commit": git_commit(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
