"""`genlab report`: compare the runs of a sweep, or sweeps with one another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genlab.cli.parsing import add_command
from genlab.errors import DONE

#: Bytes of the name of a comparison; file systems take 255.
_LONGEST = 200


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "report",
        "compare the runs of a sweep, or of several",
        "Print the comparison of all runs below a directory, and leave it there as a "
        "page (report.html), CSV, Markdown, PNG and SVG. Runs that do not compare, and sweeps of "
        "different questions, are groups of their own. Several directories are compared with one "
        "another, in a directory of their own. No network is needed.",
        "genlab report runs/vae-kl_weight",
        "genlab report runs/first runs/second",
    )
    parser.add_argument(
        "directories",
        type=Path,
        nargs="+",
        metavar="DIRECTORY",
        help="a sweep's directory, or any that holds runs",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIRECTORY",
        help="folder of the files (default: the directory itself; of several, a new one beside the "
        "first)",
    )
    parser.set_defaults(command=report)


def report(directories: Sequence[Path], output: Path | None) -> int:
    """Print the comparison of all runs below the directories, and write it."""
    from genlab.report import collect, print_sweep

    distinct = list(dict.fromkeys(path.resolve() for path in directories))
    # One directory may lie in another.
    records = {record.path: record for path in distinct for record in collect(path)}
    beside = _joined([path.name for path in distinct])
    default = directories[0] if len(distinct) == 1 else distinct[0].with_name(beside)
    print_sweep(list(records.values()), output or default, as_one=len(distinct) > 1)
    return DONE


def _joined(names: Sequence[str]) -> str:
    """Join names of directories to one, whose end is a digest of all where they are too long."""
    joined = "-beside-".join(names)
    data = os.fsencode(joined)
    if len(data) <= _LONGEST:
        return joined
    start = data[:_LONGEST].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(data).hexdigest()[:8]}"
