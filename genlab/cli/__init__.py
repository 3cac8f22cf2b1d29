"""`genlab COMMAND`: forecasts and checks before training, and tools for trained runs.

Each command has a module with a typed function that takes the arguments by name. The dependencies
of a command are imported when it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
    escape_warnings,
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
#: Parts of an override by which the user names a class or a package of his own.
_NAMING = ("_target_", "hydra.searchpath")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `genlab` command and return its exit code."""
    make_patient()
    ignore_configuration_here()
    escape_warnings()
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given and given[0] in train.COMMANDS:
        return train.start(given[0], given[1:])
    parser = argparse.ArgumentParser(
        prog="genlab",
        description="Train generative image models and compare the settings of one hyperparameter.",
    )
    parser.add_argument("--version", action="version", version=f"genlab {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in _COMMANDS:
        module.add(commands)
    try:
        refuse_typed(given)
        options, rest = parser.parse_known_args(given)
        # argparse does not parse KEY=VALUE after an option, although users may put it there.
        if not hasattr(options, "overrides") or any(text.startswith("-") for text in rest):
            parser.parse_args(given)
        else:
            options.overrides += rest
    except ConfigError as error:
        print_error(str(error))
        return error.exit_code
    named = vars(options)
    if _may_name_packages_here(named, given):
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


def _may_name_packages_here(named: Mapping[str, Any], given: Sequence[str]) -> bool:
    """Return whether the user names classes that may lie in the working directory.

    For a command that reads runs, that directory may be one of a stranger: torch would find there
    whichever of its optional packages are not installed. So these commands look there only if the
    user names a package, and import torch before.
    """
    if "trust" not in named:
        return "overrides" in named
    if not named["trust"] and not any(part in word for word in given for part in _NAMING):
        return False
    import genlab.training.load  # noqa: F401

    return True
