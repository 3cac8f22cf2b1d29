"""Prose of the commands: wrapped at words on a terminal, one line for each message elsewhere."""

from __future__ import annotations

import textwrap

from rich.console import Console
from rich.text import Text

from genlab.runs.text import printable


def say(console: Console, text: str, style: str = "") -> None:
    """Print a message; on a terminal its lines are wrapped between words, never within a path."""
    lines = printable(text).splitlines()
    if console.is_terminal:
        lines = [part for line in lines for part in _wrapped(line, console.width)]
    console.print(Text("\n".join(lines)), style=style or None, soft_wrap=True)


def _wrapped(line: str, width: int) -> list[str]:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(
        line,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]
