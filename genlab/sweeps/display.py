"""Show a sweep while it runs: a table on a terminal, a line for each event elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from genlab.metrics.names import describe, ordered
from genlab.sweeps.supervisor import Task

_STYLES = {
    "running": "bold",
    "completed": "green",
    "failed": "red",
    "refused": "red",
    "preempted": "yellow",
    "waiting": "dim",
}
#: States whose jobs the table keeps first, when there is no room for all.
_ORDER = ("running", "failed", "refused", "preempted", "completed", "waiting")


class Lines:
    """Prints a line when a job starts or ends, and the last lines of a job that failed."""

    def __init__(self, tasks: Sequence[Task], console: Console) -> None:
        self.tasks, self.console = tasks, console
        self._width = max((len(task.name) for task in tasks), default=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        return

    def say(self, text: str) -> None:
        """Show a sentence that belongs to no job."""
        self._print(Text(text))

    def started(self, task: Task) -> None:
        """Show that a job has started, or started again."""
        again = f", attempt {task.attempts}" if task.attempts > 1 else ""
        self._print(self._line(task, "starts", f"in slot {_slot(task)}{again}"))

    def ended(self, task: Task, again: bool) -> None:
        """Show that a job has ended, or will be retried."""
        if task.state == "completed":
            found = "  ".join(f"{t} {_number(t, task.metrics[t])}" for t in _terms([task]))
            self._print(self._line(task, "completed", f"in {_clock(task.seconds)}  {found}"))
            return
        self.failed(task, again)

    def failed(self, task: Task, again: bool) -> None:
        """Show that a job failed."""
        after = f"after {_clock(task.seconds)}: {task.message}"
        self._print(self._line(task, task.state, after + (" (it is tried again)" if again else "")))
        if task.state == "failed":
            for line in task.last_lines():
                self._print(Text(f"    | {line}", style="dim"))
            self._print(Text(f"    all of it: {task.log}"))

    def refresh(self) -> None:
        """Update what is shown; called at short intervals."""

    def _line(self, task: Task, what: str, text: str) -> Text:
        over = sum(t.state not in ("waiting", "running") for t in self.tasks)
        count = f"[{over:>{len(str(len(self.tasks)))}}/{len(self.tasks)}]"
        style = _STYLES.get(what, "")
        return Text.assemble(
            f"{count} {task.name:<{self._width}}  ", (f"{what:<9}", style), f" {text.rstrip()}"
        )

    def _print(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True)
        self.console.file.flush()


class LiveTable(Lines):
    """Table with a row per job, redrawn a few times a second; failures are printed above it."""

    def __init__(self, tasks: Sequence[Task], console: Console) -> None:
        super().__init__(tasks, console)
        self._began = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.refresh()
        self._live.__exit__(*error)

    def started(self, task: Task) -> None:
        """Show that a job has started, or started again."""
        self.refresh()

    def ended(self, task: Task, again: bool) -> None:
        """Show that a job has ended, or will be retried."""
        if task.state != "completed":
            self.failed(task, again)
        self.refresh()

    def refresh(self) -> None:
        """Update what is shown; called at short intervals."""
        self._live.update(self._drawn(), refresh=True)

    def _drawn(self) -> Group:
        room = max(3, self.console.size.height - 5)
        shown: Sequence[Task] = self.tasks
        if len(shown) > room:
            kept = sorted(range(len(shown)), key=lambda i: _ORDER.index(shown[i].state))[:room]
            shown = [self.tasks[i] for i in sorted(kept)]
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("job", no_wrap=True, overflow="ellipsis")
        table.add_column("state", no_wrap=True)
        table.add_column("progress", no_wrap=True, min_width=10)
        terms = _terms(self.tasks)
        for title in ("step", "images/s", "left", *map(_heading, terms), "slot"):
            table.add_column(title, justify="right", no_wrap=True)
        for task in shown:
            table.add_row(*_row(task, terms))
        return Group(table, Text(self._footer(len(self.tasks) - len(shown)), style="dim"))

    def _footer(self, hidden: int) -> str:
        counts = [
            f"{n} {state}"
            for state in ("completed", "running", "waiting", "failed", "refused", "preempted")
            if (n := sum(t.state == state for t in self.tasks))
        ]
        more = f"; {hidden} jobs not shown" if hidden else ""
        return f"{', '.join(counts)}; {_clock(time.monotonic() - self._began)}{more}"


def _row(task: Task, terms: Sequence[str]) -> list[Text | ProgressBar]:
    style = _STYLES.get(task.state, "")
    progress = task.progress
    step, total = (progress.step, progress.total) if progress else (None, None)
    running = task.state == "running"
    state = "starting" if running and total is None else task.state
    if running and total is not None and step is not None and step >= total:
        state = "testing"
    done = task.state == "completed"
    rate = progress.images_per_second if progress and running else None
    left = progress.seconds_left if progress and running else None
    if running:
        spent = _clock(left) if left is not None else ""
    else:
        spent = f"in {_clock(task.seconds)}" if task.started else ""
    metrics = task.metrics
    bar = ProgressBar(total=total or 1, completed=(total or 1) if done else step or 0, width=10)
    return [
        Text(task.name, style=style),
        Text(state, style=style),
        bar if task.started or done else Text(""),
        Text(f"{step}/{total}" if step is not None and total else ""),
        Text(f"{rate:,.0f}" if rate else ""),
        Text(spent),
        *(Text(_number(term, metrics[term]) if term in metrics else "") for term in terms),
        Text(_slot(task) if running else ""),
    ]


def _terms(tasks: Sequence[Task]) -> list[str]:
    """Return the two metrics that are shown: reconstruction and KL, where a model has them."""
    return ordered({name for task in tasks for name in task.metrics})[:2]


def _heading(term: str) -> str:
    heading = describe(term).heading
    return heading if len(heading) <= 8 else heading[:5]


def _number(term: str, value: float) -> str:
    return f"{value:.{describe(term).decimals}f}"


def _slot(task: Task) -> str:
    if task.slot is None:
        return ""
    gpus = f" (GPU {','.join(task.slot.gpus)})" if task.slot.gpus else ""
    return f"{task.slot.number}{gpus}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))) if seconds >= 60 else f"{seconds:.0f} s"


def display(tasks: Sequence[Task], console: Console) -> Lines:
    """Return the table on a terminal, else the lines."""
    return LiveTable(tasks, console) if console.is_terminal else Lines(tasks, console)
