"""Pictures of a diffusion model: the forward process, the reverse process, and the bound."""

# no postponed annotations: see genlab.callbacks.base

from collections.abc import Callable
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from genlab.callbacks.base import Pixels, evaluated_split, shown
from genlab.callbacks.pictures import PictureCallback, StripCallback
from genlab.media import matplotlib_charts as charts
from genlab.media import pictures
from genlab.modules.base import GenerativeModule
from genlab.protocols import HasTrajectory, OnStep


class ForwardNoising(StripCallback):
    """Validation images in the forward process, at times evenly spaced in t."""

    name = "forward"

    def draw(self, trainer: pl.Trainer, module: GenerativeModule) -> dict[str, Pixels]:
        model = module.model
        if not isinstance(model, HasTrajectory):
            return {}
        x = self.inputs(trainer, module)(self.images)
        way, log_snrs = model.noised(x, self.steps, module.seed)
        title = (
            f"x_0, then x_t from log-SNR {log_snrs[0]:.1f} to {log_snrs[-1]:.1f} in even steps of t"
        )
        picture = pictures.grid(
            shown(model, way.flatten(0, 1)),
            columns=way.shape[1],
            caption=self.caption(trainer, title),
        )
        return {self.name: picture}


class Trajectories(StripCallback):
    """Samples in the reverse process, drawn by `trajectory`."""

    name = "trajectory"

    def draw(self, trainer: pl.Trainer, module: GenerativeModule) -> dict[str, Pixels]:
        model = module.model
        if not isinstance(model, HasTrajectory):
            return {}
        steps = model.sampling_steps()
        picture = trajectory(
            model,
            lambda keep: model.sample(self.images, module.seed, on_step=keep),
            steps,
            self.steps,
            self.caption(trainer, f"Sampling in {steps} steps"),
        )
        return {self.name: picture}


def trajectory(
    model: Any, draw: Callable[[OnStep], object], steps: int, columns: int, caption: str
) -> Pixels:
    """Draw samples in the reverse process: each x_t above the network's x0_hat.

    Args:
        model: the model that samples.
        draw: samples in `steps` steps, and calls the given function at each of them.
        columns: largest number of times that are drawn.
    """
    chosen = {round(i) for i in np.linspace(0, steps - 1, min(columns, steps))}
    noisy: list[Tensor] = []
    seen: list[Tensor] = []

    def keep(i: int, t: float, x_t: Tensor, x0_hat: Tensor) -> None:
        if i in chosen:
            noisy.append(x_t.clone())
            seen.append(x0_hat.clone())

    draw(keep)
    # two rows per image: x_t above x0_hat
    both = torch.stack([torch.stack(noisy, 1), torch.stack(seen, 1)], 1)
    return pictures.grid(
        shown(model, (both.flatten(0, 2) + 1) / 2),
        columns=len(noisy),
        row_labels=["x_t", "x0_hat"] * len(both),
        caption=caption,
    )


class BoundOverTime(PictureCallback):
    """The parts of the evaluated split's bound, by time and by log-SNR."""

    name: ClassVar[str] = "bound"

    def draw(self, trainer: pl.Trainer, module: GenerativeModule) -> dict[str, Pixels]:
        curves = module.evaluations[evaluated_split(trainer)].curves
        if "time" not in curves:
            return {}
        figure, (by_time, by_log_snr) = charts.panels(2)
        density = np.array(curves["nats"]) / np.diff(curves["time"], prepend=0)
        charts.draw_lines(by_time, {"": (curves["time"], density.tolist())})
        by_time.set(xlabel="t", ylabel="nats per image and unit of t", yscale="log")
        edges, shares = curves["log_snr_edges"], curves["nats_by_log_snr"]
        by_log_snr.stairs(shares, edges, color=charts.COLOURS[0], fill=True)
        visited = np.flatnonzero(shares)
        by_log_snr.set_xlim(edges[visited[0]], edges[visited[-1] + 1])
        by_log_snr.set(xlabel="log-SNR (data on the right)", ylabel="nats per image in each bin")
        figure.suptitle(self.caption(trainer, "Where the bound is spent"), fontsize="medium")
        return {self.name: charts.pixels(figure)}
