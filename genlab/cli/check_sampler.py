"""`genlab check-sampler`: what a sampler does to a known distribution with a perfect network."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from rich.console import Console

from genlab.cli.choices import SCHEDULE, add_arguments, check_folder, choices, print_table, without
from genlab.errors import DONE, ConfigError

if TYPE_CHECKING:
    from genlab.diffusion.gaussian import GaussianData
    from genlab.diffusion.process import Process
    from genlab.diffusion.samplers import Sampler
    from genlab.diffusion.variances import ReverseVariance

#: Numbers of steps that are checked when none are asked for.
STEPS = (10, 20, 50, 100)
#: Standard deviations of the data, in the units of images in [-1, 1]: fine detail to full contrast.
STDS = (0.0316, 0.25, 1.0)
_SAMPLER = "model/sampler"
_VARIANCE = "model/reverse_variance"
_STEPS_KEY, _GRID_KEY = "model.sampler.steps", "model.sampler.grid"


class Row(NamedTuple):
    """One line of the sampler's table; errors by standard deviation of the data."""

    schedule: str
    sampler: str
    grid: str
    steps: int
    evaluations: int
    std_errors: list[float]
    mean_error: float
    order: float | None
    is_estimate: bool


def add(commands: Any) -> None:
    """Describe the command to the parser."""
    parser = commands.add_parser(
        "check-sampler",
        help="what a sampler and its step grid do to a known distribution",
        description="Sample Gaussian data with a perfect network, so that all that is wrong is the "
        "sampler's own doing: the error of the mean and the standard deviation, exactly, and the "
        "order at which it falls. Prints a table and draws it.",
        epilog="example: genlab check-sampler model/noise_schedule=cosine "
        "model/sampler=ddim,dpm_solver model.sampler.steps=10,20,50",
    )
    add_arguments(parser, "check-sampler")
    parser.add_argument("--all", action="store_true", help="all samplers on all step grids")
    parser.add_argument(
        "--std",
        type=_numbers,
        default=STDS,
        metavar="S,...",
        help=f"standard deviations of the data, images being in [-1, 1] ({_listed(STDS)})",
    )
    parser.add_argument(
        "--mean", type=float, default=0.5, metavar="M", help="mean of the data (%(default)s)"
    )
    parser.set_defaults(run=_check_sampler)


def _check_sampler(options: argparse.Namespace) -> int:
    from genlab.diffusion.gaussian import GaussianData

    data = [GaussianData(options.mean, std) for std in options.std]
    rest, knobs = without(options.overrides, _STEPS_KEY, _GRID_KEY)
    steps = _whole_numbers(_STEPS_KEY, knobs[_STEPS_KEY])
    grids = knobs[_GRID_KEY].split(",") if knobs[_GRID_KEY] else None
    rows = [row for said in options.diffusers for row in _of_diffusers(said, steps, data)]
    if options.all or rest or knobs[_GRID_KEY] or not options.diffusers:
        rows += _of_genlab(rest, steps, grids, data, options.all)
    check_folder(options.plot)

    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"Data N({options.mean:g}, std^2), sampled with a perfect network: the error of the "
        "samples' std, and of their mean at most."
    )
    cells = [_cells(row, options.std) for row in rows]
    print_table(console, cells, ("schedule", "sampler", "grid"))
    if any(row.order is not None for row in rows):
        console.print(
            "order: the std's error falls as steps^-order, measured between finite log-SNRs."
        )
    if any(row.is_estimate for row in rows):
        console.print("~ from samples, to 0.2 % of the standard deviation; all others are exact.")
    _draw_samplers(rows, options.std, options.plot)
    console.print(f"plot: {options.plot}", markup=False)
    return DONE


def _of_genlab(
    overrides: Sequence[str],
    steps: Sequence[int] | None,
    grids: Sequence[str] | None,
    data: Sequence[GaussianData],
    everything: bool,
) -> Iterator[Row]:
    from genlab.config import compose as composition
    from genlab.config import configs
    from genlab.diffusion.grids import Grid

    if everything:
        overrides = [o for o in overrides if not o.startswith(f"{_SAMPLER}=")]
        overrides.append(f"{_SAMPLER}={','.join(composition.options(_SAMPLER))}")
        grids = grids or get_args(Grid)
    for choice in choices(overrides):
        process = choice.process()
        node = choice.model["sampler"]
        label = choice.name("noise_schedule", SCHEDULE)
        if "model.steps" in choice.overrides:
            label += f" T={process.steps}"
        variance = configs.build(choice.model["reverse_variance"], "model.reverse_variance")
        name = choice.name("sampler", _SAMPLER)
        if _VARIANCE in choice.overrides:
            name += f" {choice.overrides[_VARIANCE]}"
        for grid in grids or [node["grid"]]:
            for count in steps or [n for n in STEPS if n <= (process.steps or n)]:
                asked = configs.check({**node, "grid": grid, "steps": count}, "model.sampler")
                sampler = configs.build(asked, "model.sampler")
                yield _row(label, name, sampler, process, data, variance)


