"""The table of a sweep, one row for each run, as terminal text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from genlab.errors import RunDirectoryError
from genlab.metrics.names import NAMES, NATS, describe, is_listed, ordered
from genlab.report.collect import MODEL, MOST_KEYS, Record, one_line, swept_keys
from genlab.report.endings import endings, short_id
from genlab.report.escaping import markdown, spreadsheet_cell
from genlab.report.groups import columns, images_text, is_one_kind
from genlab.report.groups import in_order as in_order
from genlab.report.naming import number_text, setting_text, sweep_names
from genlab.runs.points import short_names

Row = Mapping[Any, Any]
#: Columns that summary.csv has even if no run has a value for them.
_ALWAYS = tuple(f"test/{name.name}" for name in NAMES if name.is_compared)
#: Columns that tell how a run ended.
_OF_ENDING = ("outcome", "state")
_FACTS = (
    "seed",
    "wall_seconds",
    "images_per_second",
    "parameters",
    "git_commit",
    "forecast_verdict",
)
#: Columns of summary.csv.
_MOST_NAMES = 2000


@dataclass(frozen=True)
class Column:
    """A visible column: its heading, its text for a row, and the name of the value.

    `is_result` is False where it names the run, by its setting for instance.
    """

    heading: str
    text: Callable[[Row], str]
    numeric: bool = True
    source: str = ""
    is_result: bool = True

    def value(self, row: Row) -> Any:
        """Return the key that rows are sorted by: the number behind the text, or the text."""
        value = row.get(self.source)
        return value if isinstance(value, int | float) else self.text(row)


@dataclass(frozen=True)
class Table:
    """The rows of a sweep in full precision, and the columns that are shown.

    Attributes:
        rows: per run, every known value under its full name, None where there is none.
        columns: those shown on a terminal and in Markdown.
        caption: the units, in one line.
        endings: a line for each run without a usable result, and what to do about it.
    """

    rows: list[dict[Any, Any]]
    columns: list[Column]
    caption: str = ""
    endings: tuple[str, ...] = ()

    def cells(self) -> list[list[str]]:
        """Return the text of every shown cell, row by row."""
        return [[one_line(column.text(row)) for column in self.columns] for row in self.rows]

    def notes(self) -> list[str]:
        """Return the notes below the rows: the units, and the runs without a usable result."""
        return [line for line in (self.caption, *self.endings) if line]

    def to_rich(self, width: int | None = None, gap: int = 2) -> RichTable | None:
        """Build the table for a terminal, without the notes.

        Returns None if `width` has no room for whole words. Headings and texts wrap between words;
        numbers are not broken.
        """
        widths, least = [], []
        for column, *cells in zip(self.columns, *self.cells(), strict=True):
            heading = column.heading.split()
            whole = cells if column.numeric else " ".join(cells).split()
            widths.append(max(map(len, [*heading, *cells])))
            least.append(max(map(len, [*heading, *whole])))
        excess = 0 if width is None else sum(widths) + gap * (len(widths) - 1) - width
        for i in sorted(range(len(widths)), key=lambda i: least[i] - widths[i]):
            cut = max(0, min(excess, widths[i] - least[i]))
            widths[i] -= cut
            excess -= cut
        if excess > 0:
            return None
        table = RichTable(
            box=SIMPLE_HEAD, padding=(0, gap - 1, 0, 0), show_edge=False, pad_edge=False
        )
        for column, fixed in zip(self.columns, widths, strict=True):
            table.add_column(
                Text("\n".join(column.heading.split())),
                justify="right" if column.numeric else "left",
                vertical="bottom",
                width=fixed,
            )
        for row, texts in zip(self.rows, self.cells(), strict=True):
            # Text, since a message may hold square brackets, which rich would take for markup.
            table.add_row(
                *map(Text, texts),
                style="red" if row.get("error") or row.get("verdict") == "diverged" else None,
            )
        return table

    def to_text(self) -> str:
        """Format aligned columns without colour or wrapping, for logs and pipes."""
        lines = [[column.heading for column in self.columns], *self.cells()]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        aligned = [
            "  ".join(
                cell.rjust(width) if column.numeric else cell.ljust(width)
                for cell, width, column in zip(cells, widths, self.columns, strict=True)
            ).rstrip()
            for cells in lines
        ]
        return "\n".join([*aligned, *self.notes()]) + "\n"

    def to_markdown(self) -> str:
        """Format a table in GitHub's Markdown, with characters of markup escaped."""
        rules = ["---:" if column.numeric else ":---" for column in self.columns]
        headings = [markdown(column.heading) for column in self.columns]
        body = [[markdown(cell) for cell in cells] for cells in self.cells()]
        lines = ["| " + " | ".join(cells) + " |" for cells in (headings, rules, *body)]
        notes = [line for note in self.notes() for line in ("", markdown(note))]
        return "\n".join([*lines, *notes]) + "\n"

    def to_csv(self) -> str:
        """Format all values as CSV, in full precision and under their full names."""
        buffer = io.StringIO()
        writer = csv.DictWriter(
            buffer, fieldnames=list(self.rows[0]) if self.rows else [], lineterminator="\n"
        )
        writer.writerow({name: spreadsheet_cell(name) for name in writer.fieldnames})
        for row in self.rows:
            writer.writerow({name: spreadsheet_cell(value) for name, value in row.items()})
        return buffer.getvalue()

    def print(self, console: Console | None = None) -> None:
        """Print with rules and colours on a terminal, else as plain text.

        Where there is little room, the state is left out if every run is completed; the columns
        that still have no room follow in a table below, beside the settings again.
        """
        console = console or Console()
        shapes = self._fitting(console.width) if console.is_terminal else None
        if shapes is None:
            console.file.write(self.to_text())
            return
        for shape in shapes:
            console.print(shape)
        console.print(*map(Text, self.notes()), sep="\n")

    def _fitting(self, width: int) -> list[RichTable] | None:
        """Return the table for a terminal, in several of fewer columns where there is no room."""
        if (whole := self.to_rich(width)) is not None:
            return [whole]
        columns = self.columns
        if not self.endings:
            columns = [column for column in columns if column.heading != "state"]
        shapes: list[RichTable] = []
        shown = [column for column in columns if not column.is_result]
        rest = [column for column in columns if column.is_result]
        while rest:
            fitting = None
            for count in range(len(rest), 0, -1):
                part = replace(self, columns=[*shown, *rest[:count]])
                if (fitting := part.to_rich(width, gap=1)) is not None:
                    shapes.append(fitting)
                    rest = rest[count:]
                    break
            if fitting is None:
                return None
        return shapes


