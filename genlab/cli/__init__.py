"""`genlab COMMAND`: forecasts and checks before training, and tools for trained runs.

Each command has a module with a typed function that takes the arguments by name. The dependencies
of a command are imported when it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import genlab.cli.check_sampler as check_sampler
import genlab.cli.check_schedule as check_schedule
import genlab.cli.evaluate as evaluate
import genlab.cli.export as export
import genlab.cli.forecast as forecast
import genlab.cli.report as report
import genlab.cli.sample as sample
import genlab.cli.train as train
import genlab.cli.video as video
import genlab.cli.workspace as workspace
from genlab import __version__
from genlab.config.secrets import refuse_typed
from genlab.errors import ConfigError
from genlab.training import interrupts
from genlab.training.terminal import (
    ignore_configuration_here,
    import_from_here,
    make_patient,
    print_error,
    told,
)

_COMMANDS = (
    *(train, forecast, check_sampler, check_schedule),
    *(evaluate, sample, video, export, report, workspace),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `genlab` command and return its exit code."""
    make_patient()
    ignore_configuration_here()
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given and given[0] in train.COMMANDS:
        return train.start(given[0], given[1:])
    parser = argparse.ArgumentParser(
        prog="genlab",
        description="Trains generative image models whose settings can be compared: forecasts and "
        "checks before a training; samples, videos and reports after it.",
    )
    parser.add_argument("--version", action="version", version=f"genlab {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in _COMMANDS:
        module.add(commands)
    try:
        refuse_typed(given)
    except ConfigError as error:
        print_error(str(error))
        return error.exit_code
    options, rest = parser.parse_known_args(given)
    # argparse does not parse KEY=VALUE after an option, although users may put it there.
    if not hasattr(options, "overrides") or any(text.startswith("-") for text in rest):
        parser.parse_args(given)
    else:
        options.overrides += rest
    named = vars(options)
    if "overrides" in named or named.get("trust"):  # which may name a package that lies here
        import_from_here()
    command: Callable[..., int] = named.pop("command")
    try:
        with interrupts.raised():
            return command(**named)
    except interrupts.Stopped as stopped:
        return stopped.exit_code
    except Exception as error:
        code, sentence = told(error)
        if sentence is None:
            raise
        print_error(sentence)
        return code
