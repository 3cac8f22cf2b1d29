"""Progress of long work: a bar if stderr is a terminal, else a line there every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from genlab.runs.text import in_words

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(what: str, total: int | None, start: int = 0) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the amount of work done since its last call.

    `total` is in the same unit, None if unknown. Work of less than ten seconds prints no lines.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total, completed=start)
            yield lambda amount: bar.advance(task, amount)
        return

    done = start
    first = last = time.monotonic()

    def advance(amount: int) -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last > _SECONDS_BETWEEN_LINES:
            last = now
            share = f"{100 * done / total:.0f} %" if total else f"{done:,}"
            if total and start < done < total:
                share += f", {in_words((now - first) * (total - done) / (done - start))} to go"
            # no log record: before a run has its train.log, records below a warning go nowhere
            print(f"{what}: {share}", file=sys.stderr, flush=True)

    yield advance
