"""Arguments and choices of both check commands, and the table that `genlab forecast` shares."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from genlab.errors import ConfigError, at_key
from genlab.runs.text import printable

if TYPE_CHECKING:
    from genlab.diffusion.process import Process

SCHEDULE = "model/noise_schedule"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of both check commands."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings as for genlab train with model=ddpm; several values of one, separated by "
        "commas, are compared",
    )
    parser.add_argument(
        "--diffusers",
        action="append",
        default=[],
        metavar="NAME[,KEY=VALUE...]",
        help="a scheduler of the package diffusers, to compare; its own defaults but for what is "
        "given; may be repeated",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where the chart goes, a .png or .svg (default: a new PNG in this folder, named after "
        "the command)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the file if there is one already"
    )


class Choice(NamedTuple):
    """One combination of the requested values.

    Attributes:
        overrides: the values, by key.
        files: the chosen file of each config group.
        model: the `model` config that follows.
    """

    overrides: dict[str, str]
    files: dict[str, str]
    model: dict[str, Any]

    def process(self) -> Process:
        """Build the forward process.

        Raises:
            ConfigError: a value that the process or its schedule refuses.
        """
        from genlab.diffusion.process import Process
        from genlab.diffusion.schedule_ends import between
        from genlab.diffusion.schedules import NoiseSchedule

        schedule = self.build("noise_schedule", NoiseSchedule)
        with at_key("model"):
            ends = self.model.get("log_snr_max"), self.model.get("log_snr_min")
            return Process(between(schedule, *ends), self.model["steps"])

    def build(self, name: str, kind: type, **changed: Any) -> Any:
        """Build the component of this name, with other values for some of its parameters.

        Raises:
            ConfigError: it is of another kind, or a value is refused.
        """
        from genlab.config.build import build
        from genlab.config.check import check, need

        key, node = f"model.{name}", self.model[name]
        if changed:
            node = {**need(node, kind, key), **changed}
        return build(need(check(node, key), kind, key), key)


def choices(overrides: Sequence[str]) -> Iterator[Choice]:
    """Compose model=ddpm with each combination of the comma-separated values.

    Raises:
        ConfigError: an override that does not compose, or a model without a noise schedule.
    """
    from omegaconf import OmegaConf

    from genlab.config.check import resolve
    from genlab.config.compose import compose

    if not any(override.startswith("model=") for override in overrides):
        overrides = ["model=ddpm", *overrides]
    for chosen in _combinations(overrides):
        config = compose(chosen, with_hydra=True)
        files = {str(group): str(file) for group, file in config.hydra.runtime.choices.items()}
        own = OmegaConf.masked_copy(config, [key for key in map(str, config) if key != "hydra"])
        model = resolve(own)["model"]
        if not isinstance(model, dict) or "noise_schedule" not in model:
            raise ConfigError("model: there is no noise schedule to check; choose model=ddpm")
        yield Choice(dict(o.partition("=")[::2] for o in chosen), files, model)


def _combinations(overrides: Sequence[str]) -> list[list[str]]:
    """Expand overrides as `train.py -m` does: one list for each job."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    ways: list[list[str]] = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except OverrideParseException:
            ways.append([text])  # composing it raises an error with a remedy
            continue
        if override.is_sweep_override():
            key = override.get_key_element()
            ways.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            ways.append([text])
    return [list(way) for way in itertools.product(*ways)]


def without(overrides: Sequence[str], *keys: str) -> tuple[list[str], dict[str, str]]:
    """Split off keys: return the other overrides, and each key's last value, empty if none."""
    values = dict.fromkeys(keys, "")
    rest = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in values:
            values[key] = value
        else:
            rest.append(override)
    return rest, values


def whole_numbers(text: str, given: str) -> list[int]:
    """Parse distinct comma-separated integers; `given` is the typed text, for the message.

    Raises:
        ConfigError: they are no whole numbers.
    """
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise ConfigError(f"{given}: whole numbers, separated by commas, are needed") from error


def chart_path(out: Path | None, overwrite: bool, name: str) -> Path:
    """Return where the chart goes, before any long computation.

    Args:
        out: as given; None takes the first free of NAME.png, NAME-2.png, ...

    Raises:
        ConfigError: it has another suffix, no folder, or a file that may not be replaced.
    """
    if out is None:
        names = (f"{name}{'' if i == 1 else f'-{i}'}.png" for i in itertools.count(1))
        return next(path for path in map(Path, names) if overwrite or not os.path.lexists(path))
    if out.suffix not in (".png", ".svg"):
        raise ConfigError(f"--out {out}: a chart is a .png or an .svg; end the name in one of them")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}; create it first")
    if os.path.lexists(out) and not overwrite:
        raise ConfigError(f"--out {out}: there is such a file; give another name, or --overwrite")
    return out


def print_table(console: Console, rows: Sequence[dict[str, str]], texts: Collection[str]) -> None:
    """Print rows with the same headings; columns of `texts` to the left, and left out where empty.

    Where there is no room, the terminal wraps the lines; numbers are never truncated.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    headings = [name for name in rows[0] if name not in texts or any(row[name] for row in rows)]
    for name in headings:
        side: JustifyMethod = "left" if name in texts else "right"
        table.add_column(name, justify=side, vertical="bottom", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(row[name]) or "-") for name in headings))
    width, unbounded = console.width, console.options.update(max_width=1000)
    console.width = max(width, Measurement.get(console, unbounded, table).maximum)
    console.print(table)
    console.width = width