def _row(
    schedule: str,
    name: str,
    sampler: Sampler,
    process: Process,
    data: Sequence[GaussianData],
    variance: ReverseVariance,
) -> Row:
    from genlab.diffusion.sampler_check import order, response

    # A learned variance is the network's, and the perfect network here has none.
    used = None if variance.is_learned else variance
    found = [response(sampler, process, of, used) for of in data]
    assert sampler.steps is not None
    return Row(
        schedule,
        name,
        sampler.grid,
        sampler.steps,
        found[0].evaluations,
        [one.std() / float(of.std) - 1 for one, of in zip(found, data, strict=True)],
        _largest([one.offset - float(of.mean) for one, of in zip(found, data, strict=True)]),
        order(sampler, data[0], used),
        False,
    )


def _of_diffusers(
    said: str, steps: Sequence[int] | None, data: Sequence[GaussianData]
) -> Iterator[Row]:
    from genlab.cli.schedulers import Scheduler

    scheduler = Scheduler(said)
    for count in steps or STEPS:
        found, estimates = zip(*(scheduler.response(count, of) for of in data), strict=True)
        yield Row(
            "",
            said,
            "",
            count,
            found[0].evaluations,
            [one.std() / float(of.std) - 1 for one, of in zip(found, data, strict=True)],
            _largest([one.offset - float(of.mean) for one, of in zip(found, data, strict=True)]),
            None,
            any(estimates),
        )


def _cells(row: Row, stds: Sequence[float]) -> dict[str, str]:
    mark = "~" if row.is_estimate else ""
    errors = zip(stds, row.std_errors, strict=True)
    return {
        "schedule": row.schedule,
        "sampler": row.sampler,
        "grid": row.grid,
        "steps": str(row.steps),
        "forwards": str(row.evaluations),
        **{f"std {std:g}": f"{mark}{100 * error:+.1f} %" for std, error in errors},
        "mean": f"{mark}{row.mean_error:+.4f}",
        "order": "-" if row.order is None else f"{row.order:.2f}",
    }


def _draw_samplers(rows: Sequence[Row], stds: Sequence[float], path: Path) -> None:
    from genlab.media import charts

    samplers = list(dict.fromkeys(row.sampler for row in rows))
    ways = list(dict.fromkeys((row.grid, row.schedule) for row in rows))
    is_one = len({row.schedule for row in rows if row.schedule}) < 2
    names = [" ".join([row.sampler, row.grid, "" if is_one else row.schedule]) for row in rows]
    looks = {
        name: (samplers.index(row.sampler), ways.index((row.grid, row.schedule)))
        for name, row in zip(names, rows, strict=True)
    }
    ticks = sorted({row.steps for row in rows})
    figure, axes = charts.panels(len(stds))
    for i, (std, panel) in enumerate(zip(stds, axes, strict=True)):
        lines: dict[str, tuple[list[float], list[float]]] = {}
        for name, row in zip(names, rows, strict=True):
            x, y = lines.setdefault(name, ([], []))
            x.append(row.evaluations)
            y.append(100 * abs(row.std_errors[i]))
        charts.draw_lines(panel, lines, marker="o", looks=looks)
        charts.logarithmic(panel, ticks)
        panel.set_xlabel("forwards of the network")
        panel.set_title(f"data of std {std:g}", loc="left", fontsize=10)
    axes[0].set_ylabel("error of the samples' std (%)")
    charts.add_legend(figure)
    charts.save(figure, path)


def _whole_numbers(key: str, text: str) -> list[int] | None:
    try:
        return [int(part) for part in text.split(",")] if text else None
    except ValueError as error:
        raise ConfigError(
            f"{key}={text}: whole numbers, separated by commas, are needed"
        ) from error


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _largest(errors: Sequence[float]) -> float:
    return max(errors, key=abs)
