"""Renew the page of a sweep while it runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from genlab.report.collect import Record
from genlab.runs.files import write_atomically

if TYPE_CHECKING:
    from genlab.report.sections import Section

#: States of runs that go on, or that are still to start.
_GOING_ON = ("pending", "running", "missing")


def watch(
    collected: Callable[[], Sequence[Record]],
    directory: Path,
    seconds: float,
    as_one: bool = False,
    sections: Sequence[Section] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> Sequence[Record]:
    """Write report.html again and again, until no run goes on; return the last records.

    Until then a browser that shows the page reads it again every so many seconds. A page is
    replaced whole, so that it is never half a page.

    Args:
        collected: reads the runs.
        seconds: between two pages.
        sections: after those of every page.
        tell: called with the count of runs by state whenever it changes.

    Raises:
        RunDirectoryError: there are no records.
    """
    from genlab.report.page import report_page

    told = ""
    while True:
        records = collected()
        counts = Counter(record.state for record in records)
        is_done = not any(counts[state] for state in _GOING_ON)
        renewed = None if is_done else seconds
        page = report_page(records, directory, sections, as_one, renewed)
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / "report.html", page)
        if (text := ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))) != told:
            tell(text)
            told = text
        if is_done:
            return records
        time.sleep(seconds)
