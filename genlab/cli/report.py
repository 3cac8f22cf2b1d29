"""`genlab report`: compare the runs of a sweep."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from genlab.errors import DONE


def add(commands: Any) -> None:
    """Describe the command to the parser."""
    report = commands.add_parser(
        "report",
        help="compare the runs of a sweep",
        description="Print the comparison of all runs below a directory, and leave it there as "
        "CSV, Markdown and PNG. Needs no torch and no network.",
        epilog="example: genlab report runs/vae-kl_weight",
    )
    report.add_argument("directory", type=Path, help="a sweep's directory, or any that holds runs")
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from genlab.report import collect, print_sweep

    print_sweep(collect(options.directory), options.directory)
    return DONE
