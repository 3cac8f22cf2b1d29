"""The parser of a command, whose help fits 80 columns and has examples that can be copied."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

from genlab.errors import ConfigError

_T = TypeVar("_T")
#: Letters of a line of help.
_WIDTH = 78


def add_command(
    commands: Any, name: str, summary: str, description: str, *examples: str
) -> argparse.ArgumentParser:
    r"""Add the parser of a command.

    Args:
        commands: the subparsers of `genlab`.
        summary: its line in `genlab --help`.
        examples: whole command lines; a long one is continued by a backslash.
    """
    listed = "\n".join(textwrap.indent(example, "  ") for example in examples)
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=_filled(description),
        epilog=f"examples:\n{listed}" if len(examples) > 1 else f"example:\n{listed}",
        # as written, so that no example is broken in the middle
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_group(
    parser: argparse.ArgumentParser, title: str, description: str
) -> argparse._ArgumentGroup:
    """Add a group of options with a heading and a description to a parser of `add_command`."""
    return parser.add_argument_group(title, _filled(description, 2))


def whole_number(option: str) -> Callable[[str], int]:
    """Return the `type` of an option whose value is a whole number.

    Its error is not one that argparse would answer with its usage.
    """
    return _converted(option, int, "give a whole number, in digits alone")


def number(option: str) -> Callable[[str], float]:
    """Return the `type` of an option whose value is a number."""
    return _converted(option, float, "give a number")


def _converted(option: str, convert: Callable[[str], _T], remedy: str) -> Callable[[str], _T]:
    def parse(text: str) -> _T:
        try:
            return convert(text)
        except ValueError:
            raise ConfigError(f"{option} {text}: {remedy}") from None

    return parse


def _filled(text: str, indent: int = 0) -> str:
    return textwrap.fill(text, _WIDTH - indent, break_on_hyphens=False)
