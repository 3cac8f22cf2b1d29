"""Prose of the commands on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from genlab.cli.output import say

PATH = "/a/path-that/is/longer/than/the/terminal/and/is/to/be-copied.png"
TEXT = f"some words before {PATH} and [bold] after\x1b[31m\n  a second line with words enough"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_word_is_lost_no_path_broken_and_no_line_wider_than_its_words(is_terminal: bool) -> None:
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=is_terminal, width=24, highlight=False, color_system=None
    )
    say(console, TEXT)
    lines = file.getvalue().splitlines()
    assert file.getvalue().split() == TEXT.replace("\x1b", r"\x1b").split()
    if is_terminal:
        assert all(len(line) <= 24 or line.split() == [PATH] for line in lines)
        assert [line for line in lines if line.startswith("  ")] == lines[-2:]
    else:
        assert lines == TEXT.replace("\x1b", r"\x1b").splitlines()
