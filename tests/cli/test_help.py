"""The help of every command: it fits a terminal, and tells each option with its default."""

from __future__ import annotations

import argparse
import re
from typing import Any

import pytest

from genlab import cli
from genlab.cli import train_help
from genlab.config.compose import options
from genlab.config.hydra_job import FOLLOWING

COMMANDS = [module for module in cli._COMMANDS if module is not cli.train]


@pytest.fixture(autouse=True)
def _in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def parser_of(module: Any) -> argparse.ArgumentParser:
    commands = argparse.ArgumentParser(prog="genlab").add_subparsers()
    module.add(commands)
    (parser,) = commands.choices.values()
    return parser


def is_narrow(text: str) -> bool:
    return all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__.split(".")[-1])
def test_help_fits_80_columns_and_says_every_default(module: Any) -> None:
    parser = parser_of(module)
    text = parser.format_help()
    assert is_narrow(text)
    for action in parser._actions:
        assert action.help, action.dest
        if action.option_strings and action.default not in (None, False, [], argparse.SUPPRESS):
            assert "default:" in action.help, action.dest


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__.split(".")[-1])
def test_examples_are_commands_that_can_be_copied(module: Any) -> None:
    """Each is understood by the parser, as it stands in the help."""
    parser = parser_of(module)
    shown = parser.format_help().partition("\nexample")[2].partition("\n")[2]
    examples = shown.replace("\\\n", " ").strip().splitlines()
    assert examples
    for example in examples:
        program, command, *arguments = example.split()
        assert program == "genlab" and parser.prog == f"genlab {command}"
        parsed, rest = parser.parse_known_args(arguments)
        assert all(re.fullmatch(r"[\w./]+=\S+", text) for text in rest)
        assert hasattr(parsed, "overrides") or not rest


def test_the_list_of_commands_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert is_narrow(text)
    for name in ("train", "sweep", *(parser_of(module).prog.split()[1] for module in COMMANDS)):
        assert re.search(rf"^    {name}\b", text, re.MULTILINE)


@pytest.mark.parametrize("model", options("model"))
@pytest.mark.parametrize(("name", "config"), [("train", "train"), ("sweep", "sweep")])
def test_the_help_of_a_training_fits_80_columns(name: str, config: str, model: str) -> None:
    text = train_help.text(name, config, [f"model={model}"])
    assert is_narrow(text)
    for group in FOLLOWING:  # they follow from others, and are nobody's choice
        assert group not in text
