"""Arguments and output of commands about averages of the weights, made after the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from genlab.cli import trained
from genlab.cli.output import say
from genlab.errors import ConfigError
from genlab.metrics.names import describe
from genlab.runs.files import refuse_foreign

if TYPE_CHECKING:
    from genlab.report.quality import Measured

#: The columns of the table, by the names of the metrics.
_COLUMNS = {"neg_elbo": "neg_elbo", "bits_per_dim": "bits/dim", "fid_infinity": "FID∞"}


def add_ema(parser: Any) -> None:
    """Add the choice of averages of the weights that are made from snapshots."""
    parser.add_argument(
        "--ema",
        metavar="WIDTH,...",
        help="the average of the weights of each relative width, such as 0.05,0.1,0.2, at the last "
        "step instead of a checkpoint; for runs of callbacks=[default,averages]",
    )


def ema_widths(run: Path, text: str | None, trust: Sequence[str]) -> list[float | None]:
    """Parse the widths of --ema, and check that the snapshots of a run reach them; [None] without.

    Raises:
        ConfigError: they are no such widths, or the snapshots do not reach one.
        RunDirectoryError: there are no readable snapshots.
    """
    if text is None:
        return [None]
    try:
        widths = list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError as error:
        raise ConfigError(f"--ema {text}: numbers, separated by commas, are needed") from error
    from genlab.training.power_averages import KeptAverages

    kept = KeptAverages(run, trained.load(run, "last", trust))
    for width in widths:
        try:
            kept.combination(width)
        except ValueError as error:
            raise ConfigError(f"--ema {error}") from error
    return [*widths]


def show(console: Console, paths: Sequence[Path]) -> None:
    """Print what was measured of the averages of each run, and draw it against their widths."""
    from genlab.report.averaging import FOLDER, averages_of, draw_averages

    for path in paths:
        averages = averages_of(path)
        shown = [name for name in _COLUMNS if any(name in one for one in averages.values())]
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
        for heading in ("width", *(_COLUMNS[name] for name in shown)):
            table.add_column(heading, justify="right", min_width=len(heading))
        for width, one in averages.items():
            table.add_row(f"{width:g}", *(_cell(name, one.get(name)) for name in shown))
        console.print(table)
        picture = path / FOLDER / "averages.png"
        refuse_foreign(picture.parent, deep=False)
        picture.parent.mkdir(exist_ok=True)
        if draw_averages(path, picture):
            say(console, f"curve {picture}")


def _cell(name: str, measured: Measured | None) -> str:
    if measured is None:
        return "-"
    # lengths of an average differ by little
    half, decimals = (measured.high - measured.low) / 2, max(2, describe(name).decimals)
    return f"{measured.value:.{decimals}f}" + (f" ±{half:.{decimals}f}" if half else "")
