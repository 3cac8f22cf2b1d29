"""The groups of comparable runs as parts of a page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from genlab.report.answer import about
from genlab.report.collect import Record, manifest_of, swept_keys
from genlab.report.endings import is_lacking
from genlab.report.groups import Group
from genlab.report.media import Kind, Media, picture_kinds, video_kinds
from genlab.report.naming import data_names, sweep_names
from genlab.report.shown import ShownRun, shown_runs
from genlab.report.tables import Table, sweep_table
from genlab.runs.manifest import Manifest
from genlab.runs.points import short_names, without_seed
from genlab.runs.text import printable


@dataclass(frozen=True)
class Part:
    """A group of comparable runs, as all sections of its part of a page see it.

    Attributes:
        number: its place among the parts of the page, from 0.
        title: of the group.
        runs: in the order of their settings.
        keys, others: the keys that are swept, and further ones that differ.
        table: of the runs; its rows are in their order.
        manifests: of each sweep's directory.
        media: what is embedded in the page.
        pictures, videos: the files of the runs by kind.
        of_page: the records of all parts of the page.
    """

    number: int
    title: str
    runs: tuple[ShownRun, ...]
    keys: tuple[str, ...]
    others: tuple[str, ...]
    table: Table
    manifests: Mapping[Path, Manifest | None]
    media: Media
    pictures: tuple[Kind, ...]
    videos: tuple[Kind, ...]
    of_page: tuple[Record, ...] = ()

    @cached_property
    def records(self) -> list[Record]:
        """The records of the runs."""
        return [run.record for run in self.runs]

    @cached_property
    def sweeps(self) -> dict[Path, str]:
        """The name of each sweep, by its directory."""
        return sweep_names(self.records)

    @cached_property
    def answer(self) -> tuple[str, str]:
        """The first sentence of the answer, and the others; a point in a number ends none."""
        first, mark, rest = about(self.records).partition(". ")
        return first + ("." if mark else ""), rest

    @property
    def question(self) -> str:
        """The questions of its sweeps."""
        asked = [
            question([r for r in self.records if r.sweep == sweep], manifest)
            for sweep, manifest in self.manifests.items()
        ]
        return " ".join(dict.fromkeys(asked))

    @property
    def done(self) -> int:
        """The number of runs with a result."""
        return sum(not is_lacking(record) for record in self.records)

    @cached_property
    def settings(self) -> dict[str, tuple[str, list[int]]]:
        """The colour of each setting, and the numbers of its runs."""
        found: dict[str, tuple[str, list[int]]] = {}
        for run in self.runs:
            found.setdefault(run.point, (run.colour, []))[1].append(run.number)
        return found

    def command(self, run: ShownRun) -> str:
        """Return the command that made a run, empty where it is not recorded."""
        command = run.record.command
        python = ["python"] if command and command[0].endswith(".py") else []
        return printable(shlex.join([*python, *command]))

    def stage(self, run: ShownRun) -> str:
        """Return the step at which the final pictures of a run were drawn; empty if not known."""
        steps = run.record.result.get("steps")
        return f"after {steps:,} steps" if isinstance(steps, int) else ""

    def of_sweep(self, files: Sequence[tuple[int, Path]], sweep: int) -> list[tuple[int, Path]]:
        """Return those of the numbered files that are of a sweep's runs."""
        return [(i, path) for i, path in files if self.runs[i].sweep == sweep]

    def anchor(self, name: str) -> str:
        """Return the id of an element of this part."""
        return f"{name}-{self.number + 1}" if self.number else name

    def medium(self, path: Path) -> int | None:
        """Return the number of an embedded file; None if it is not."""
        return self._numbers.get(path)

    @cached_property
    def _numbers(self) -> dict[Path, int]:
        return {path: i for i, path in enumerate(self.media.embedded)}


def parts(found: Sequence[Group], directory: Path, media: Media) -> list[Part]:
    """Return the parts of a page for `directory`, one for each group of comparable runs.

    Raises:
        RunDirectoryError: there are no records.
    """
    made = []
    everything = tuple(record for group in found for record in group.records)
    for number, group in enumerate(found):
        table = sweep_table(group.records)
        ordered = list(group.records)
        # the films of several runs lie beside the page, and belong to a page of one group
        films = video_kinds(ordered, directory if len(found) == 1 else directory / "none")
        made.append(
            Part(
                number=number,
                title=group.title,
                runs=tuple(shown_runs(ordered, group.keys, group.others)),
                keys=group.keys,
                others=group.others,
                table=table,
                manifests={sweep: manifest_of(sweep) for sweep in sweep_names(ordered)},
                media=media,
                pictures=tuple(picture_kinds(ordered)),
                videos=tuple(films),
                of_page=everything,
            )
        )
    return made


def question(records: Sequence[Record], manifest: Manifest | None) -> str:
    """Return the question of a sweep: the one in its manifest, else one made of its swept keys."""
    if manifest is not None and manifest.question:
        return printable(manifest.question)
    data = data_names([record for record in records if record.flat])
    settings = list(short_names(without_seed(swept_keys(records))).values())
    where = f" on {data}" if data else ""
    if not settings:
        return f"How well does {records[0].family or 'this model'} do{where}?"
    verb = "do" if len(settings) > 1 else "does"
    return f"What {verb} {' and '.join(settings)} change{where}?"
