"""`genlab check-sampler`: the error of samplers on a known distribution with a perfect network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from rich.console import Console

from genlab.cli.choices import (
    SCHEDULE,
    add_arguments,
    chart_path,
    choices,
    print_table,
    whole_numbers,
    without,
)
from genlab.cli.output import say
from genlab.cli.parsing import add_command, number
from genlab.cli.trained import naming_flags
from genlab.errors import DONE, at_key

if TYPE_CHECKING:
    import altair as alt

    from genlab.diffusion.gaussian import GaussianData
    from genlab.diffusion.process import Process
    from genlab.diffusion.samplers import Sampler
    from genlab.diffusion.variances import ReverseVariance

#: Default numbers of steps.
STEPS = (10, 20, 50, 100)
#: Standard deviations of the data, in the units of images in [-1, 1]: fine detail to full contrast.
STDS = (0.0316, 0.25, 1.0)
#: Width of a panel, and heights of one in a single row or in several, in pixels.
_PANEL, _HIGH, _LOW = 260, 300, 150
#: Most lines of a panel.
_MOST = 12
_SAMPLER = "model/sampler"
_VARIANCE = "model/reverse_variance"
_STEPS_KEY, _GRID_KEY = "model.sampler.steps", "model.sampler.grid"


class Row(NamedTuple):
    """One row of the table: a sampler's errors by standard deviation of the data."""

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
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "check-sampler",
        "the error of samplers with a perfect network, as a table and a chart",
        "Sample Gaussian data with a perfect network, so that every error is the "
        "sampler's: the error of the mean and the standard deviation, exactly, and the "
        "order at which it falls. Prints a table and draws it.",
        "genlab check-sampler model/noise_schedule=cosine \\\n"
        "  model/sampler=ddim,dpm_solver model.sampler.steps=10,20,50",
        "genlab check-sampler --all --std 0.25",
    )
    add_arguments(parser)
    parser.add_argument(
        "--all",
        dest="everything",
        action="store_true",
        help="compare all samplers on all step grids",
    )
    parser.add_argument(
        "--std",
        type=_numbers,
        default=STDS,
        metavar="S,...",
        help="standard deviations of the data; images have values from -1 to 1 (default: "
        f"{_listed(STDS)})",
    )
    parser.add_argument(
        "--mean",
        type=number("--mean"),
        default=0.5,
        metavar="M",
        help="mean of the data (default: %(default)s)",
    )
    parser.set_defaults(command=check_sampler)


def check_sampler(
    overrides: Sequence[str],
    diffusers: Sequence[str],
    out: Path | None,
    overwrite: bool,
    everything: bool,
    std: Sequence[float],
    mean: float,
) -> int:
    """Print and draw the errors of the samplers that the overrides, or diffusers, choose."""
    from genlab.diffusion.gaussian import GaussianData
    from genlab.media import charts

    path = chart_path(out, overwrite, "check-sampler")
    with naming_flags():
        data = [GaussianData(mean, value) for value in std]
    rest, settings = without(overrides, _STEPS_KEY, _GRID_KEY)
    steps = settings[_STEPS_KEY]
    counts = whole_numbers(steps, f"{_STEPS_KEY}={steps}") if steps else None
    grids = settings[_GRID_KEY].split(",") if settings[_GRID_KEY] else None
    rows = [row for name in diffusers for row in _of_diffusers(name, counts, data)]
    if everything or rest or grids or not diffusers:
        rows += _of_genlab(rest, counts, grids, data, everything)

    console = Console(soft_wrap=True, highlight=False)
    say(
        console,
        f"Data N({mean:g}, std^2), sampled with a perfect network. For each std of the data, the "
        "error of the samples' std in percent; then the largest error of their mean.",
    )
    cells = [_cells(row, std) for row in rows]
    if len({row.schedule for row in rows}) == 1:
        say(console, f"Noise schedule: {rows[0].schedule or '-'}")
        cells = [{**cell, "schedule": ""} for cell in cells]
    print_table(console, cells, ("schedule", "sampler", "grid"))
    if any(row.order is not None for row in rows):
        console.print(
            "order: the std's error falls as steps^-order, measured between finite log-SNRs."
        )
    if any(row.is_estimate for row in rows):
        console.print("~ from samples, to 0.2 % of the standard deviation; all others are exact.")
    charts.save(samplers_figure(rows, std), path)
    say(console, f"chart: {path}")
    return DONE


