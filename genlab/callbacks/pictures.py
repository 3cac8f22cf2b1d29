"""Pictures of what a model can do, as PNG in the run directory and as images on W&B.

Each callback asks for one ability (`genlab.protocols`) and is silent for a model without it. They
look at the end of a validation, where averaged weights are in place, and once more in the test.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genlab.codecs import PixelCodec
from genlab.errors import ConfigError
from genlab.media import pictures
from genlab.protocols import CanInterpolate, CanReconstruct, CanSample

log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]


def encoded(module: Any, pixels: npt.ArrayLike) -> Tensor:
    """Stored pixels (N, C, H, W) in model space, where the module is."""
    x: Tensor = module.codec.encode(torch.from_numpy(np.array(pixels)))
    return x.to(module.device)


class PictureCallback(pl.Callback):
    """Draws every `every_n_epochs` epochs, after the last one, and in the test.

    Args:
        directory: the run's `pictures/`.
        images: how many images a picture shows.
        every_n_epochs: epochs between two pictures; 0 draws in the test alone.
    """

    name = "picture"

    def __init__(self, directory: Path, images: int = 10, every_n_epochs: int = 10) -> None:
        if images < 1 or every_n_epochs < 0:
            raise ConfigError(
                f"callbacks.{self.name}: images={images}, every_n_epochs={every_n_epochs}: "
                "at least 1 image, and 0 epochs or more"
            )
        self.directory, self.images, self.every_n_epochs = directory, images, every_n_epochs

    @abstractmethod
    def draw(self, trainer: pl.Trainer, module: Any) -> dict[str, Pixels]:
        """Pictures by name; none if the model lacks the ability."""

    def inputs(self, trainer: pl.Trainer, module: Any, count: int) -> Tensor:
        """The first validation images in model space, the same in every run on these data."""
        return encoded(module, trainer.datamodule.pixels("val")[:count])  # type: ignore[attr-defined]

    def shown(self, module: Any, x: Tensor) -> Pixels:
        """Model space to uint8 (N, C, H, W); real-valued data are stretched to their range."""
        codec: PixelCodec = module.codec
        x = x.detach().float().cpu()
        if not codec.is_discrete:
            low, high = x.amin(), x.amax()
            x = (x - low) / (high - low).clamp(min=1e-9)
        return np.asarray(codec.decode(x).numpy())

    def caption(self, trainer: pl.Trainer, module: Any, title: str) -> str:
        return ", ".join(filter(None, [title, module.label(), f"step {trainer.global_step}"]))

    def keep(self, trainer: pl.Trainer, name: str, picture: Pixels, when: str) -> None:
        """Into the run directory, and to the loggers that take pictures."""
        path = self.directory / f"{name}-{when}.png"
        pictures.save_png(path, picture)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image(f"pictures/{name}", path, trainer.global_step)

    def _draw(self, trainer: pl.Trainer, module: pl.LightningModule, when: str) -> None:
        if not self.takes_part(trainer, module):
            return
        with self.worth_no_run(trainer):
            for name, picture in self.draw(trainer, module).items():
                if trainer.is_global_zero:
                    self.keep(trainer, name, picture, when)

    def takes_part(self, trainer: pl.Trainer, module: Any) -> bool:
        """Whether this process draws: the first alone, unless it needs the others for that."""
        return trainer.is_global_zero or module.is_spread

    @contextmanager
    def worth_no_run(self, trainer: pl.Trainer) -> Iterator[None]:
        """A file that cannot be written, on a full disk for one, is named and passed over."""
        try:
            yield
        except OSError as error:
            log.warning("no %s at step %d: %s", self.name, trainer.global_step, error)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or self.every_n_epochs == 0:
            return
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw(trainer, pl_module, f"step{trainer.global_step:07d}")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, pl_module, "final")


class Reconstructions(PictureCallback):
    """Validation images above what the model makes of them."""

    name = "reconstructions"

    def draw(self, trainer: pl.Trainer, module: Any) -> dict[str, Pixels]:
        if not isinstance(module, CanReconstruct):
            return {}
        x = self.inputs(trainer, module, self.images)
        both = self.shown(module, torch.cat([x, module.reconstruct(x)]))
        return {
            self.name: pictures.rows(
                [both[: len(x)], both[len(x) :]],
                labels=["input", "output"],
                caption=self.caption(trainer, module, "Reconstructions"),
            )
        }


class Samples(PictureCallback):
    """Images from the prior; at KL weight 0 also from the aggregate posterior, beside them."""

    name = "samples"

    def draw(self, trainer: pl.Trainer, module: Any) -> dict[str, Pixels]:
        if not isinstance(module, CanSample):
            return {}
        model: Any = module
        drawn = {
            self.name: pictures.grid(
                self.shown(module, model.sample(self.images, model.seed)),
                caption=self.caption(trainer, module, "Samples from the prior"),
            )
        }
        if hasattr(model, "sample_aggregate") and model.weight.beta_effective == 0:
            drawn["samples_aggregate"] = pictures.grid(
                self.shown(module, model.sample_aggregate(self.images, model.seed)),
                caption=self.caption(trainer, module, "Samples from a Gaussian fitted to q(z)"),
            )
        return drawn


class Interpolations(PictureCallback):
    """Strips from one validation image to another, through the model's space.

    Args:
        steps: images in a strip, both ends included.
    """

    name = "interpolation"

    def __init__(
        self, directory: Path, images: int = 4, every_n_epochs: int = 0, steps: int = 10
    ) -> None:
        super().__init__(directory, images, every_n_epochs)
        if steps < 2:
            raise ConfigError(f"callbacks.interpolation.steps={steps}: both ends make 2")
        self.steps = steps

    def draw(self, trainer: pl.Trainer, module: Any) -> dict[str, Pixels]:
        if not isinstance(module, CanInterpolate):
            return {}
        x = self.inputs(trainer, module, 2 * self.images)
        half = len(x) // 2
        strips = module.interpolate(x[:half], x[half : 2 * half], self.steps)
        caption = self.caption(trainer, module, "Interpolation")
        shown = self.shown(module, strips.flatten(0, 1))
        return {self.name: pictures.grid(shown, columns=self.steps, caption=caption)}


class Traversals(PictureCallback):
    """One row for each of the latents with the highest KL, moved from -`extent` to `extent`."""

    name = "traversal"

    def __init__(
        self,
        directory: Path,
        images: int = 8,
        every_n_epochs: int = 0,
        steps: int = 10,
        extent: float = 3.0,
    ) -> None:
        super().__init__(directory, images, every_n_epochs)
        if steps < 2 or extent <= 0:
            raise ConfigError(
                f"callbacks.traversal: steps={steps}, extent={extent}: 2 or more, above 0"
            )
        self.steps, self.extent = steps, extent

    def draw(self, trainer: pl.Trainer, module: Any) -> dict[str, Pixels]:
        if not hasattr(module, "traverse"):
            return {}
        means, log_vars, _ = module.posteriors()
        kl = 0.5 * (means.square() + log_vars.exp() - 1 - log_vars).mean(0)
        dims = kl.argsort(descending=True)[: self.images].tolist()
        values = np.linspace(-self.extent, self.extent, self.steps).tolist()
        table = module.traverse(self.inputs(trainer, module, 1), dims, values)
        picture = pictures.grid(
            self.shown(module, table.flatten(0, 1)),
            columns=self.steps,
            row_labels=[f"z{d}: {kl[d]:.2f} nats" for d in dims],
            caption=self.caption(
                trainer, module, f"Latents by KL, from {-self.extent:g} to {self.extent:g}"
            ),
        )
        return {self.name: picture}


class LatentMap(PictureCallback):
    """The posterior means of the evaluated split on their two principal axes, coloured by label."""

    name = "latent_map"

    def __init__(self, directory: Path, images: int = 5000, every_n_epochs: int = 0) -> None:
        super().__init__(directory, images, every_n_epochs)

    def draw(self, trainer: pl.Trainer, module: Any) -> dict[str, Pixels]:
        if not hasattr(module, "posteriors"):
            return {}
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        means = module.posteriors()[0][: self.images].double()
        centred = means - means.mean(0)
        if means.shape[1] > 2:
            axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
            centred = centred @ axes.T
        elif means.shape[1] == 1:
            centred = torch.cat([centred, torch.zeros_like(centred)], dim=1)
        split = "test" if trainer.testing else "val"
        labels = trainer.datamodule.labels(split)[: len(means)]  # type: ignore[attr-defined]
        figure, axis = plt.subplots(figsize=(6, 5.4), layout="constrained")
        for label in np.unique(labels):
            chosen = labels == label
            points = centred[torch.from_numpy(chosen)]
            name = module.spec.classes[label] if module.spec.classes else str(label)
            axis.scatter(points[:, 0], points[:, 1], s=4, label=name, color=f"C{label % 10}")
        axis.legend(markerscale=3, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
        axis.set(xlabel="first principal axis of the posterior means", ylabel="second")
        axis.set_title(self.caption(trainer, module, "Latent map"), fontsize="medium")
        axis.set_aspect("equal", "datalim")
        figure.canvas.draw()
        picture = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
        plt.close(figure)
        return {self.name: picture}
