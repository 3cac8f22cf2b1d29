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


def add_ema(parser: Any, several: bool = False) -> None:
    """Add the choice of an average of the weights that is made from snapshots, or of several."""
    which, example = ("each", "0.05,0.1,0.2") if several else ("this", "0.1")
    parser.add_argument(
        "--ema",
        metavar="WIDTH,..." if several else "WIDTH",
        help=f"the average of the weights of {which} relative width, such as {example}, at the "
        "last step instead of a checkpoint; for runs of callbacks=[default,averages]",
    )


def ema_width(run: Path, text: str | None, trust: Sequence[str]) -> float | None:
    """Parse and check the one width of --ema; None without.

    Raises:
        ConfigError, RunDirectoryError: see `ema_widths`; or there are several.
    """
    widths = ema_widths(run, text, trust)
    if len(widths) > 1:
        raise ConfigError(f"--ema {text}: give one width; several are for genlab evaluate")
    return widths[0]


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


def checkpoint_of(run: Path, asked: str | None, ema: float | str | None) -> str:
    """Return the checkpoint that is read, as `trained.checkpoint_of`; the last one of an average.

    Raises:
        ConfigError, RunDirectoryError: see there; or an average of other weights is asked for.
    """
    if ema is not None and asked == "best":
        raise ConfigError("--checkpoint best: --ema is an average at the last step; leave one out")
    return trained.checkpoint_of(run, asked if ema is None else "last")


def load(run: Path, checkpoint: str, ema: float | None, trust: Sequence[str]) -> Any:
    """Load the model of a run directory with the weights of a checkpoint, or with an average.

    Args:
        checkpoint: that of `checkpoint_of`.
        ema: a width of `ema_widths`, or None.

    Raises:
        ConfigError, RunDirectoryError: see `trained.load` and `power_averages.load_average`.
    """
    from genlab.training.power_averages import load_average

    return trained.load(run, checkpoint, trust) if ema is None else load_average(run, ema, trust)


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
