"""Arguments and errors that the commands which load a trained model share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from genlab.cli.parsing import number, whole_number
from genlab.errors import ConfigError, RunDirectoryError

if TYPE_CHECKING:
    from torch import nn

    from genlab.data.datamodule import ImageData
    from genlab.protocols import ImageSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --seed, --checkpoint and --trust."""
    parser.add_argument(
        "--seed",
        type=whole_number("--seed"),
        default=0,
        metavar="N",
        help="seed of the noise (default: %(default)s)",
    )
    add_checkpoint(parser)
    add_trust(parser)


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add --checkpoint."""
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        help="weights of the lowest validation loss, or of the last step (default: those of the "
        "run's own test, by its evaluate=)",
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add --trust."""
    parser.add_argument(
        "--trust",
        metavar="PACKAGE",
        action="append",
        default=[],
        help="a package besides genlab whose classes the run's config may name; may be repeated",
    )


def add_classes(parser: Any) -> None:
    """Add the choice of the classes that a conditional model draws."""
    parser.add_argument(
        "--class",
        metavar="CLASS,...",
        dest="classes",
        help="names or numbers of classes, taken in turn (default: all)",
    )


def add_sampler(parser: Any) -> None:
    """Add the choices of how a diffusion model draws, as for `drawing.ways_asked`."""
    parser.add_argument(
        "--sampler",
        metavar="NAME,...",
        action="append",
        help="ancestral, ddim, dpm_solver, dpm_solver_sde, euler, heun, unipc, or a YAML file of "
        "your own",
    )
    parser.add_argument(
        "--steps", metavar="N,...", help="steps of the sampler; at most those of the model"
    )
    parser.add_argument(
        "--grid",
        metavar="NAME",
        help="spacing of the steps: uniform, quadratic, log_snr, karras, flow",
    )
    parser.add_argument(
        "--eta",
        type=number("--eta"),
        metavar="X",
        help="noise of ddim: 0 is none, 1 that of ancestral sampling",
    )
    parser.add_argument(
        "--guidance",
        type=number("--guidance"),
        metavar="X",
        help="strength of classifier-free guidance; 1 is none",
    )
    parser.add_argument(
        "--guidance-interval",
        type=_interval,
        metavar="LOW,HIGH",
        help="log-SNRs between which there is guidance, such as --guidance-interval=-3,5",
    )


def _interval(text: str) -> tuple[float, ...]:
    """Parse two log-SNRs; the model says what is right for them."""
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--guidance-interval {text}: give two log-SNRs, such as --guidance-interval=-3,5"
        ) from None


def checkpoint_of(run: Path, asked: str | None) -> str:
    """Return the checkpoint that is there, `best` or `last`; one is said if it is not the asked.

    Args:
        asked: None for that of the run's own test.

    Raises:
        ConfigError: the run's config names no such checkpoint for its test.
        RunDirectoryError: there is no such run, or no such checkpoint in it.
    """
    from genlab.runs.files import refuse_links
    from genlab.runs.run import Run
    from genlab.training import weights

    if not run.is_dir():
        raise RunDirectoryError(f"{run} is not a directory: give a run directory")
    refuse_links(run, ["checkpoints"])
    if Run(run).config_text is None:
        return asked or "best"  # loading it says that it is no run
    found = weights.checkpoint_of(run, asked)
    if not found.exists():
        there = [path.stem for path in sorted(run.glob("checkpoints/*.ckpt"))]
        other = f"give --checkpoint {there[0]}" if there else "train it first"
        raise RunDirectoryError(f"{run} has no checkpoints/{found.name}: {other}")
    return found.stem


def load(run: Path, checkpoint: str | None, trust: Sequence[str]) -> nn.Module:
    """Load the model of a run directory.

    Raises:
        ConfigError: the config says something that a run directory may not say.
        RunDirectoryError: there is no such run, or no such checkpoint in it.
    """
    from genlab.training.load import load as load_model

    return load_model(run, checkpoint_of(run, checkpoint), trust)


def runs_and_data(words: Sequence[str], or_else: str = "") -> tuple[list[Path], list[str]]:
    """Tell the run directories on a command line from the overrides of the data.

    argparse may leave either of them among the other.

    Args:
        or_else: what may be given besides a run directory, for the error.

    Raises:
        ConfigError: there is no run directory.
    """
    of_data = [word for word in words if is_about_data(word)]
    paths = [Path(word) for word in words if word not in of_data]
    if not paths:
        raise ConfigError(f"{' '.join(of_data)}: give a run directory as well{or_else}")
    return paths, of_data


class NoDataError(ConfigError):
    """Images like those of a run are needed, and the user named no data."""

    def __init__(self, run: Path) -> None:
        from genlab.config.compose import options

        super().__init__(
            f"{run}: this needs images, and a run directory does not say where they are: give "
            f"data=NAME, of {', '.join(options('data'))}, and data.data_dir=DIR where it is needed"
        )


def is_about_data(word: str) -> bool:
    """Return whether a word of the command line is an override that says where images are."""
    return re.match(r"[+~]*(data[=./]|hydra\.searchpath=)", word) is not None


def data_for(
    run: Path,
    spec: ImageSpec,
    overrides: Sequence[str],
    own: Mapping[str, Any] | None = None,
) -> ImageData:
    """Set up the data that the user names as for train.py, without reading them.

    Args:
        own: the run's values of keys of `data`, for those that the user does not type.

    Raises:
        ConfigError: they have another spec than the images of the run, or cannot be composed.
    """
    from genlab.config.build import build

    node = data_node(overrides, own)
    data: ImageData = build(node, "data")
    if data.spec != spec:
        raise ConfigError(
            f"{' '.join(overrides)}: these images are {_described(data.spec)}, and {run} is of "
            f"{_described(spec)}; give the data that it was trained on"
        )
    return data


def data_node(overrides: Sequence[str], own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Compose and check the config of the data that the user names, as `data_for`.

    Raises:
        ConfigError: it cannot be composed.
    """
    from genlab.config.check import check, need, resolve
    from genlab.config.compose import compose
    from genlab.data.datamodule import ImageData

    node = resolve(compose(overrides))["data"]
    typed = {override.lstrip("+~").partition("=")[0] for override in overrides}
    node |= {key: value for key, value in (own or {}).items() if f"data.{key}" not in typed}
    return need(check(node, "data"), ImageData, "data")


def _described(spec: ImageSpec) -> str:
    levels = "real-valued" if spec.levels is None else f"of {spec.levels} levels"
    classes = f"with the classes {', '.join(spec.classes)}" if spec.classes else "without classes"
    return f"{' x '.join(map(str, spec.shape))}, {levels}, {shorten(classes, 200)}"


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
        name, equals, rest = str(error).partition("=")
        option = name.replace("_", "-") if name.isidentifier() else name
        raise ConfigError(f"{start}--{option}{equals}{rest}") from error
    except ConfigError as error:
        message = str(error)
        raise ConfigError(start + (message.replace(f"{key}.", "--") if key else message)) from error