def sweep_table(records: Sequence[Record]) -> Table:
    """Build the table of the records, sorted by swept values, also of runs without a result.

    Raises:
        RunDirectoryError: there are no records.
    """
    if not records:
        raise RunDirectoryError("there are no runs to report: train some first")
    swept = swept_keys(records)
    keys, _ = columns(records)
    records = in_order(records)
    flats = [record.flat for record in records]
    rows = [_row(record, flat, swept) for record, flat in zip(records, flats, strict=True)]
    names = list(dict.fromkeys(name for row in rows for name in _order(row)))
    names = [*names[:_MOST_NAMES], *({"error"} & set(names[_MOST_NAMES:]))]
    rows = [{name: row.get(name) for name in names} for row in rows]

    named = short_names(keys)
    shown = [
        Column(
            one_line(named[key]),
            _swept_text(key),
            not any(isinstance(row[key], str) for row in rows),
            key,
            is_result=False,
        )
        for key in keys
    ]
    settings = [repr([flat.get(key) for key in keys]) for flat in flats if flat]
    if len(set(settings)) < len(settings) or not keys:
        ids = {record.run_id: short_id(record) for record in records}
        is_short = len(set(ids.values())) == len(ids)
        text = (lambda row: ids[row["run"]]) if is_short else (lambda row: str(row["run"]))
        shown.insert(0, Column("run", text, numeric=False, is_result=False))
    names_of_sweeps = sweep_names(records)
    if len(names_of_sweeps) > 1:
        for row, record in zip(rows, records, strict=True):
            row["sweep"] = names_of_sweeps[record.sweep]
        shown.insert(0, Column("sweep", lambda row: row["sweep"], False, is_result=False))
    measured = _measured(rows, records)
    shown += measured[:MOST_KEYS]
    shown.append(Column("forecast", _forecast, numeric=False))
    shown.append(Column("outcome", _outcome, numeric=False))
    shown.append(Column("state", _state, numeric=False))
    kept = _kept(shown, rows)
    caption = _caption(kept, records)
    if max(len(swept), len(measured)) >= MOST_KEYS:
        most = f"of the keys that differ and of the metrics, the first {MOST_KEYS} are shown"
        caption = f"{caption}; {most}" if caption else most
    return Table(rows, kept, caption, tuple(endings(records)))


def _kept(given: Sequence[Column], rows: list[dict[str, Any]]) -> list[Column]:
    """Return the columns that tell something about every class of model.

    Beside a class without a bound, such as a GAN, the terms of the bound are those of the other
    classes alone, and the other metrics are those that it has.
    """
    kinds = _families(rows)
    bounded = [kind for kind in kinds if any(row["test/neg_elbo"] is not None for row in kind)]
    others = [kind for kind in kinds if kind not in bounded] if bounded else []
    kept = []
    for column in given:
        needed = kinds
        if column.heading == "outcome":  # what went wrong in one class is said beside any other
            needed = [rows]
        elif others and column.source.startswith("test/"):
            needed = bounded if describe(column.source).unit in (NATS, "bits") else others
        if all(any(column.text(row) for row in kind) for kind in needed):
            kept.append(column)
    return kept


