"""Pictures of a diffusion model: into noise, out of it again, and where the bound goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from genlab.callbacks.pictures import PictureCallback, Pixels
from genlab.diffusion.process import diffuse
from genlab.diffusion.samplers import OnStep
from genlab.errors import ConfigError
from genlab.media import charts, pictures
from genlab.modules.ddpm import DDPM


class _OverTime(PictureCallback):
    """Columns are times.

    Args:
        steps: columns; 2 or more.
    """

    def __init__(
        self, directory: Path, images: int = 4, every_n_epochs: int = 0, steps: int = 10
    ) -> None:
        super().__init__(directory, images, every_n_epochs)
        if steps < 2:
            raise ConfigError(f"callbacks.{self.name}.steps={steps}: both ends make 2")
        self.steps = steps

    def draw(self, trainer: pl.Trainer, module: Any) -> dict[str, Pixels]:
        return self.of(trainer, module) if isinstance(module, DDPM) else {}

    def of(self, trainer: pl.Trainer, module: DDPM) -> dict[str, Pixels]:
        """The pictures of a diffusion model."""
        raise NotImplementedError


class ForwardNoising(_OverTime):
    """Validation images on their way into noise, at times even in t."""

    name = "forward"

    def of(self, trainer: pl.Trainer, module: DDPM) -> dict[str, Pixels]:
        x0 = 2 * self.inputs(trainer, module, self.images) - 1
        generator = torch.Generator().manual_seed(module.seed)
        eps = torch.randn(x0.shape, generator=generator).to(x0)
        times = torch.linspace(module.process.first, 1, self.steps, dtype=torch.float64)
        log_snrs = module.process.log_snr(times.to(module.device)).detach()
        columns = [x0] + [diffuse(x0, eps, log_snr.expand(len(x0))) for log_snr in log_snrs]
        shown = _from_model_space(module, torch.stack(columns, 1).flatten(0, 1))
        low, high = float(log_snrs[0]), float(log_snrs[-1])
        title = f"x_0, then x_t from log-SNR {low:.1f} to {high:.1f} in even steps of t"
        caption = self.caption(trainer, module, title)
        return {self.name: pictures.grid(shown, columns=len(columns), caption=caption)}


class Trajectories(_OverTime):
    """Samples on their way out of noise, as `trajectory` pictures them."""

    name = "trajectory"

    def of(self, trainer: pl.Trainer, module: DDPM) -> dict[str, Pixels]:
        steps = module.sampler.path(module.process).steps
        return {
            self.name: trajectory(
                module,
                lambda keep: module.sample(self.images, module.seed, on_step=keep),
                steps,
                self.steps,
                self.caption(trainer, module, f"Sampling in {steps} steps"),
            )
        }


def _from_model_space(module: DDPM, x: Tensor) -> Pixels:
    """[-1, 1] to uint8; noise beyond that is cut off."""
    return np.asarray(module.codec.decode((x.float().cpu() + 1) / 2).numpy())


def trajectory(
    module: DDPM, draw: Callable[[OnStep], object], steps: int, columns: int, caption: str
) -> Pixels:
    """Samples on their way out of noise: x_t above the image that the network sees in it.

    Args:
        draw: samples in `steps` steps and shows each of them to the function that it is given.
        columns: times that are pictured, at most.
    """
    chosen = {round(i) for i in np.linspace(0, steps - 1, min(columns, steps))}
    noisy: list[Tensor] = []
    seen: list[Tensor] = []

    def keep(i: int, t: float, x_t: Tensor, x0_hat: Tensor) -> None:
        if i in chosen:
            noisy.append(x_t.clone())
            seen.append(x0_hat.clone())

    draw(keep)
    # one image after the other, its x_t above its x0_hat
    both = torch.stack([torch.stack(noisy, 1), torch.stack(seen, 1)], 1)
    return pictures.grid(
        _from_model_space(module, both.flatten(0, 2)),
        columns=len(noisy),
        row_labels=["x_t", "x0_hat"] * len(both),
        caption=caption,
    )


class BoundOverTime(PictureCallback):
    """Where the bound of the evaluated split is spent: by time, and by log-SNR."""

    name = "bound"

    def draw(self, trainer: pl.Trainer, module: Any) -> dict[str, Pixels]:
        curves = module.final_curves
        if "time" not in curves:
            return {}
        figure, (by_time, by_log_snr) = charts.panels(2)
        times = np.array([0.0, *curves["time"]])
        if (steps := module.process.steps) is not None:
            # bins hold whole steps, not equally many
            times = np.floor(times * steps + 1e-6) / steps
        density = np.array(curves["nats"]) / np.diff(times)
        charts.draw_lines(by_time, {"": (times[1:].tolist(), density.tolist())})
        by_time.set(xlabel="t", ylabel="nats per image and unit of t", yscale="log")
        edges, shares = curves["log_snr_edges"], curves["nats_by_log_snr"]
        by_log_snr.stairs(shares, edges, color=charts.COLOURS[0], fill=True)
        visited = np.flatnonzero(shares)
        by_log_snr.set_xlim(edges[visited[0]], edges[visited[-1] + 1])
        by_log_snr.set(xlabel="log-SNR (data on the right)", ylabel="nats per image in each bin")
        title = self.caption(trainer, module, "Where the bound is spent")
        figure.suptitle(title, fontsize="medium")
        return {self.name: charts.pixels(figure)}
