"""Base of the callbacks that draw: when, in which process, and from which images.

Each callback needs one ability of the model (`genlab.protocols`), and draws nothing without it.
"""

# Annotations are evaluated here, so that the fields of a subclass in another module have types
# against which a config can be checked.

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genlab.data.datamodule import ImageData
from genlab.errors import RunDirectoryError, whole
from genlab.modules.base import GenerativeModule
from genlab.protocols import CanTraverse, HasSetting, ImageSpec
from genlab.tensors import to_pixels, to_unit_interval

log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
#: Function from n to the first n images of a split, (N, C, H, W) in [0, 1].
Inputs = Callable[[int], Tensor]

#: Number of images that order the latents and to which a distribution of codes is fitted.
MEASURED = 1000
_BATCH = 64
#: Names of splits in captions.
SPLITS = {"val": "validation", "test": "test"}


@dataclass(eq=False, kw_only=True)
class MediaCallback(pl.Callback):
    """Draws every `every_n_epochs` epochs and once more in the test.

    In training it draws at the end of a validation, where averaged weights are in place.

    Args:
        images: number of images that are shown.
        every_n_epochs: epochs between drawings; 0 draws only in the test.
    """

    name: ClassVar[str]

    images: int = 10
    every_n_epochs: int = 10

    def __post_init__(self) -> None:
        whole("images", self.images, 1)
        whole("every_n_epochs", self.every_n_epochs, 0)

    @abstractmethod
    def draw(self, trainer: pl.Trainer, module: GenerativeModule) -> dict[str, Pixels]:
        """Draw pictures or videos by name; none if the model lacks the ability."""

    @abstractmethod
    def keep(self, trainer: pl.Trainer, name: str, drawn: Pixels, when: str) -> None:
        """Write a drawing into the run directory, and pass it to the loggers."""

    def inputs(self, trainer: pl.Trainer, module: GenerativeModule) -> Inputs:
        """Return the function that reads the images to draw from, the same in every run."""
        return inputs_of(data_of(trainer), module.device)

    def caption(self, trainer: pl.Trainer, title: str) -> str:
        """Append the model's setting and the step to a title, and the scale of real-valued images.

        The title names the split that the images are of.
        """
        model = generative(trainer.lightning_module).model
        setting = model.label() if isinstance(model, HasSetting) else ""
        step = f"step {trainer.global_step:,}"
        scale = "black to white: least to greatest value" if model.spec.levels is None else ""
        return ", ".join(filter(None, [title, setting, step, scale]))

    @contextmanager
    def passing_over_file_errors(self, trainer: pl.Trainer) -> Iterator[None]:
        """Log a file that cannot be written, for instance on a full disk, or read, and continue."""
        try:
            yield
        except (OSError, RunDirectoryError) as error:
            log.warning("no %s at step %d: %s", self.name, trainer.global_step, error)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or self.every_n_epochs == 0:
            return
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw_and_keep(trainer, pl_module, f"step{trainer.global_step:07d}")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw_and_keep(trainer, pl_module, "final")

    def _draw_and_keep(self, trainer: pl.Trainer, pl_module: pl.LightningModule, when: str) -> None:
        if not takes_part(trainer):
            return
        with self.passing_over_file_errors(trainer):
            for name, drawn in self.draw(trainer, generative(pl_module)).items():
                if trainer.is_global_zero:
                    self.keep(trainer, name, drawn, when)


def takes_part(trainer: pl.Trainer) -> bool:
    """Return whether this process draws: only the first does, unless it needs the others."""
    return trainer.is_global_zero or needs_all(trainer)


def needs_all(trainer: pl.Trainer) -> bool:
    """Return whether the first process cannot compute the model without the others."""
    return getattr(trainer.strategy, "needs_all", False)


def generative(module: pl.LightningModule) -> GenerativeModule:
    """Return the module, which is one of genlab's."""
    assert isinstance(module, GenerativeModule)
    return module


def data_of(trainer: pl.Trainer) -> ImageData:
    """Return the data of a run."""
    data: ImageData = trainer.datamodule  # type: ignore[attr-defined]
    return data


def evaluated_split(trainer: pl.Trainer) -> Literal["val", "test"]:
    """Return the split that is being evaluated."""
    return "test" if trainer.testing else "val"


def inputs_of(data: ImageData, device: torch.device) -> Inputs:
    """Return the function that reads the first validation images to a device.

    If the data have no validation images, it reads test images.
    """
    split = input_split(data)
    return lambda count: first_images(data, split, count).to(device)


def input_split(data: ImageData) -> Literal["val", "test"]:
    """Return the split of the images to draw from: validation if there is one, else test."""
    return "val" if data.val_images else "test"


def first_images(data: ImageData, split: Literal["val", "test"], count: int) -> Tensor:
    """Read the first images of a split, (N, C, H, W) in [0, 1]; real values are not rescaled."""
    return to_unit_interval(torch.from_numpy(np.array(data.pixels(split)[:count])))


def shown(model: Any, x: Tensor) -> Pixels:
    """Convert images (N, C, H, W) in [0, 1] to uint8; real-valued ones are rescaled first."""
    spec: ImageSpec = model.spec
    x = x.detach().float().cpu()
    if spec.levels is None:
        low, high = x.amin(), x.amax()
        x = (x - low) / (high - low).clamp(min=1e-9)
    return np.asarray(to_pixels(x).numpy())


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function to images batch by batch, and concatenate the results."""
    return torch.cat([function(batch) for batch in x.split(_BATCH)])


def latents_by_kl(model: CanTraverse, x: Tensor, count: int) -> list[tuple[int, float]]:
    """Find the `count` latents with the highest KL over images x: their indices and KLs in nats."""
    kl = in_batches(lambda batch: len(batch) * model.latent_kl(batch)[None], x).sum(0) / len(x)
    dims: list[int] = kl.argsort(descending=True)[:count].tolist()
    return [(d, float(kl[d])) for d in dims]
