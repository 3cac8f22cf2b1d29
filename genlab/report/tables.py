"""The table of a sweep, one row for each run: for a terminal, for Markdown, and as CSV."""

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
from genlab.report.collect import MODEL, Record, one_line, swept_keys
from genlab.report.naming import number_text, sort_key, sweep_names, value_text
from genlab.runs.points import short_names

Row = Mapping[str, Any]
_CONTRACT = ("reconstruction", "kl", "neg_elbo", "bits_per_dim", "active_units")
_FACTS = (
    "seed",
    "wall_seconds",
    "images_per_second",
    "parameters",
    "git_commit",
    "forecast_verdict",
)
_CAPTION = "reconstruction, kl and neg_elbo (at weight 1) in nats per image of the test set"
_CAPTION_OF_DIFFUSION = (
    "reconstruction (L_0), kl (L_T + diffusion) and neg_elbo in nats per image of the test set; "
    "+- is one standard error of bits/dim over its images"
)


@dataclass(frozen=True)
class Column:
    """A column that people see: its heading, its text for a row, and the name of the value."""

    heading: str
    text: Callable[[Row], str]
    numeric: bool = True
    source: str = ""

    def value(self, row: Row) -> Any:
        """What the rows are sorted by: the number behind the text, or the text."""
        value = row.get(self.source)
        return value if isinstance(value, int | float) else self.text(row)


@dataclass(frozen=True)
class Table:
    """A sweep's rows in full precision, and the columns in which people see them.

    Attributes:
        rows: per run, every known value under its full name, None where there is none.
        columns: what is shown on a terminal and in Markdown.
        caption: the units, in one line.
    """

    rows: list[dict[str, Any]]
    columns: list[Column]
    caption: str = _CAPTION

    def cells(self) -> list[list[str]]:
        """The text of every shown cell, row by row."""
        return [[one_line(column.text(row)) for column in self.columns] for row in self.rows]

    def notes(self) -> list[str]:
        """Below the rows: the units, and of each run without a result why there is none."""
        errors = [f"{r['run']} ({r['state']}): {r['error']}" for r in self.rows if r["error"]]
        return [self.caption, *map(one_line, errors)]

    def to_rich(self, width: int | None = None, gap: int = 2) -> RichTable | None:
        """For a terminal, without the notes; None if `width` has no room for whole words.

        Headings and words may wrap between words, numbers stay whole.
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
        """Aligned columns without colour or wrapping, for logs and pipes."""
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
        """A table of GitHub's Markdown; what would be read as markup is escaped."""
        rules = ["---:" if column.numeric else ":---" for column in self.columns]
        headings = [_escape(column.heading) for column in self.columns]
        body = [[_escape(cell) for cell in cells] for cells in self.cells()]
        lines = ["| " + " | ".join(cells) + " |" for cells in (headings, rules, *body)]
        notes = [line for note in self.notes() for line in ("", _escape(note))]
        return "\n".join([*lines, *notes]) + "\n"

    def to_csv(self) -> str:
        """All values in full precision under their full names."""
        buffer = io.StringIO()
        writer = csv.DictWriter(
            buffer, fieldnames=list(self.rows[0]) if self.rows else [], lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(self.rows)
        return buffer.getvalue()

    def print(self, console: Console | None = None) -> None:
        """To a terminal with rules and colours, elsewhere and where it has no room as plain text.

        Where room is short and every run is completed, that is left out.
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
    """The records sorted by what was swept."""
    swept = swept_keys(records)
    return sorted(
        records, key=lambda r: [*(sort_key(r.flat.get(key)) for key in swept), sort_key(r.run_id)]
    )


def sweep_table(records: Sequence[Record]) -> Table:
    """The records as a table, sorted by what was swept; runs without a result are rows too.

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
    rows = [{name: row.get(name) for name in names} for row in rows]

    columns = [
        Column(name, _swept_text(key), not any(isinstance(row[key], str) for row in rows), key)
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
    largest = max((abs(row["test/neg_elbo"] or 0.0) for row in rows), default=0.0)
    decimals = 1 if largest >= 100 else 2
    columns += [
        Column(
            "reconstruction", _number("test/reconstruction", decimals), source="test/reconstruction"
        ),
        Column("kl", _number("test/kl", 2), source="test/kl"),
        Column("L_T", _number("test/kl_prior", 2), source="test/kl_prior"),
        Column("diffusion", _number("test/kl_diffusion", 2), source="test/kl_diffusion"),
        Column("neg_elbo", _number("test/neg_elbo", decimals), source="test/neg_elbo"),
        Column("bits/dim", _number("test/bits_per_dim", 3), source="test/bits_per_dim"),
        Column("+-", _error_in_bits, source="test/neg_elbo_se"),
        Column(
            "energy distance", _number("test/energy_distance", 2), source="test/energy_distance"
        ),
        Column("evaluations", _number("test/evaluations", 0), source="test/evaluations"),
        Column("s/sample", _number("test/seconds_per_sample", 3), source="test/seconds_per_sample"),
        Column("active units", _active_units, source="test/active_units"),
        Column("forecast", _forecast, numeric=False),
        Column("verdict", lambda row: str(row["verdict"] or ""), numeric=False),
        Column("state", lambda row: row["state"], numeric=False),
    ]
    kinds = _families(rows)
    shown = [c for c in columns if all(any(c.text(row) for row in rows) for rows in kinds)]
    caption = _CAPTION_OF_DIFFUSION if any(c.heading == "diffusion" for c in shown) else _CAPTION
    return Table(rows, shown, caption)


def _families(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows of each model's class that has a result, or all: what one lacks is no comparison."""
    classes = {row.get(MODEL) for row in rows if row["state"] == "completed"}
    return [[row for row in rows if row.get(MODEL) == name] for name in classes] or [rows]


def _row(record: Record, flat: Mapping[str, Any], swept: Sequence[str]) -> dict[str, Any]:
    metrics = record.result.get("metrics")
    names = list(metrics) if isinstance(metrics, Mapping) else []
    row: dict[str, Any] = {"run": record.run_id, "group": record.group}
    row |= {key: flat.get(key) for key in swept}
    row |= {"state": record.state, "verdict": record.result.get("verdict")}
    row |= {f"test/{name}": record.metric(f"test/{name}") for name in _CONTRACT}
    row |= {name: record.metric(name) for name in sorted(names)}
    if "model.latent_dim" in flat or not flat:
        row["model.latent_dim"] = flat.get("model.latent_dim")
    row |= {name: record.result.get(name) for name in _FACTS if name not in row}
    return row | {"error": record.error}


def _order(row: Mapping[str, Any]) -> list[str]:
    """The names of a row, with the error last whatever metrics other rows add."""
    return sorted(row, key=lambda name: name == "error")


def _swept_text(key: str) -> Callable[[Row], str]:
    return lambda row: value_text(key, row[key])


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


def _escape(text: str) -> str:
    for mark in ("\\", "|", "*", "`", "[", "]"):
        text = text.replace(mark, "\\" + mark)
    return text.replace("&", "&amp;").replace("<", "&lt;")
