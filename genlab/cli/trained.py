"""Arguments and errors that the commands which load a trained model share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from genlab.errors import ConfigError, RunDirectoryError

if TYPE_CHECKING:
    from torch import nn

    from genlab.data.datamodule import ImageData


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --seed, --checkpoint and --trust."""
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        default="best",
        help="by validation loss, or of the last step (%(default)s)",
    )
    parser.add_argument(
        "--trust",
        metavar="PACKAGE",
        action="append",
        default=[],
        help="a package besides genlab whose classes the run's config may name; may be repeated",
    )


def load(run: Path, checkpoint: str, trust: Sequence[str]) -> tuple[nn.Module, ImageData]:
    """Load the model of a run directory, and set up its data without reading it.

    Raises:
        ConfigError: the config names a class of a package that is not trusted.
        RunDirectoryError: there is no such run, or no such checkpoint in it.
    """
    from genlab.runs.directory import Run
    from genlab.training.load import load_with_data

    if not run.is_dir():
        raise RunDirectoryError(f"{run} is not a directory: give a run directory")
    there = [path.stem for path in sorted(run.glob("checkpoints/*.ckpt"))]
    if Run(run).config_text is not None and checkpoint not in there:
        other = f"give --checkpoint {there[0]}" if there else "train it first"
        raise RunDirectoryError(f"{run} has no checkpoints/{checkpoint}.ckpt: {other}")
    return load_with_data(run, checkpoint, trust)


@contextmanager
def naming_flags(key: str = "", run: Path | None = None) -> Iterator[None]:
    """Name the flag that the user typed in errors about the parameter of the same name.

    Args:
        key: of the config; an error about a key below it is about the flag of that name.
        run: named first in the message.

    Raises:
        ConfigError: instead of a ValueError or a ConfigError.
    """
    start = "" if run is None else f"{run}: "
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{start}--{error}") from error
    except ConfigError as error:
        message = str(error)
        raise ConfigError(start + (message.replace(f"{key}.", "--") if key else message)) from error
