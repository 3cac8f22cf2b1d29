"""`genlab check-schedule`: log-SNR and prior term of noise schedules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from genlab.cli.choices import SCHEDULE, add_arguments, chart_path, choices, print_table
from genlab.cli.output import say
from genlab.cli.parsing import add_command
from genlab.errors import DONE

if TYPE_CHECKING:
    import altair as alt

    from genlab.diffusion.schedule_check import ScheduleSummary

_TIMES = (0.5, 1.0)
#: Pixels.
_PANEL = 420


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "check-schedule",
        "where noise schedules begin and end, as a table and a chart",
        "Print and draw noise schedules: the log-SNR at both ends, alpha-bar (the image's share of "
        "the variance), and L_T, the prior term of the bound, which is above 0.001 bits/dim where "
        "a schedule does not end in noise. Nothing is trained.",
        "genlab check-schedule model/noise_schedule=linear,cosine model.steps=1000",
        "genlab check-schedule --diffusers DDPMScheduler --out theirs.png",
    )
    add_arguments(parser)
    parser.set_defaults(command=check_schedule)


def check_schedule(
    overrides: Sequence[str], diffusers: Sequence[str], out: Path | None, overwrite: bool
) -> int:
    """Print and draw the noise schedules that the overrides, or names of diffusers, choose."""
    from genlab.diffusion.schedule_check import ScheduleSummary
    from genlab.media import charts

    path = chart_path(out, overwrite, "check-schedule")
    found: list[ScheduleSummary] = []
    if diffusers:
        from genlab.cli.schedulers import Scheduler

        found += [Scheduler(name).summary() for name in diffusers]
    if overrides or not diffusers:
        found += [
            ScheduleSummary.of(choice.files[SCHEDULE], choice.process())
            for choice in choices(overrides)
        ]

    console = Console(soft_wrap=True, highlight=False)
    print_table(console, [_cells(one) for one in found], ("schedule",))
    for one in found:
        if one.warning:
            say(console, f"warning: {one.warning}", "yellow")
    charts.save(schedules_figure(found), path)
    say(console, f"chart: {path}")
    return DONE


def _cells(one: ScheduleSummary) -> dict[str, str]:
    return {
        "schedule": one.name,
        "T": "-" if one.steps is None else str(one.steps),
        "log-SNR\nfrom": f"{float(one.log_snr[0]):.2f}",
        "log-SNR\nto": f"{float(one.log_snr[-1]):.2f}",
        **{f"alpha-bar\nat t={t:g}": f"{one.alpha_bar_at(t):.3g}" for t in _TIMES},
        "L_T,\nbits/dim": f"{one.prior_bits:.1e}",
    }


def schedules_figure(found: Sequence[ScheduleSummary]) -> alt.HConcatChart:
    """Draw log-SNR and alpha-bar of each schedule over time, from data to noise."""
    import altair as alt

    from genlab.media import charts

    names = [f"{one.name}, T={one.steps}" if one.steps else one.name for one in found]
    curves = {
        name: (one.times.tolist(), one.log_snr.tolist())
        for name, one in zip(names, found, strict=True)
    }
    width = charts.widths(curves)
    rows = [
        {"schedule": name, "t": t, "log_snr": log_snr, "alpha_bar": share, "width": width[name]}
        for name, one in zip(names, found, strict=True)
        for t, log_snr, share in zip(*curves[name], one.alpha_bar.tolist(), strict=True)
    ]
    lines = (
        alt.Chart(charts.table(rows))
        .mark_line()
        .encode(
            alt.X("t:Q").title("t, from data to noise").scale(domain=(0, 1)),
            alt.Color("schedule:N").scale(domain=names).legend(charts.key(names, 2 * _PANEL)),
            alt.StrokeWidth("width:Q", scale=None),
        )
        .properties(width=_PANEL)
    )
    return alt.hconcat(
        lines.encode(alt.Y("log_snr:Q").title(None)).properties(
            title={"text": "log-SNR", "style": "panel"}
        ),
        lines.encode(alt.Y("alpha_bar:Q").title(None)).properties(
            title={"text": "alpha-bar: the image's share of the variance", "style": "panel"}
        ),
        title="Noise schedules",
    )
