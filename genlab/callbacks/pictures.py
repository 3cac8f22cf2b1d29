"""Pictures that a model can draw, as PNG in the run directory and as images in loggers."""

# no postponed annotations: see genlab.callbacks.base

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from genlab.callbacks.base import (
    MEASURED,
    MediaCallback,
    Pixels,
    data_of,
    evaluated_split,
    first_images,
    in_batches,
    latents_by_kl,
    shown,
)
from genlab.errors import number, whole
from genlab.media import matplotlib_charts as charts
from genlab.media import pictures
from genlab.modules.base import GenerativeModule
from genlab.protocols import (
    CanEncode,
    CanInterpolate,
    CanReconstruct,
    CanSample,
    CanSampleAggregate,
    CanTraverse,
)
from genlab.tracking.loggers import TakesImages


@dataclass(eq=False)
class PictureCallback(MediaCallback):
    """Draws pictures into the run's `pictures/`.

    Args:
        directory: the run's `pictures/`.
    """

    directory: Path

    def keep(self, trainer: pl.Trainer, name: str, drawn: Pixels, when: str) -> None:
        path = self.directory / f"{name}-{when}.png"
        pictures.save_png(path, drawn)
        for logger in trainer.loggers:
            if isinstance(logger, TakesImages):
                logger.log_image(f"pictures/{name}", path, trainer.global_step)


class Reconstructions(PictureCallback):
    """Validation images above their reconstructions."""

    name = "reconstructions"

    def draw(self, trainer: pl.Trainer, module: GenerativeModule) -> dict[str, Pixels]:
        model = module.model
        if not isinstance(model, CanReconstruct):
            return {}
        x = self.inputs(trainer, module)(self.images)
        both = shown(model, torch.cat([x, model.reconstruct(x)]))
        picture = pictures.rows(
            [both[: len(x)], both[len(x) :]],
            labels=["input", "output"],
            caption=self.caption(trainer, "Reconstructions"),
        )
        return {self.name: picture}


class Samples(PictureCallback):
    """Samples; where the loss does not pull codes to the prior, also samples from fitted codes."""

    name = "samples"

    def draw(self, trainer: pl.Trainer, module: GenerativeModule) -> dict[str, Pixels]:
        model = module.model
        if not isinstance(model, CanSample):
            return {}
        drawn = {self.name: (model.sample(self.images, module.seed), "Samples from the prior")}
        if isinstance(model, CanSampleAggregate) and not model.is_tied_to_prior:
            x = self.inputs(trainer, module)(MEASURED)
            drawn["samples_aggregate"] = (
                model.sample_aggregate(x, self.images, module.seed),
                "Samples from a Gaussian fitted to q(z)",
            )
        return {
            name: pictures.grid(shown(model, x), caption=self.caption(trainer, title))
            for name, (x, title) in drawn.items()
        }


@dataclass(eq=False, kw_only=True)
class StripCallback(PictureCallback):
    """Base of the pictures of strips, along which something changes in steps.

    Args:
        images: number of strips.
        steps: images in a strip, including both ends.
    """

    images: int = 4
    every_n_epochs: int = 0
    steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("steps", self.steps, 2)


class Interpolations(StripCallback):
    """Strips from one validation image to another, interpolated by the model."""

    name = "interpolation"

    def draw(self, trainer: pl.Trainer, module: GenerativeModule) -> dict[str, Pixels]:
        model = module.model
        if not isinstance(model, CanInterpolate):
            return {}
        x = self.inputs(trainer, module)(2 * self.images)
        half = len(x) // 2
        strips = model.interpolate(x[:half], x[half : 2 * half], self.steps)
        picture = pictures.grid(
            shown(model, strips.flatten(0, 1)),
            columns=self.steps,
            caption=self.caption(trainer, "Interpolation"),
        )
        return {self.name: picture}


@dataclass(eq=False, kw_only=True)
class Traversals(StripCallback):
    """One strip for each of the latents with the highest KL, from -`extent` to `extent`.

    Args:
        images: number of latents.
        extent: largest distance that a latent moves.
    """

    name: ClassVar[str] = "traversal"

    images: int = 8
    extent: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("extent", self.extent, above=0)

    def draw(self, trainer: pl.Trainer, module: GenerativeModule) -> dict[str, Pixels]:
        model = module.model
        if not isinstance(model, CanTraverse):
            return {}
        measured = first_images(data_of(trainer), evaluated_split(trainer), MEASURED)
        latents = latents_by_kl(model, measured.to(module.device), self.images)
        values = np.linspace(-self.extent, self.extent, self.steps).tolist()
        x = self.inputs(trainer, module)(1)
        table = model.traverse(x, [d for d, _ in latents], values)
        title = f"Latents by KL, from {-self.extent:g} to {self.extent:g}"
        picture = pictures.grid(
            shown(model, table.flatten(0, 1)),
            columns=self.steps,
            row_labels=[f"z{d}: {kl:.2f} nats" for d, kl in latents],
            caption=self.caption(trainer, title),
        )
        return {self.name: picture}


@dataclass(eq=False, kw_only=True)
class LatentMap(PictureCallback):
    """The posterior means of the evaluated split on their two principal axes, coloured by label.

    Args:
        images: number of points.
    """

    name: ClassVar[str] = "latent_map"

    images: int = 5000
    every_n_epochs: int = 0

    def draw(self, trainer: pl.Trainer, module: GenerativeModule) -> dict[str, Pixels]:
        model = module.model
        if not isinstance(model, CanEncode):
            return {}
        data, split = data_of(trainer), evaluated_split(trainer)
        x = first_images(data, split, self.images)
        means = in_batches(lambda batch: model.encode(batch.to(module.device)).mean.cpu(), x)
        points = principal_plane(means.flatten(1).double()).numpy()
        labels = data.labels(split)[: len(points)]
        classes = data.spec.classes
        figure = charts.figure(6, 5.4)
        axes = figure.add_subplot()
        for label in np.unique(labels):
            across, up = points[labels == label].T
            name = classes[label] if classes else str(label)
            axes.scatter(across, up, s=4, label=name, color=f"C{label % 10}")
        axes.legend(markerscale=3, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
        axes.set(xlabel="first principal axis of the posterior means", ylabel="second")
        axes.set_title(self.caption(trainer, "Latent map"), fontsize="medium")
        axes.set_aspect("equal", "datalim")
        return {self.name: charts.pixels(figure)}


def principal_plane(points: Tensor) -> Tensor:
    """Project points (N, d) on their two principal axes, (N, 2); the second is 0 if d = 1."""
    centred = points - points.mean(0)
    if centred.shape[1] > 2:
        return centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T
    return torch.nn.functional.pad(centred, (0, 2 - centred.shape[1]))
