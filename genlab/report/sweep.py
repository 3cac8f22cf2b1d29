"""Report a finished sweep: an answer in words, and the files in its directory."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from genlab.errors import RunDirectoryError, is_full
from genlab.media import pictures
from genlab.report.answer import answer
from genlab.report.collect import Record, swept_keys
from genlab.report.curves import bound_by_log_snr_png
from genlab.report.escaping import markdown
from genlab.report.html import report_page
from genlab.report.media import PIXEL_BUDGET
from genlab.report.naming import setting_names
from genlab.report.plots import draw_rate_distortion
from genlab.report.replicates import has_replicates, summarise, to_csv, to_text
from genlab.report.tables import in_order, sweep_table
from genlab.report.units import draw_units
from genlab.report.videos import write_videos
from genlab.runs.files import write_atomically
from genlab.runs.text import printable

log = logging.getLogger(__name__)

#: A picture of several settings is for the eyes: as many settings, and pixels across, as fit there.
_MOST_PICTURES, _WIDEST = 100, 2000


def write_sweep(records: Sequence[Record], directory: str | os.PathLike[str]) -> list[Path]:
    """Write report.html, summary.csv, summary.md and pictures, and return what was written.

    `rate_distortion.png` and `.svg` need at least one run with both terms, `kl_by_unit.png` and
    `.svg` a VAE with the KL of its units, `bound_by_log_snr.png` a diffusion model with its curves,
    `reconstructions.png` one that drew its reconstructions and `samples.png` a diffusion model that
    drew samples. Otherwise an older picture is left as it is and not returned. Videos that at least
    two runs have are put side by side into `videos/`.

    Raises:
        RunDirectoryError: there are no records, or the directory cannot be written.
    """
    directory = Path(directory)
    table = sweep_table(records)
    html = directory / "report.html"
    csv, summary = directory / "summary.csv", directory / "summary.md"
    records = in_order(records)
    plane = ("rate_distortion.png", "rate_distortion.svg")
    units = ("kl_by_unit.png", "kl_by_unit.svg")
    pages: list[tuple[Sequence[str], str, Callable[..., bool]]] = [
        (plane, "rate against distortion", draw_rate_distortion),
        (units, "KL of each latent unit", draw_units),
        (["bound_by_log_snr.png"], "where the bounds are spent", bound_by_log_snr_png),
        (["reconstructions.png"], "reconstructions of every run", _reconstructions_png),
        (["samples.png"], "samples of every run", _samples_png),
    ]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        films = write_videos(records, directory)
        drawn = [
            (names, what)
            for names, what, draw in pages
            if draw(records, *(directory / name for name in names))
        ]
        title, text = markdown(records[0].group), markdown(answer(records))
        parts = [f"# {title}", text, table.to_markdown().rstrip()]
        points = summarise(records, swept_keys(records))
        if has_replicates(points):
            parts.append(f"```\n{to_text(points)}```")
            write_atomically(directory / "by_point.csv", to_csv(points))
        parts += [f"![{what}]({names[0]})" for names, what in drawn]
        write_atomically(html, report_page(records, directory))
        write_atomically(csv, table.to_csv())
        write_atomically(summary, "\n\n".join(parts) + "\n")
    except OSError as error:
        remedy = "make room there" if is_full(error) else "make that directory writable"
        raise RunDirectoryError(
            f"the comparison cannot be written to {directory} ({error.strerror}): {remedy}"
        ) from error
    others = ["by_point.csv"] if has_replicates(points) else []
    others += [name for names, _ in drawn for name in names]
    return [html, csv, summary, *(directory / name for name in others), *films]


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
) -> None:
    """Print the table and the answer, then write both to `directory` and print their paths.

    Raises:
        RunDirectoryError: as `write_sweep`.
    """
    console = console or Console()
    sweep_table(records).print(console)
    points = summarise(records, swept_keys(records))
    if has_replicates(points):
        console.print(Text(f"\n{printable(to_text(points))}"), soft_wrap=True, end="")
    sentences = [Text(""), Text(printable(answer(records))), Text("")]
    console.print(*sentences, sep="\n", soft_wrap=not console.is_terminal)
    for path in write_sweep(records, directory):
        console.print(Text(f"  {printable(str(path))}"), soft_wrap=True)
