"""`genlab export`: write a trained model for other programs, with a model card."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from genlab.cli import averages, trained
from genlab.cli.parsing import add_command
from genlab.errors import DONE, ConfigError, RunDirectoryError
from genlab.runs.files import refuse_links
from genlab.runs.text import printable


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "export",
        "write a trained model for other programs, with a model card",
        "Export the trained model of a run, its averaged weights where there are any, "
        "into a new folder: as safetensors with its config, which genlab.load reads anywhere; the "
        "U-Net of a diffusion model in the layout of diffusers; encoder and decoder, U-Net or "
        "generator as ONNX. "
        "README.md there is the model card: what the model is, how to load it, and its numbers. "
        "The data are not needed.",
        "genlab export RUN",
        "genlab export RUN --format safetensors,onnx --out my-model",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="a new folder (default: one in RUN/exports/)"
    )
    parser.add_argument(
        "--format",
        metavar="NAME,...",
        dest="formats",
        default="safetensors",
        help="safetensors, diffusers, onnx, or several (default: %(default)s)",
    )
    trained.add_checkpoint(parser)
    averages.add_ema(parser)
    trained.add_trust(parser)
    parser.set_defaults(command=export)


def export(
    run: Path,
    out: Path | None,
    formats: str,
    checkpoint: str | None,
    ema: str | None,
    trust: Sequence[str],
) -> int:
    """Write the model of a run and its model card into a new folder."""
    from genlab.training import export as exporting

    names = list(dict.fromkeys(formats.split(",")))
    for name in names:
        if name not in exporting.FORMATS:
            raise ConfigError(
                f"--format {name}: give one of {', '.join(exporting.FORMATS)}, or several"
            )
    checkpoint = averages.checkpoint_of(run, checkpoint, ema)
    width = averages.ema_width(run, ema, trust)
    of_weights = checkpoint if width is None else f"ema_{width:g}"
    console = Console(soft_wrap=True, highlight=False)
    try:
        target = _target(run, out, "-".join([of_weights, *names]))
        with console.status(f"{', '.join(names)} ..."):
            exporting.export(run, target, checkpoint, names, trust, width)
    except OSError as error:
        raise RunDirectoryError(
            f"{out or run / 'exports'} cannot be written ({error.strerror}): give --out a folder "
            "that can"
        ) from error
    for path in sorted(target.iterdir()):
        console.print(printable(f"  {path}"), markup=False)
    return DONE


def _target(run: Path, out: Path | None, name: str) -> Path:
    """Return the folder to write, which is empty or absent.

    Raises:
        ConfigError: there are files in it.
        RunDirectoryError: a link in the run directory leads out of it.
    """
    if out is None:
        refuse_links(run, ("exports",))
    target = run / "exports" / name if out is None else Path(os.path.realpath(out))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        place = target if out is None else f"--out {out}"
        raise ConfigError(
            f"{place} holds other files, which are never overwritten; give --out a new folder"
        )
    return target
