"""`genlab forecast`: what each KL weight must do, from the data alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from genlab.errors import DONE, ConfigError

if TYPE_CHECKING:
    from genlab.vae.forecast import Forecast

#: Weights that are forecast when none are asked for.
WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

_KNOB = "model.kl_weight="


def add(commands: Any) -> None:
    """Describe the command to the parser."""
    forecast = commands.add_parser(
        "forecast",
        help="what each KL weight must do, from the data alone",
        description="The PCA of the data, and what it says of each KL weight before any training: "
        "the optimum of the linear VAE, the weight at which it collapses, and a ceiling on the "
        "rate that holds for any decoder.",
        epilog="example: genlab forecast data=mnist_mini model/likelihood=gaussian "
        "model.kl_weight=0,1,30",
    )
    forecast.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="as for train.py; model.kl_weight takes several values, separated by commas",
    )
    forecast.set_defaults(run=_forecast)


def _weights(overrides: Sequence[str]) -> tuple[list[str], list[float]]:
    """The overrides without the knob, and the knob's values."""
    given = [o for o in overrides if o.startswith(_KNOB)]
    rest = [o for o in overrides if not o.startswith(_KNOB)]
    if not given:
        return rest, list(WEIGHTS)
    text = given[-1].removeprefix(_KNOB)
    try:
        return rest, [float(value) for value in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{_KNOB}{text}: numbers, separated by commas, are needed") from error


def _forecast(options: argparse.Namespace) -> int:
    from genlab.config import configs
    from genlab.vae.forecast import forecasts
    from genlab.vae.kl_weight import effective

    overrides, weights = _weights(options.overrides)
    config = configs.resolve(configs.compose(overrides))
    data = configs.build(config["data"], "data")
    module = configs.build(config["model"], "model", spec=data.spec, seed=0)
    if not hasattr(module, "weight"):
        name = type(module).__name__
        raise ConfigError(f"model={name.lower()}: a {name} has no KL weight; give model=vae")
    dialect = configs.build(config["model"]["kl_dialect"])
    meanings = [
        effective(weight, dialect, module.likelihood, data.spec, module.latent_dim)
        for weight in weights
    ]
    data.prepare_data()
    data.setup("fit")
    found = forecasts(
        module.likelihood,
        data.pixels("train"),
        data.spec,
        module.latent_dim,
        [meaning.beta_effective for meaning in meanings],
    )
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{data.source.name}: {data.size('train'):,} images of "
        f"{' x '.join(map(str, data.spec.shape))}; {type(module.likelihood).__name__}, "
        f"{module.latent_dim} latents"
    )
    console.print(_forecast_table(weights, found, module.latent_dim))
    console.print(_reading(found[0]), markup=False)
    return DONE


def _forecast_table(weights: Sequence[float], found: Sequence[Forecast], latent_dim: int) -> Table:
    from genlab.vae.diagnostics import verdict

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in (
        "kl_weight",
        "beta",
        "active",
        "rate",
        "reconstruction",
        "verdict",
        "ceiling",
    ):
        table.add_column(column, justify="left" if column == "verdict" else "right", no_wrap=True)
    for weight, one in zip(weights, found, strict=True):
        active = "-" if one.active_units is None else f"{one.active_units}/{latent_dim}"
        table.add_row(
            f"{weight:g}",
            f"{one.beta:g}",
            active,
            _nats(one.rate),
            _nats(one.reconstruction),
            "-" if one.active_units is None else verdict(one.active_units, latent_dim),
            _nats(one.rate_ceiling),
        )
    return table


def _nats(value: float | None) -> str:
    if value is None:
        return "-"
    return "unbounded" if value == float("inf") else f"{value:.2f}"


def _reading(one: Forecast) -> str:
    lines = [f"Nats per image. Basis: {one.basis}."]
    if one.collapse_threshold is not None:
        lines.append(
            f"From beta {one.collapse_threshold:.4g} on, the solution that uses no "
            "latent is locally stable, whatever the decoder."
        )
    if one.rate_ceiling is not None:
        lines.append("No decoder at a global optimum has a rate above the ceiling.")
    return "\n".join(lines)
