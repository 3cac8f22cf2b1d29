"""`genlab report`: compare the runs of a sweep, or sweeps with one another."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.cli.parsing import add_command, number
from genlab.errors import DONE, ConfigError
from genlab.training.terminal import import_from_here

if TYPE_CHECKING:
    from genlab.report import Record
    from genlab.report.sections import Section

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
    parser.add_argument(
        "--watch",
        type=number("--watch"),
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="renew the page every so many seconds (10 if left out) until no run goes on, then "
        "print the comparison",
    )
    parser.add_argument(
        "--section",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="add a section of your own to the page: a genlab.report.sections.Section; its module "
        "is Python code that is run",
    )
    parser.set_defaults(command=report)


def report(
    directories: Sequence[Path], output: Path | None, watch: float | None, section: Sequence[str]
) -> int:
    """Print the comparison of all runs below the directories, and write it."""
    from genlab.report import collect, print_sweep

    if watch is not None and not watch > 0:
        raise ConfigError(f"--watch {watch:g}: give a number of seconds above 0")
    sections = [_section(name) for name in section]
    distinct = list(dict.fromkeys(path.resolve() for path in directories))
    beside = _joined([path.name for path in distinct])
    default = directories[0] if len(distinct) == 1 else distinct[0].with_name(beside)
    place, as_one = output or default, len(distinct) > 1
    if output is not None and output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output}: this is a file; give a folder")

    def collected() -> list[Record]:
        # One directory may lie in another.
        return list({r.path: r for path in distinct for r in collect(path)}.values())

    if watch is not None:
        from genlab.report.watch import watch as renew

        renew(collected, place, watch, as_one, sections, print)
    print_sweep(collected(), place, as_one=as_one, sections=sections)
    return DONE


def _section(name: str) -> Section:
    """Import a section of a page by its module and its name there."""
    from genlab.report.sections import Section

    import_from_here()
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--section {name}: cannot be imported ({error})") from error
    if not isinstance(found, Section):
        raise ConfigError(f"--section {name}: give a genlab.report.sections.Section")
    return found


def _joined(names: Sequence[str]) -> str:
    """Join names of directories to one, whose end is a digest of all where they are too long."""
    joined = "-beside-".join(names)
    data = os.fsencode(joined)
    if len(data) <= _LONGEST:
        return joined
    start = data[:_LONGEST].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(data).hexdigest()[:8]}"
