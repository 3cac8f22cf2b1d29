"""Pictures of a diffusion model: the forward process, the reverse process, and the bound."""

# no postponed annotations: see genlab.callbacks.base

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from genlab.callbacks.base import SPLITS, Pixels, evaluated_split, shown
from genlab.callbacks.pictures import PictureCallback, StripCallback
from genlab.media import charts, pictures
from genlab.modules.base import GenerativeModule
from genlab.protocols import HasTrajectory, OnStep

if TYPE_CHECKING:
    import altair as alt

_LOG_SNR = "log-SNR (data on the right)"
#: Of a panel, in pixels.
_WIDTH, _HEIGHT = 380, 220


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
            f"{self.split(trainer).capitalize()} images, then x_t from log-SNR {log_snrs[0]:.1f} "
            f"to {log_snrs[-1]:.1f} in even steps of t"
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
        shown(model, model.images_of(both.flatten(0, 2))),
        columns=len(noisy),
        row_labels=["x_t", "x0_hat"] * len(both),
        caption=caption,
    )


class BoundOverTime(PictureCallback):
    """The schedule, the bound and the error of the evaluated split, by time and by log-SNR."""

    name: ClassVar[str] = "bound"

    def draw(self, trainer: pl.Trainer, module: GenerativeModule) -> dict[str, Pixels]:
        split = evaluated_split(trainer)
        curves = module.evaluations[split].curves
        if "time" not in curves:
            return {}
        title = self.caption(trainer, f"The bound of the {SPLITS[split]} split")
        return {self.name: charts.pixels(bound_figure(curves, title))}


def bound_figure(curves: Mapping[str, Sequence[float]], title: str) -> "alt.ConcatChart":
    """Draw log-SNR and bound by time, bound and error of the network by log-SNR.

    Args:
        curves: those of `genlab.diffusion.curves.BoundCurves`.
    """
    import altair as alt

    times = curves["time"]
    parts = zip(curves["log_snr"], curves["nats"], curves["squared_error_per_dim"], strict=True)
    by_time = [
        {
            "from": start,
            "to": end,
            "t": (start + end) / 2,
            "log_snr": log_snr,
            "nats": nats,
            "density": nats / (end - start),
            "error": error,
        }
        for start, end, (log_snr, nats, error) in zip([0.0, *times], times, parts, strict=False)
    ]
    edges = curves["log_snr_edges"]
    shares = zip(edges[:-1], edges[1:], curves["nats_by_log_snr"], strict=True)
    by_log_snr = [{"from": low, "to": high, "nats": nats} for low, high, nats in shares if nats]
    ends = [row[end] for row in by_log_snr for end in ("from", "to")]
    log_snr_scale = alt.Scale(domain=(min(ends), max(ends)), nice=False)

    def panel(rows: charts.Rows, title: str) -> "alt.Chart":
        sized = alt.Chart(charts.table(rows)).properties(width=_WIDTH, height=_HEIGHT)
        return sized.properties(title={"text": title, "style": "panel"})

    def logarithmic(field: str, title: str) -> "alt.Y":
        ticks = charts.decades(row[field] for row in by_time)
        scale = alt.Scale(type="log", nice=False)
        return alt.Y(f"{field}:Q").title(title).scale(scale).axis(values=ticks)

    t = alt.X("t:Q").title("t, from data to noise").scale(domain=(0, 1))
    log_snr = alt.X("log_snr:Q").title(_LOG_SNR).scale(log_snr_scale)
    return alt.concat(
        panel(by_time, "Noise schedule").mark_line().encode(t, alt.Y("log_snr:Q").title("log-SNR")),
        panel(by_time, "Bound by time")
        .mark_line()
        .encode(t, logarithmic("density", "nats per image and unit of t")),
        panel(by_log_snr, "Bound by log-SNR")
        .mark_bar(binSpacing=1)
        .encode(
            alt.X("from:Q").bin("binned").title(_LOG_SNR).scale(log_snr_scale),
            alt.X2("to:Q"),
            alt.Y("nats:Q").title("nats per image in each bin"),
        ),
        panel(by_time, "Error of the network by log-SNR")
        .mark_line(point={"size": 16})
        .encode(log_snr, logarithmic("error", "squared error of x0_hat per dimension")),
        columns=2,
        title=title,
    )
