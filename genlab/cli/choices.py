"""What both checks share: the components that overrides choose, and where a plot goes."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from genlab.errors import ConfigError

if TYPE_CHECKING:
    from genlab.diffusion.process import Process

SCHEDULE = "model/noise_schedule"


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """The arguments of both."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="as for train.py -m with model=ddpm: several values are separated by commas",
    )
    parser.add_argument(
        "--diffusers",
        action="append",
        default=[],
        metavar="NAME[,KEY=VALUE...]",
        help="a scheduler of the package diffusers, with its own defaults but for what is given; "
        "may be repeated",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        default=Path(f"{name}.png"),
        metavar="FILE",
        help="where the plot goes (%(default)s)",
    )


class Choice(NamedTuple):
    """One combination of what was asked for: what is said of it, and the `model` part of it."""

    overrides: dict[str, str]
    model: dict[str, Any]

    def name(self, key: str, group: str) -> str:
        """The file chosen in a group, or else the class that stands there."""
        return self.overrides.get(group) or str(self.model[key]["_target_"]).rpartition(".")[2]

    def process(self) -> Process:
        """The forward process."""
        from genlab.config import configs
        from genlab.diffusion.process import Process

        schedule = configs.build(self.model["noise_schedule"], "model.noise_schedule")
        return Process(schedule, self.model["steps"])


def choices(overrides: Sequence[str]) -> Iterator[Choice]:
    """Each combination of the values that are separated by commas, of a model=ddpm."""
    from genlab.config import configs

    if not any(override.startswith("model=") for override in overrides):
        overrides = ["model=ddpm", *overrides]
    for chosen in _combinations(overrides):
        model = configs.resolve(configs.compose(chosen))["model"]
        if not isinstance(model, dict) or "noise_schedule" not in model:
            raise ConfigError("model: there is no noise schedule to check; choose model=ddpm")
        yield Choice(dict(o.partition("=")[::2] for o in chosen), model)


def _combinations(overrides: Sequence[str]) -> list[list[str]]:
    """What `train.py -m` would make of them: one list for each job."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    ways: list[list[str]] = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except OverrideParseException:
            ways.append([text])  # composing says what is wrong with it
            continue
        if override.is_sweep_override():
            key = override.get_key_element()
            ways.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            ways.append([text])
    return [list(way) for way in itertools.product(*ways)]


def without(overrides: Sequence[str], *keys: str) -> tuple[list[str], dict[str, str]]:
    """The overrides but for some keys, and the last value of each of those; empty if not given."""
    values = dict.fromkeys(keys, "")
    rest = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in values:
            values[key] = value
        else:
            rest.append(override)
    return rest, values


def check_folder(plot: Path) -> None:
    """Refuse a plot that cannot be written, before anything takes time."""
    if not plot.parent.is_dir():
        raise ConfigError(f"--plot {plot}: there is no folder {plot.parent}; create it first")


def print_table(console: Console, rows: Sequence[dict[str, str]], texts: Collection[str]) -> None:
    """Rows with the same headings; the columns of `texts` to the left, and left out where empty.

    Where there is no room the terminal wraps the lines: no number is cut.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    headings = [name for name in rows[0] if name not in texts or any(row[name] for row in rows)]
    for name in headings:
        table.add_column(name, justify="left" if name in texts else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(row[name] or "-") for name in headings))
    unbounded = console.options.update(max_width=1000)
    console.width = max(console.width, Measurement.get(console, unbounded, table).maximum)
    console.print(table)
