"""`genlab report`: compare the runs of a sweep, or sweeps with one another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from genlab.errors import DONE


def add(commands: Any) -> None:
    """Describe the command to the parser."""
    report = commands.add_parser(
        "report",
        help="compare the runs of a sweep, or of several",
        description="Print the comparison of all runs below a directory, and leave it there as a "
        "page (report.html), CSV, Markdown, PNG and SVG. Several directories are laid side by "
        "side, in a directory of their own. Needs no torch and no network.",
        epilog="examples: genlab report runs/vae-kl_weight; genlab report runs/first runs/second",
    )
    report.add_argument(
        "directories",
        type=Path,
        nargs="+",
        metavar="DIRECTORY",
        help="a sweep's directory, or any that holds runs",
    )
    report.add_argument(
        "--output",
        type=Path,
        metavar="DIRECTORY",
        help="where to leave the comparison (default: in the directory; of several, beside the "
        "first one, as FIRST-beside-SECOND)",
    )
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from genlab.report import collect, print_sweep

    directories = list(dict.fromkeys(path.resolve() for path in options.directories))
    # One directory may lie in another.
    records = {record.path: record for path in directories for record in collect(path)}
    beside = "-beside-".join(path.name for path in directories)
    default = options.directories[0] if len(directories) == 1 else directories[0].with_name(beside)
    print_sweep(list(records.values()), options.output or default)
    return DONE