def _caption(shown: Sequence[Column], records: Sequence[Record]) -> str:
    """State the units of the columns, and the images that were measured."""
    headings = {column.heading for column in shown}
    images = images_text(records)
    if not any(column.is_result and column.heading not in _OF_ENDING for column in shown):
        return ""  # nothing was measured
    if "neg_elbo" not in headings and "reconstruction" not in headings:
        return f"measured on {images}"
    if "diffusion" in headings:
        return (
            "reconstruction (L_0), kl (L_T + diffusion) and neg_elbo in nats per image of "
            f"{images}; +- is one standard error of bits/dim over its images"
        )
    return f"reconstruction, kl and neg_elbo (at weight 1) in nats per image of {images}"


def _measured(rows: list[dict[str, Any]], records: Sequence[Record]) -> list[Column]:
    """Return a column for each metric of the test that has a heading.

    A metric that is not in the table of names is included if it is the same kind in all runs.
    """
    largest = max((abs(row["test/neg_elbo"] or 0.0) for row in rows), default=0.0)
    texts = {"test/active_units": _active_units, "test/neg_elbo_se": _error_in_bits}
    columns = []
    for metric in ordered({key for row in rows for key in row if key.startswith("test/")}):
        name = describe(metric)
        decimals = name.decimals
        if (name.unit, decimals) == (NATS, 1) and largest < 100:
            decimals = 2
        text = texts.get(metric) or _number(metric, decimals)
        if name.heading and (is_listed(metric) or is_one_kind(metric, records)):
            columns.append(Column(one_line(name.heading), text, source=metric))
    return columns


def _families(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Group the rows by the model classes that have a result; without any, return one group."""
    classes = {row.get(MODEL) for row in rows if row["state"] == "completed"}
    return [[row for row in rows if row.get(MODEL) == name] for name in classes] or [rows]


def _row(record: Record, flat: Mapping[str, Any], swept: Sequence[str]) -> dict[str, Any]:
    metrics = record.result.get("metrics")
    names = list(metrics) if isinstance(metrics, Mapping) else []
    row: dict[str, Any] = {"run": record.run_id, "group": record.group}
    row |= {key: flat.get(key) for key in swept}
    row |= {"state": record.state, "verdict": record.result.get("verdict")}
    row |= {name: record.metric(name) for name in _ALWAYS}
    row |= {name: record.metric(name) for name in sorted(names)}
    if "model.latent_dim" in flat or not flat:
        row["model.latent_dim"] = flat.get("model.latent_dim")
    row |= {name: record.result.get(name) for name in _FACTS if name not in row}
    return row | {"error": record.error}


def _order(row: Mapping[str, Any]) -> list[str]:
    """Return the names of a row, with the error last whatever metrics other rows add."""
    return sorted(row, key=lambda name: name == "error")


def _swept_text(key: str) -> Callable[[Row], str]:
    return lambda row: setting_text(key, row[key])


def _number(name: str, decimals: int) -> Callable[[Row], str]:
    return lambda row: number_text(row.get(name), decimals)


def _error_in_bits(row: Row) -> str:
    error, nats, bits = (
        row.get(f"test/{name}") for name in ("neg_elbo_se", "neg_elbo", "bits_per_dim")
    )
    return number_text(error * bits / nats, 3) if error and bits and nats else ""


def _active_units(row: Row) -> str:
    active, total = row.get("test/active_units"), row.get("model.latent_dim")
    if active is None:
        return ""
    return f"{active:g}" if total is None else f"{active:g}/{total}"


def _outcome(row: Row) -> str:
    """Return the summary of a run, unless its units or its state say the same."""
    summary = str(row["verdict"] or "")
    has_units = row.get("test/active_units") is not None
    is_said = summary == "diverged" or (has_units and summary.endswith(" active"))
    return "" if is_said else summary


def _state(row: Row) -> str:
    return "diverged" if row["verdict"] == "diverged" else str(row["state"])


def _forecast(row: Row) -> str:
    active, rate = row.get("forecast/active_units"), row.get("forecast/rate")
    ceiling = row.get("forecast/rate_ceiling")
    if active is None:
        return "" if ceiling is None else f"at most {number_text(ceiling, 1)} nats"
    if active == 0:
        return "collapse"
    units = f"{active:g} unit{'' if active == 1 else 's'}"
    return units if rate is None else f"{units}, {number_text(rate, 1)} nats"
