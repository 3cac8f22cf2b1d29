"""`genlab COMMAND`: what can be said before a training, and what is read after it.

A module for each command; what a command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console

import genlab.cli.check_sampler as check_sampler
import genlab.cli.check_schedule as check_schedule
import genlab.cli.forecast as forecast
import genlab.cli.report as report
import genlab.cli.sample as sample
import genlab.cli.video as video
import genlab.cli.workspace as workspace
from genlab.errors import GenlabError
from genlab.training.terminal import make_patient


def main(arguments: Sequence[str] | None = None) -> int:
    """The `genlab` command; returns its exit code."""
    make_patient()
    parser = argparse.ArgumentParser(
        prog="genlab",
        description="What can be said before a training, and what is read after it.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (forecast, check_sampler, check_schedule, sample, video, report, workspace):
        module.add(commands)
    options, rest = parser.parse_known_args(arguments)
    # argparse gives up on KEY=VALUE after an option, where it stands as well as before it.
    if not hasattr(options, "overrides") or any(text.startswith("-") for text in rest):
        parser.parse_args(arguments)
    else:
        options.overrides += rest
    try:
        code: int = options.run(options)
    except GenlabError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {error}", markup=False)
        return error.exit_code
    return code
