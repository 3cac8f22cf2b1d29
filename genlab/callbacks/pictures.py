"""Pictures that a model can draw, as PNG in the run directory and as images in loggers."""

# no postponed annotations: see genlab.callbacks.base

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genlab.callbacks.base import (
    MEASURED,
    SPLITS,
    MediaCallback,
    Pixels,
    data_of,
    evaluated_split,
    first_images,
    in_batches,
    input_split,
    latents_by_kl,
    shown,
)
from genlab.errors import number, whole
from genlab.media import charts, pictures
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

if TYPE_CHECKING:
    import altair as alt

#: Largest coordinate on the scale that all latent maps share; a standard normal prior has 99.99 %
#: of its mass within it on each axis.
_EXTENT = 4.0
#: Pixels.
_SIDE = 380


@dataclass(eq=False)
class PictureCallback(MediaCallback):
    """Draws pictures into the run's `pictures/`.

    Args:
        directory: the run's `pictures/`.
    """

    directory: Path

    def split(self, trainer: pl.Trainer) -> str:
        """Name the split of the images to draw from."""
        return SPLITS[input_split(data_of(trainer))]

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
            caption=self.caption(trainer, f"Reconstructions of {self.split(trainer)} images"),
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
            caption=self.caption(trainer, f"Between {self.split(trainer)} images"),
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
        split = SPLITS[evaluated_split(trainer)]
        title = (
            f"Latents by KL on {split} images, each moved from {-self.extent:g} to {self.extent:g}"
        )
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
        names = {label: classes[label] if classes else str(label) for label in np.unique(labels)}
        title = self.caption(trainer, f"Posterior means of {len(points):,} {SPLITS[split]} images")
        figure = latent_figure(points, [names[i] for i in labels], list(names.values()), title)
        return {self.name: charts.pixels(figure)}


def latent_figure(
    points: npt.NDArray[np.float64], names: Sequence[str], order: Sequence[str], title: str
) -> "alt.HConcatChart":
    """Draw points (N, 2) by name, twice: on a scale that all runs share, and on their own.

    On their own scale, the means of a collapsed run look as spread as those of any other, although
    they differ by thousandths.

    Args:
        order: the different names in the order of the key.
    """
    import altair as alt

    rows = [
        {"name": name, "first": first, "second": second}
        for name, (first, second) in zip(names, points.tolist(), strict=True)
    ]
    outside = int((np.abs(points) > _EXTENT).any(1).sum())
    own = max(float(np.abs(points).max(initial=0)), 1e-9)
    scheme: Literal["tableau10", "tableau20"] = "tableau10" if len(order) <= 10 else "tableau20"

    def panel(extent: float, title: str, subtitle: str) -> "alt.Chart":
        scale = alt.Scale(domain=(-extent, extent), nice=False)
        return (
            alt.Chart()
            .mark_circle(size=14, opacity=0.7, clip=True)
            .encode(
                alt.X("first:Q").title("first principal axis of the means").scale(scale),
                alt.Y("second:Q").title("second principal axis").scale(scale),
                alt.Color("name:N")
                .scale(domain=order, scheme=scheme)
                .legend(title=None, symbolSize=80, symbolOpacity=1, columns=len(order) // 21 + 1),
            )
            .properties(
                width=_SIDE,
                height=_SIDE,
                title={"text": title, "subtitle": subtitle, "style": "panel"},
            )
        )

    beyond = f"{outside:,} points lie outside" if outside else "no point lies outside"
    return alt.hconcat(
        panel(_EXTENT, f"On the scale of every run: \u00b1{_EXTENT:g}", beyond),
        panel(own, f"On its own scale: \u00b1{own:.2g}", "the largest distance on either axis"),
        data=charts.table(rows),
        title=title,
    )


def principal_plane(points: Tensor) -> Tensor:
    """Project points (N, d) on their two principal axes, (N, 2); the second is 0 if d = 1."""
    centred = points - points.mean(0)
    if centred.shape[1] > 2:
        return centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T
    return torch.nn.functional.pad(centred, (0, 2 - centred.shape[1]))
