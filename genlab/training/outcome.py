"""The outcome of a run, for its caller: another process, a multirun or a search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """The exit code, the run directory, the result and the error of a run.

    The exit code is one of `genlab.errors`. The directory is None if the config was refused before
    there was one. The result is the content of result.json, the error one sentence.
    """

    exit_code: int
    path: Path | None = None
    result: dict[str, Any] | None = None
    message: str = ""
