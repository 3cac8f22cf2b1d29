"""Terminal output that never ends a program, errors in one line, and exit codes."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from genlab.errors import INTERRUPTED, REFUSED, GenlabError
from genlab.runs.text import printable


class _Patient(io.TextIOWrapper):
    """Stream that drops text which cannot be written, as to a closed pipe or a full disk."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError:
            self._go_on_into_nothing()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            self._go_on_into_nothing()

    def _go_on_into_nothing(self) -> None:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.fileno())
        os.close(nothing)


def make_patient() -> None:
    """Make printing never end the program: `train.py ... | head -1` trains to its end.

    Letters that the terminal's encoding lacks become question marks. Closed descriptors are
    reopened, since the next opened file would otherwise get their number and be printed into.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8", closefd=False))
        elif type(stream) is io.TextIOWrapper and stream is getattr(sys, f"__{name}__"):
            # the old stream stays in sys, and so does not close the shared descriptor
            patient = _Patient(
                stream.buffer, stream.encoding, "replace", line_buffering=stream.line_buffering
            )
            setattr(sys, name, patient)


def import_from_here() -> None:
    """Make packages in the working directory importable, for every command."""
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append("")


def ignore_configuration_here() -> None:
    """Keep matplotlib from reading a `matplotlibrc` of the working directory, whoever imports it.

    It looks there first, once, when it is imported; with `text.usetex` it would start LaTeX.
    """
    if os.path.lexists("matplotlibrc"):
        with contextlib.chdir("/"):
            import matplotlib  # noqa: F401


def command_line(main: Callable[[], Any]) -> None:
    """Run a Hydra main function; report composition errors in one line, with exit code 2."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # so that the errors come here
    make_patient()
    import_from_here()
    try:
        main()
    except GenlabError as error:
        print_error(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        from genlab.config.compose import refusal  # imports Hydra, which no other command needs

        sentence = refusal(error, sys.argv[1:])
        if sentence is None:
            raise
        if "traceback=true" in sys.argv:
            traceback.print_exc()
        print_error(sentence)
        sys.exit(REFUSED)


def print_error(message: str) -> None:
    """Print one line on standard error, with escapes in the place of control characters."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"error: {printable(message)}", markup=False)
