"""`genlab forecast`: forecast the effect of each KL weight from the data, without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rich.console import Console

from genlab.cli.choices import print_table
from genlab.cli.output import say
from genlab.cli.parsing import add_command
from genlab.errors import DONE, ConfigError

if TYPE_CHECKING:
    from genlab.vae.forecast import Forecast
    from genlab.vae.kl import KLPenalty
    from genlab.vae.likelihoods import Likelihood

#: Default weights.
WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

_KEY = "model.kl_weight"


@runtime_checkable
class HasKLWeight(Protocol):
    """A model whose loss is a reconstruction term and a weighted KL of its latents."""

    latent_dim: int
    likelihood: Likelihood
    kl_penalty: KLPenalty


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "forecast",
        "forecast the effect of each KL weight from the data alone",
        "Forecast from a PCA of the data, before any training, what each KL weight does: the "
        "optimum of a linear VAE, the weight from which it uses no latent, and a ceiling on the "
        "rate (the KL in nats per image) that holds for any decoder.",
        "genlab forecast",
        "genlab forecast data=mnist_mini model/likelihood=gaussian \\\n  model.kl_weight=0,1,30",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings as for genlab train; model.kl_weight takes several values, separated by "
        "commas (default: " + ",".join(f"{w:g}" for w in WEIGHTS) + ")",
    )
    parser.set_defaults(command=forecast)


def forecast(overrides: Sequence[str]) -> int:
    """Print a table of the forecast effect of each KL weight on the model of the overrides."""
    from genlab.config.build import build
    from genlab.config.check import check, need, resolve
    from genlab.config.compose import compose
    from genlab.data.datamodule import ImageData
    from genlab.training.run_config import build_model, check_model
    from genlab.vae.forecast import forecasts

    rest, weights = _weights(overrides)
    config = resolve(compose(rest))
    node = check_model(config["model"])
    data: ImageData = build(need(check(config["data"], "data"), ImageData, "data"), "data")
    model = build_model(node, data.spec)
    if not isinstance(model, HasKLWeight):
        family = type(model).__name__
        raise ConfigError(f"model={family.lower()}: a {family} has no KL weight; give model=vae")
    # each model converts its weight from the convention of the config
    models: list[Any] = [build_model({**node, "kl_weight": w}, data.spec) for w in weights]
    data.prepare_data()
    data.setup("fit")
    found = forecasts(
        model.likelihood,
        data.pixels("train"),
        data.spec,
        model.latent_dim,
        [one.kl_penalty.weight.beta_effective for one in models],
    )
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{data.source.name}: {data.size('train'):,} images of "
        f"{' x '.join(map(str, data.spec.shape))}; {type(model.likelihood).__name__}, "
        f"{model.latent_dim} latents"
    )
    rows = [_cells(w, one, model.latent_dim) for w, one in zip(weights, found, strict=True)]
    print_table(console, rows, ("verdict",))
    say(console, _reading(found[0]))
    return DONE


def _weights(overrides: Sequence[str]) -> tuple[list[str], list[float]]:
    """Split off `model.kl_weight`: return the other overrides, and its values."""
    given = [o for o in overrides if o.startswith(f"{_KEY}=")]
    rest = [o for o in overrides if not o.startswith(f"{_KEY}=")]
    if not given:
        return rest, list(WEIGHTS)
    try:
        return rest, [float(value) for value in given[-1].partition("=")[2].split(",")]
    except ValueError as error:
        raise ConfigError(f"{given[-1]}: numbers, separated by commas, are needed") from error


def _cells(weight: float, one: Forecast, latent_dim: int) -> dict[str, str]:
    from genlab.vae.diagnostics import verdict

    active = one.active_units
    return {
        "kl_weight": f"{weight:g}",
        "beta": f"{one.beta:g}",
        "active": "-" if active is None else f"{active}/{latent_dim}",
        "rate": _nats(one.rate),
        "reconstruction": _nats(one.reconstruction),
        "verdict": "-" if active is None else verdict(active, latent_dim),
        "ceiling": _nats(one.rate_ceiling),
    }


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
