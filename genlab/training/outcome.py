"""How a run ended, for whoever started it: another process, a multirun, a search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """Exit code as in `genlab.errors`; the run directory, None if the config was refused before
    there was one; the content of its result.json; what went wrong, in a sentence.
    """

    exit_code: int
    path: Path | None = None
    result: dict[str, Any] | None = None
    message: str = ""
