"""`genlab train` and `genlab sweep`: train one model, or one for each value of a setting.

Their command line is Hydra's. `train.py` and `sweep.py` of a checkout are the same commands.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genlab.errors import DONE, ConfigError
from genlab.training.terminal import import_from_here

#: The commands of this module, and the line about each in `genlab --help`.
COMMANDS = {
    "train": "train one model, or with -m one for each value of a setting",
    "sweep": "train the models that answer a question, with seeds, and compare them",
}


def add(commands: Any) -> None:
    """Add the commands to the parser, which only lists them."""
    for name, line in COMMANDS.items():
        commands.add_parser(name, help=line, add_help=False)


def job(cfg: Any) -> Any:
    """Train one run, or return its result: the task function of Hydra."""
    from genlab.training import run  # here, since --help and launchers do not need torch

    return run.train(cfg)


def start(name: str, arguments: Sequence[str]) -> int:
    """Run a command with these arguments, and return its exit code.

    `sys.argv` stays as typed, since Lightning starts further processes of a run with it.

    Raises:
        ConfigError: Hydra refuses the arguments.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # so that its errors come here
    import_from_here()

    import genlab.sweeps
    from genlab.config import compose
    from genlab.sweeps import request

    if "--version" in arguments:  # Hydra's parser would tell that of Hydra
        print(f"genlab {genlab.__version__}")
        return DONE
    parser = _parser(name)
    options = parser.parse_intermixed_args(list(arguments))
    _refuse(options)
    if options.help:
        from genlab.cli import train_help

        more = [f"hydra.searchpath=[{options.config_dir}]"] if options.config_dir else []
        chosen = name if options.config_dir else options.config_name or name
        print(train_help.text(name, chosen, [*options.overrides, *more]))
        return DONE
    if name == "sweep" and not (options.cfg or options.info or options.hydra_help):
        options.overrides = request.expand(options.overrides)
        options.multirun = True
    try:
        _run_hydra(name, parser, options)
    except Exception as error:
        if sentence := compose.refusal(error, options.overrides):
            raise ConfigError(sentence) from error
        raise
    return DONE


def _parser(name: str) -> argparse.ArgumentParser:
    """Return Hydra's parser, which `hydra.main` keeps to itself; options may stand anywhere."""
    from hydra._internal.utils import get_args_parser

    parser: argparse.ArgumentParser = get_args_parser()
    parser.prog = f"genlab {name}"
    return parser


def _refuse(options: argparse.Namespace) -> None:
    """Refuse options of Hydra that do not fit each other or genlab.

    Raises:
        ConfigError: naming them.
    """
    if options.experimental_rerun is not None:
        raise ConfigError(
            "--experimental-rerun: it reads a pickle, which genlab never does; run the command of "
            "the run again"
        )
    if options.config_dir is not None and not Path(options.config_dir).is_dir():
        raise ConfigError(f"--config-dir {options.config_dir}: there is no such folder")
    if options.resolve and not options.cfg:
        raise ConfigError("--resolve: this is about what --cfg job prints; give both")
    commands = ("install=", "uninstall=", "query=")
    if options.shell_completion and not any(o.startswith(commands) for o in options.overrides):
        raise ConfigError("--shell-completion: give install=bash or uninstall=bash, zsh or fish")
    modes = {"-m": options.multirun, "--run": options.run, "--cfg": options.cfg}
    modes |= {"--info": options.info, "--shell-completion": options.shell_completion}
    if len(given := [name for name, value in modes.items() if value]) > 1:
        raise ConfigError(f"{' and '.join(given)}: give one of them at a time")


def _run_hydra(name: str, parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Do what `hydra.main` does with the arguments of the process."""
    from hydra import version
    from hydra._internal.utils import _run_hydra

    from genlab.config import compose

    version.setbase("1.3")
    if options.config_path is not None:
        options.config_path = str(Path(options.config_path).absolute())
    _run_hydra(
        args=options,
        args_parser=parser,
        task_function=job,
        config_path=str(compose.directory()),
        config_name=name,
    )
