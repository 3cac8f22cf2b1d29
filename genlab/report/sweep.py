"""Report a finished sweep: an answer in words, and the files in its directory."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from genlab.errors import RunDirectoryError, is_full
from genlab.media import pictures
from genlab.report.answer import about
from genlab.report.bounds import draw_bounds
from genlab.report.collect import Record, swept_keys
from genlab.report.escaping import markdown
from genlab.report.families import TITLES, about_families, comparisons, family_tables
from genlab.report.groups import Group, apart, groups, in_order
from genlab.report.media import PIXEL_BUDGET
from genlab.report.models import comparison, draw_models
from genlab.report.naming import setting_names
from genlab.report.plane import draw_rate_distortion as draw_plane
from genlab.report.quality import draw_quality
from genlab.report.replicates import has_replicates, rows, summarise, to_csv, to_text
from genlab.report.replicates import table as settings_table
from genlab.report.tables import sweep_table
from genlab.report.units import draw_units
from genlab.report.videos import write_videos
from genlab.runs.files import write_atomically
from genlab.runs.text import printable

if TYPE_CHECKING:
    from genlab.report.sections import Section

log = logging.getLogger(__name__)

#: A picture of several settings is for the eyes: as many settings, and pixels across, as fit there.
_MOST_PICTURES, _WIDEST = 100, 2000
#: Groups that have pictures of their own; the page has the charts of all.
_MOST_DRAWN = 8


def write_sweep(
    records: Sequence[Record],
    directory: str | os.PathLike[str],
    as_one: bool = False,
    sections: Sequence[Section] = (),
) -> list[Path]:
    """Write report.html, summary.csv, summary.md and pictures, and return what was written.

    `rate_distortion.png` and `.svg` need at least one run with both terms, `models.png` and `.svg`
    two models that were measured at the same settings, and else `quality.png` and `.svg` two
    settings that were measured; `kl_by_unit.png` and `.svg` a VAE with the KL of its units,
    `bound_by_log_snr.png` a diffusion model with its curves, `reconstructions.png` one that drew
    its reconstructions and `samples.png` a diffusion model that drew samples; `by_point.csv` needs
    a setting with several seeds. Otherwise an older file is left as it is and not returned. Each of
    several groups that do not compare has pictures of its own, with its number in their names.
    Videos that at least two runs have are put side by side into `videos/`, if all runs compare. The
    page has further `sections` after its own.

    Raises:
        RunDirectoryError: there are no records, or the directory cannot be written.
    """
    from genlab.report.page import report_page

    directory = Path(directory)
    table = sweep_table(records)
    found = groups(records, as_one)
    html, csv, summary = (directory / n for n in ("report.html", "summary.csv", "summary.md"))
    parts = [f"# {markdown(records[0].group)}"] if len(found) == 1 else [_heading(found)]
    points, pictured = [], []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        films = write_videos(in_order(records), directory) if len(found) == 1 else []
        for number, group in enumerate(found, start=1):
            suffix = f"-{number}" if len(found) > 1 else ""
            parts += [f"## {markdown(group.title)}"] if suffix else []
            parts += [markdown(about(group.records)), sweep_table(group.records).to_markdown()[:-1]]
            settings = summarise(group.records, swept_keys(group.records))
            if has_replicates(settings):
                parts.append(f"```\n{to_text(settings)}```")
                title = {"comparable": group.title} if suffix else {}
                points += [title | row for row in rows(settings)]
            drawn = _draw(group.records, directory, suffix) if number <= _MOST_DRAWN else []
            parts += [f"![{what}]({names[0]})" for names, what in drawn]
            pictured += [name for names, _ in drawn for name in names]
        parts += _of_families(records)
        if points:
            write_atomically(directory / "by_point.csv", to_csv(points))
        write_atomically(html, report_page(records, directory, sections, as_one))
        write_atomically(csv, table.to_csv())
        write_atomically(summary, "\n\n".join(parts) + "\n")
    except OSError as error:
        remedy = "make room there" if is_full(error) else "make that directory writable"
        raise RunDirectoryError(
            f"the comparison cannot be written to {directory} ({error.strerror}): {remedy}"
        ) from error
    others = ["by_point.csv"] if points else []
    return [html, csv, summary, *(directory / name for name in (*others, *pictured)), *films]


def _of_families(records: Sequence[Record]) -> list[str]:
    """Return the tables of classes of models under equal budgets, as Markdown."""
    found = comparisons(records)
    tables = zip(TITLES, family_tables(found), strict=False)
    parts = [text for title, table in tables for text in (f"## {title}", table.to_markdown()[:-1])]
    return [*parts, markdown(about_families(found))] if parts else []


def _heading(found: Sequence[Group]) -> str:
    runs = sum(len(group.records) for group in found)
    return f"# {runs} runs in {len(found)} groups\n\n{markdown(apart(found))}"


def _draw(records: Sequence[Record], directory: Path, suffix: str) -> list[tuple[list[str], str]]:
    """Draw the pictures of comparable runs; return the names of each and what it shows."""
    pages: list[tuple[Sequence[str], str, Callable[..., bool]]] = [
        (("rate_distortion.png", "rate_distortion.svg"), "rate against distortion", draw_plane),
        (("models.png", "models.svg"), "quality and bound of each model", draw_models),
        (("quality.png", "quality.svg"), "FID of samples and of reconstructions", _quality),
        (("kl_by_unit.png", "kl_by_unit.svg"), "KL of each latent unit", draw_units),
        (["bound_by_log_snr.png"], "where the bounds are spent", draw_bounds),
        (["reconstructions.png"], "reconstructions of every run", _reconstructions_png),
        (["samples.png"], "samples of every run", _samples_png),
    ]
    drawn = []
    for names, what, draw in pages:
        numbered = [name.replace(".", f"{suffix}.") for name in names]
        if draw(records, *(directory / name for name in numbered)):
            drawn.append((numbered, what))
    return drawn


def _quality(records: Sequence[Record], *paths: Path) -> bool:
    """Draw the FID of each setting, unless the picture of several models has it."""
    return comparison(records) is None and draw_quality(records, *paths)


def _reconstructions_png(records: Sequence[Record], path: Path) -> bool:
    """Write the final reconstructions of each setting, one below the other."""
    shown = list(_pictures(records, "reconstructions").values())
    if shown:
        pictures.save_png(path, pictures.stack(shown))
    return bool(shown)


def _samples_png(records: Sequence[Record], path: Path) -> bool:
    """Lay the final samples of each setting side by side, where samples are what to compare.

    They are where a model diffuses, or has no reconstructions.
    """
    found = _pictures(records, "samples")
    reconstructed = _pictures(records, "reconstructions")
    if not any(r.is_diffusion for r in records) and found.keys() <= reconstructed.keys():
        return False
    shown = [
        pictures.captioned(picture, name) if len(found) > 1 else picture
        for name, picture in found.items()
    ]
    if shown:
        columns = min(4, math.ceil(math.sqrt(len(shown))))
        rows = [shown[i : i + columns] for i in range(0, len(shown), columns)]
        pictures.save_png(path, pictures.stack([_beside(row) for row in rows]))
    return bool(shown)


def _beside(shown: Sequence[pictures.Pixels]) -> pictures.Pixels:
    return pictures.stack([picture.swapaxes(0, 1) for picture in shown]).swapaxes(0, 1)


def _pictures(records: Sequence[Record], name: str) -> dict[str, pictures.Pixels]:
    """Map the name of each setting to the picture of its first seed that has one."""
    found: dict[str, pictures.Pixels] = {}
    pixels = PIXEL_BUDGET
    for setting, record in zip(setting_names(records, swept_keys(records)), records, strict=True):
        if setting in found or len(found) == _MOST_PICTURES:
            continue
        for path in record.files(f"pictures/{name}-final.png"):
            try:
                width, height = pictures.size_of_png(path)
                if (pixels := pixels - max(width, _WIDEST) * height) < 0:
                    raise RunDirectoryError(f"{path}: the pictures before it have enough pixels")
                found[setting] = pictures.read_png(path, _WIDEST)
            except RunDirectoryError as error:
                log.warning("left out: %s", printable(str(error)))
    return found


def print_sweep(
    records: Sequence[Record],
    directory: str | os.PathLike[str],
    console: Console | None = None,
    as_one: bool = False,
    sections: Sequence[Section] = (),
) -> None:
    """Print the table and the answer of each group, then write both and print their paths.

    Args:
        records: the runs.
        directory: the files are written there.
        console: where to print.
        as_one: as for `groups`.

    Raises:
        RunDirectoryError: as `write_sweep`.
    """
    console = console or Console()
    is_piped = not console.is_terminal
    found = groups(records, as_one) or [Group("", (), (), ())]
    if len(found) > 1:
        console.print(Text(printable(apart(found))), soft_wrap=is_piped)
    for group in found:
        if len(found) > 1:
            console.print(Text(f"\n{printable(group.title)}", style="bold"), soft_wrap=is_piped)
        sweep_table(group.records).print(console)
        points = summarise(group.records, swept_keys(group.records))
        if has_replicates(points):
            console.print()
            settings_table(points).print(console)
        sentences = [Text(""), Text(printable(about(group.records)))]
        console.print(*sentences, sep="\n", soft_wrap=is_piped)
    families = comparisons(records)
    for table in family_tables(families):
        console.print()
        table.print(console)
    if verdicts := about_families(families):
        console.print(Text(f"\n{printable(verdicts)}"), soft_wrap=is_piped)
    console.print()
    for path in write_sweep(records, directory, as_one, sections):
        console.print(Text(f"  {printable(str(path))}"), soft_wrap=True)
