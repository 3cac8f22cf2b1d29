"""Terminal output that never ends a program, errors in one line, and exit codes."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from genlab.config.secrets import refuse_typed
from genlab.errors import INTERRUPTED, TRAINING_FAILED, GenlabError
from genlab.runs.text import printable
from genlab.training import interrupts
from genlab.training.faults import explanation


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
    genlab does not need it, but other packages import it where it is installed.
    """
    if os.path.lexists("matplotlibrc"):
        with contextlib.chdir("/"), contextlib.suppress(ImportError):
            importlib.import_module("matplotlib")


def command_line(main: Callable[[], int]) -> int:
    """Run a command; whatever ends it early has one sentence and its exit code.

    Nothing large is imported before, so that a lack of files or memory meets this.
    """
    make_patient()
    with ending():
        refuse_typed(sys.argv[1:])
        return main()
    raise AssertionError("`ending` swallows no exception")


@contextmanager
def ending() -> Iterator[None]:
    """End the process with one sentence and an exit code instead of an exception."""
    try:
        yield
    except interrupts.Stopped as stopped:
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except SystemExit:
        raise
    except BaseException as error:  # of the user's classes too
        code, sentence = told(error)
        if sentence is None or "traceback=true" in sys.argv:
            traceback.print_exc()
        print_error(sentence or f"{type(error).__name__}: {error}")
        sys.exit(code)


def told(error: BaseException) -> tuple[int, str | None]:
    """Return the exit code of an error and its sentence, None for one that nobody foresaw."""
    if isinstance(error, GenlabError):
        return error.exit_code, str(error)
    if sentence := explanation(error):
        return TRAINING_FAILED, sentence
    return TRAINING_FAILED, None


def escape(record: logging.LogRecord) -> bool:
    """Escape the text of a log record, which may quote a file from a stranger; keep all records.

    It is a filter of the handlers that write to a terminal.
    """
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def escape_warnings() -> None:
    """Escape the log records that Python shows where a command sets up no handler."""
    if logging.lastResort is not None:
        logging.lastResort.addFilter(escape)


def print_error(message: str) -> None:
    """Print one line on standard error, with escapes in the place of control characters."""
    print(printable(f"error: {message}"), file=sys.stderr, flush=True)
