"""The commands of README and docs are ones that genlab accepts."""

from __future__ import annotations

import re
import shlex
from itertools import product
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from genlab.config.compose import compose
from genlab.training.planning import plan

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

#: A command with one of these is an example, in which the reader fills something in.
BLANKS = re.compile(r"\.\.\.|\b(DIR|RUN|NAME|GROUP|MORE|HOST)\b|path/to|images\.npz|pkg:|mylab")
_COMMAND = re.compile(r"^\s*(?:\$ )?(?:python train\.py|genlab train) (?!-{2})(.+)$", re.MULTILINE)


def commands(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    blocks += re.findall(r"(?m)(?:^ {4}.*\n)+", text)
    inline = re.findall(r"`((?:python train\.py|genlab train) [^`]+)`", text)
    found = [found for block in [*blocks, *inline] for found in _COMMAND.findall(block)]
    return [" ".join(shlex.split(one, comments=True)) for one in found if not BLANKS.search(one)]


def jobs(command: str) -> list[list[str]]:
    """The overrides of each job of a command; words without "=" are a remark beside it."""
    words = [word for word in shlex.split(command) if "=" in word]
    choices = [
        [f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [override.input_line]
        for override in OverridesParser.create().parse_overrides(words)
    ]
    return [list(job) for job in product(*choices)]


CASES = [(page, command) for page in PAGES for command in commands(page)]


def test_the_pages_have_commands() -> None:
    assert len(CASES) > 20


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_accepted(page: Path) -> None:
    for command in commands(page):
        for overrides in jobs(command):
            plan(compose(overrides), overrides)
