"""`genlab check-schedule`: log-SNR and prior term of noise schedules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from genlab.cli.choices import SCHEDULE, add_arguments, check_folder, choices, print_table
from genlab.errors import DONE

if TYPE_CHECKING:
    from genlab.diffusion.schedule_check import ScheduleSummary

_TIMES = (0.25, 0.5, 0.75, 1.0)


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "check-schedule",
        help="alpha-bar, log-SNR and prior term of a noise schedule",
        description="Where a noise schedule begins and ends, and whether it ends in noise. Prints "
        "a table and draws the curves.",
        epilog="example: genlab check-schedule model/noise_schedule=linear,cosine model.steps=1000",
    )
    add_arguments(parser, "check-schedule")
    parser.set_defaults(command=check_schedule)


def check_schedule(overrides: Sequence[str], diffusers: Sequence[str], plot: Path) -> int:
    """Print and draw the noise schedules that the overrides, or names of diffusers, choose."""
    from genlab.diffusion.schedule_check import ScheduleSummary

    found: list[ScheduleSummary] = []
    if diffusers:
        from genlab.cli.schedulers import Scheduler

        found += [Scheduler(name).summary() for name in diffusers]
    if overrides or not diffusers:
        found += [
            ScheduleSummary.of(choice.name("noise_schedule", SCHEDULE), choice.process())
            for choice in choices(overrides)
        ]
    check_folder(plot)

    console = Console(soft_wrap=True, highlight=False)
    print_table(console, [_cells(one) for one in found], ("schedule",))
    for one in found:
        if one.warning:
            console.print(f"warning: {one.warning}", style="yellow", markup=False)
    _draw_schedules(found, plot)
    console.print(f"plot: {plot}", markup=False)
    return DONE


def _cells(one: ScheduleSummary) -> dict[str, str]:
    return {
        "schedule": one.name,
        "T": "-" if one.steps is None else str(one.steps),
        "log-SNR from": f"{float(one.log_snr[0]):.2f}",
        "to": f"{float(one.log_snr[-1]):.2f}",
        **{f"alpha-bar({t:g})": f"{one.alpha_bar_at(t):.3g}" for t in _TIMES},
        "L_T, bits/dim": f"{one.prior_bits:.1e}",
    }


def _draw_schedules(found: Sequence[ScheduleSummary], path: Path) -> None:
    from genlab.media import matplotlib_charts as charts

    figure, (left, right) = charts.panels(2)
    names = [f"{one.name}, T={one.steps}" if one.steps else one.name for one in found]
    for panel, curve, title in (
        (left, "log_snr", "log-SNR"),
        (right, "alpha_bar", "alpha-bar, the image's share of the variance"),
    ):
        lines = {
            name: (one.times.tolist(), getattr(one, curve).tolist())
            for name, one in zip(names, found, strict=True)
        }
        charts.draw_lines(panel, lines)
        panel.set(xlabel="t, from data to noise", xlim=(0, 1))
        panel.set_title(title, loc="left", fontsize=10)
    charts.add_legend(figure)
    charts.save(figure, path)