def _of_genlab(
    overrides: Sequence[str],
    steps: Sequence[int] | None,
    grids: Sequence[str] | None,
    data: Sequence[GaussianData],
    everything: bool,
) -> Iterator[Row]:
    from genlab.config.compose import options
    from genlab.diffusion.grids import Grid
    from genlab.diffusion.samplers import Sampler
    from genlab.diffusion.variances import ReverseVariance

    if everything:
        overrides = [o for o in overrides if not o.startswith(f"{_SAMPLER}=")]
        overrides.append(f"{_SAMPLER}={','.join(options(_SAMPLER))}")
        grids = grids or get_args(Grid)
    for choice in choices(overrides):
        process = choice.process()
        label = choice.files[SCHEDULE]
        if "model.steps" in choice.overrides:
            label += f" T={process.steps}"
        variance = choice.build("reverse_variance", ReverseVariance)
        name = choice.files[_SAMPLER]
        if _VARIANCE in choice.overrides:
            name += f" {choice.overrides[_VARIANCE]}"
        for grid in grids or [choice.model["sampler"]["grid"]]:
            for count in steps or [n for n in STEPS if n <= (process.steps or n)]:
                sampler = choice.build("sampler", Sampler, grid=grid, steps=count)
                with at_key("model.sampler"):
                    row = _row(label, name, sampler, process, data, variance)
                yield row


def _row(
    schedule: str,
    name: str,
    sampler: Sampler,
    process: Process,
    data: Sequence[GaussianData],
    variance: ReverseVariance,
) -> Row:
    from genlab.diffusion.sampler_check import order, response

    # A learned variance is an output of the network, which the perfect network here does not have.
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
    name: str, steps: Sequence[int] | None, data: Sequence[GaussianData]
) -> Iterator[Row]:
    from genlab.cli.schedulers import Scheduler

    scheduler = Scheduler(name)
    for count in steps or STEPS:
        found, estimates = zip(*(scheduler.response(count, of) for of in data), strict=True)
        yield Row(
            "",
            name,
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
        **{f"std\n{std:g}": f"{mark}{100 * error:+z.1f}" for std, error in errors},
        "mean": f"{mark}{row.mean_error:+z.4f}",
        "order": "-" if row.order is None else f"{row.order:.2f}",
    }


def samplers_figure(rows: Sequence[Row], stds: Sequence[float]) -> alt.FacetChart:
    """Draw the error of the std over the forwards of the network, a panel for each std.

    Of more lines than a panel can show, each grid has a row of panels.
    """
    import altair as alt

    from genlab.media import charts

    are_many = len({row.schedule for row in rows if row.schedule}) > 1
    grids = [" ".join([row.grid, row.schedule if are_many else ""]).strip() or "-" for row in rows]
    panels = [f"data of std {std:g}" for std in stds]
    is_crowded = len({(row.sampler, grid) for row, grid in zip(rows, grids, strict=True)}) > _MOST
    table: list[dict[str, Any]] = []
    for i, panel in enumerate(panels):
        lines: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
        for row, grid in zip(rows, grids, strict=True):
            error = 100 * abs(row.std_errors[i])
            if error > 0:  # a logarithmic axis has no place for 0
                x, y = lines.setdefault((row.sampler, grid), ([], []))
                x.append(row.evaluations)
                y.append(error)
        logs = {name: (x, [math.log(error) for error in y]) for name, (x, y) in lines.items()}
        width: dict[tuple[str, str], float] = {}
        for place in dict.fromkeys(grids) if is_crowded else [""]:
            own = {name: line for name, line in logs.items() if name[1] == (place or name[1])}
            width |= charts.widths(own)
        table += [
            {
                "panel": panel,
                "sampler": sampler,
                "grid": grid,
                "forwards": forwards,
                "error": error,
                "width": width[sampler, grid],
            }
            for (sampler, grid), points in lines.items()
            for forwards, error in zip(*points, strict=True)
        ]
    samplers, ways = list(dict.fromkeys(row.sampler for row in rows)), list(dict.fromkeys(grids))
    across = len(stds) * _PANEL
    forwards = alt.X("forwards:Q").title("forwards of the network")
    base = alt.Chart().encode(
        forwards.scale(type="log", nice=False).axis(values=sorted({row.steps for row in rows})),
        alt.Y("error:Q")
        .title("error of the samples' std (%)")
        .scale(type="log", nice=False)
        .axis(values=charts.decades([row["error"] for row in table])),
        alt.Color("sampler:N").scale(domain=samplers).legend(charts.key(samplers, across)),
    )
    drawn = base.mark_line().encode(alt.StrokeWidth("width:Q", scale=None))
    columns = alt.Column("panel:N").sort(panels)
    title = {
        "text": "Error of each sampler with a perfect network",
        "subtitle": "Gaussian data, images being in [-1, 1]",
    }

    def layered(lines: alt.Chart, height: int) -> Any:
        points = base.mark_point(size=40)
        shown = alt.layer(lines, points, data=charts.table(table))
        return shown.properties(width=_PANEL, height=height)

    if is_crowded:
        rows_of = alt.Row("grid:N").sort(ways)
        chart = layered(drawn, _LOW).facet(row=rows_of, column=columns)
    else:
        dash = alt.StrokeDash("grid:N").scale(domain=ways, range=charts.DASHES)
        dashed = drawn.encode(dash.legend(charts.key(ways, across)))
        chart = layered(dashed, _HIGH).facet(column=columns)
    made: alt.FacetChart = chart.properties(title=title)
    return made


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _largest(errors: Sequence[float]) -> float:
    return max(errors, key=abs)
