"""What a sweep says when it has ended: an answer in words, and the files in its directory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from genlab import pictures
from genlab.errors import RunDirectoryError
from genlab.files import write_atomically
from genlab.report.answer import answer
from genlab.report.collect import Record
from genlab.report.curves import bound_by_log_snr_png
from genlab.report.plots import rate_distortion_png
from genlab.report.tables import sweep_table


def write_sweep(records: Sequence[Record], directory: str | os.PathLike[str]) -> list[Path]:
    """Write summary.csv, summary.md and pictures, and return those that were written.

    `rate_distortion.png` needs at least one run with both terms, `bound_by_log_snr.png` one with
    the curves of a diffusion model, `reconstructions.png` one that drew its reconstructions and
    `samples.png` a diffusion model that drew samples; without, a picture of an earlier time is left
    as it is and not named.

    Raises:
        RunDirectoryError: there are no records, or the directory cannot be written.
    """
    directory = Path(directory)
    table = sweep_table(records)
    csv, markdown = directory / "summary.csv", directory / "summary.md"
    order = [row["run"] for row in table.rows]
    in_order = sorted(records, key=lambda r: order.index(r.run_id))
    pages: list[tuple[str, str, Callable[[Sequence[Record], Path], bool]]] = [
        ("rate_distortion.png", "rate against distortion", rate_distortion_png),
        ("bound_by_log_snr.png", "where the bounds are spent", bound_by_log_snr_png),
        ("reconstructions.png", "reconstructions of every run", _reconstructions_png),
        ("samples.png", "samples of every run", _samples_png),
    ]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        drawn = {name: what for name, what, draw in pages if draw(in_order, directory / name)}
        parts = [f"# {records[0].group}", answer(records), table.to_markdown().rstrip()]
        parts += [f"![{what}]({name})" for name, what in drawn.items()]
        write_atomically(csv, table.to_csv().encode())
        write_atomically(markdown, ("\n\n".join(parts) + "\n").encode())
    except OSError as error:
        raise RunDirectoryError(
            f"the comparison cannot be written to {directory} ({error.strerror}): make that "
            f"directory writable"
        ) from error
    return [csv, markdown, *(directory / name for name in drawn)]


def _reconstructions_png(records: Sequence[Record], path: Path) -> bool:
    """The final reconstructions of each run, one under the other."""
    shown = _pictures(records, "reconstructions")
    if shown:
        pictures.save_png(path, pictures.stack(shown))
    return bool(shown)


def _samples_png(records: Sequence[Record], path: Path) -> bool:
    """The final samples of each run side by side, where a diffusion model is among the runs."""
    shown = _pictures(records, "samples") if any(r.is_diffusion for r in records) else []
    if shown:
        columns = min(4, math.ceil(math.sqrt(len(shown))))
        rows = [shown[i : i + columns] for i in range(0, len(shown), columns)]
        pictures.save_png(path, pictures.stack([_beside(row) for row in rows]))
    return bool(shown)


def _beside(shown: Sequence[pictures.Pixels]) -> pictures.Pixels:
    return pictures.stack([picture.swapaxes(0, 1) for picture in shown]).swapaxes(0, 1)


def _pictures(records: Sequence[Record], name: str) -> list[pictures.Pixels]:
    paths = [record.path / "pictures" / f"{name}-final.png" for record in records]
    return [pictures.read_png(path) for path in paths if path.is_file()]


def print_sweep(
    records: Sequence[Record],
    directory: str | os.PathLike[str],
    console: Console | None = None,
) -> None:
    """Print the table and the answer, then write both to `directory` and say where they are.

    Raises:
        RunDirectoryError: as `write_sweep`.
    """
    console = console or Console()
    sweep_table(records).print(console)
    sentences = [Text(""), Text(answer(records)), Text("")]
    console.print(*sentences, sep="\n", soft_wrap=not console.is_terminal)
    for path in write_sweep(records, directory):
        console.print(Text(f"  {path}"), soft_wrap=True)
