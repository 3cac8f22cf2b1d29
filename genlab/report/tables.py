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
from genlab.metrics.names import NAMES, NATS, describe, ordered
from genlab.report.collect import MODEL, MOST_KEYS, Record, one_line, swept_keys
from genlab.report.escaping import markdown, spreadsheet_cell
from genlab.report.naming import number_text, setting_text, sort_key, sweep_names
from genlab.runs.points import short_names

Row = Mapping[str, Any]
#: Columns that summary.csv has even if no run has a value for them.
_ALWAYS = tuple(f"test/{name.name}" for name in NAMES if name.is_compared)
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
_CAPTION = "reconstruction, kl and neg_elbo (at weight 1) in nats per image of the test set"
_CAPTION_OF_DIFFUSION = (
    "reconstruction (L_0), kl (L_T + diffusion) and neg_elbo in nats per image of the test set; "
    "+- is one standard error of bits/dim over its images"
)


@dataclass(frozen=True)
class Column:
    """A visible column: its heading, its text for a row, and the name of the value."""

    heading: str
    text: Callable[[Row], str]
    numeric: bool = True
    source: str = ""

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
    """

    rows: list[dict[str, Any]]
    columns: list[Column]
    caption: str = _CAPTION

    def cells(self) -> list[list[str]]:
        """Return the text of every shown cell, row by row."""
        return [[one_line(column.text(row)) for column in self.columns] for row in self.rows]

    def notes(self) -> list[str]:
        """Return the notes below the rows: the units, and why a run has no result."""
        errors = [f"{r['run']} ({r['state']}): {r['error']}" for r in self.rows if r["error"]]
        return [self.caption, *map(one_line, errors)]

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
            table.add_row(*map(Text, texts), style="red" if row["error"] else None)
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
        """Print with rules and colours on a terminal with room for it, else as plain text.

        The state is left out where there is little room and every run is completed.
        """
        console = console or Console()
        shape = self.to_rich(console.width) if console.is_terminal else None
        if console.is_terminal and all(row["state"] == "completed" for row in self.rows):
            brief = [column for column in self.columns if column.heading != "state"]
            shape = shape or replace(self, columns=brief).to_rich(console.width, gap=1)
        if shape is None:
            console.file.write(self.to_text())
        else:
            console.print(shape)
            console.print(*map(Text, self.notes()), sep="\n")


def in_order(records: Sequence[Record]) -> list[Record]:
    """Sort the records by the swept values."""
    swept = swept_keys(records)
    return sorted(
        records, key=lambda r: [*(sort_key(r.flat.get(key)) for key in swept), sort_key(r.run_id)]
    )


def sweep_table(records: Sequence[Record]) -> Table:
    """Build the table of the records, sorted by swept values, also of runs without a result.

    Raises:
        RunDirectoryError: there are no records.
    """
    if not records:
        raise RunDirectoryError("there are no runs to report: train some first")
    swept = swept_keys(records)
    records = in_order(records)
    flats = [record.flat for record in records]
    rows = [_row(record, flat, swept) for record, flat in zip(records, flats, strict=True)]
    names = list(dict.fromkeys(name for row in rows for name in _order(row)))
    names = [*names[:_MOST_NAMES], *({"error"} & set(names[_MOST_NAMES:]))]
    rows = [{name: row.get(name) for name in names} for row in rows]

    columns = [
        Column(
            one_line(name),
            _swept_text(key),
            not any(isinstance(row[key], str) for row in rows),
            key,
        )
        for key, name in short_names(swept).items()
    ]
    settings = [repr([flat.get(key) for key in swept]) for flat in flats if flat]
    if len(set(settings)) < len(settings) or not swept:
        columns.insert(0, Column("run", lambda row: row["run"], numeric=False))
    names_of_sweeps = sweep_names(records)
    if len(names_of_sweeps) > 1:
        for row, record in zip(rows, records, strict=True):
            row["sweep"] = names_of_sweeps[record.sweep]
        columns.insert(0, Column("sweep", lambda row: str(row["sweep"]), numeric=False))
    measured = _measured(rows)
    columns += measured[:MOST_KEYS]
    columns += [
        Column("forecast", _forecast, numeric=False),
        Column("verdict", lambda row: str(row["verdict"] or ""), numeric=False),
        Column("state", lambda row: row["state"], numeric=False),
    ]
    kinds = _families(rows)
    shown = [c for c in columns if all(any(c.text(row) for row in rows) for rows in kinds)]
    caption = _CAPTION_OF_DIFFUSION if any(c.heading == "diffusion" for c in shown) else _CAPTION
    if max(len(swept), len(measured)) >= MOST_KEYS:
        caption += f"; of the keys that differ and of the metrics, the first {MOST_KEYS} are shown"
    return Table(rows, shown, caption)


def _measured(rows: list[dict[str, Any]]) -> list[Column]:
    """Return a column for each metric of the test that has a heading, unlisted metrics included."""
    largest = max((abs(row["test/neg_elbo"] or 0.0) for row in rows), default=0.0)
    texts = {"test/active_units": _active_units, "test/neg_elbo_se": _error_in_bits}
    columns = []
    for metric in ordered({key for row in rows for key in row if key.startswith("test/")}):
        name = describe(metric)
        decimals = name.decimals
        if (name.unit, decimals) == (NATS, 1) and largest < 100:
            decimals = 2
        text = texts.get(metric) or _number(metric, decimals)
        if name.heading:
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


def _forecast(row: Row) -> str:
    active, rate = row.get("forecast/active_units"), row.get("forecast/rate")
    ceiling = row.get("forecast/rate_ceiling")
    if active is None:
        return "" if ceiling is None else f"at most {number_text(ceiling, 1)} nats"
    if active == 0:
        return "collapse"
    units = f"{active:g} unit{'' if active == 1 else 's'}"
    return units if rate is None else f"{units}, {number_text(rate, 1)} nats"
