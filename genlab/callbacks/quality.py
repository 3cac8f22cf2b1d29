"""Measure the quality of samples and reconstructions, in training and in the test."""

# no postponed annotations: see genlab.callbacks.base

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from genlab.callbacks.base import data_of, evaluated_split, generative, needs_all, takes_part
from genlab.data.cache import default_cache_dir
from genlab.data.datamodule import ImageData
from genlab.errors import ConfigError, GenlabError, whole
from genlab.metrics import quality
from genlab.metrics.features.base import Features, ready, weights_digest
from genlab.metrics.intervals import GROUPS
from genlab.metrics.rows import chunks_of
from genlab.modules.base import GenerativeModule
from genlab.protocols import CanReconstruct, CanSample, ImageSpec
from genlab.runs.run import Layout, Run
from genlab.tensors import to_pixels, to_unit_interval

log = logging.getLogger(__name__)

#: Samples with which an interval can be given at all.
LEAST = 2 * GROUPS
# More would be days of drawing, and a list of files that does not fit into memory.
MOST = 10_000_000


@dataclass(eq=False, kw_only=True)
class SampleQuality(pl.Callback):
    """Measures samples and reconstructions every `every_n_epochs` epochs, and in the test.

    In training it compares with the validation images, at the end of a validation, where averaged
    weights are in place; in the test with the test images, and writes quality.json. The names of
    the metrics end in those of the features: `test/fid_classifier_1a2b3c`. A model that draws no
    samples is not measured.

    Args:
        features: a module that maps images to features; see `genlab.metrics.features.base`.
        samples: number of samples in the test.
        samples_in_training: number of samples in a validation.
        every_n_epochs: epochs between measurements; 0 measures only in the test.
        run: directory of the run; None keeps nothing.
        data_key: of the data in the cache; None keeps nothing there.
    """

    features: nn.Module
    samples: int = 5000
    samples_in_training: int = 1000
    every_n_epochs: int = 10
    run: Path | None = None
    data_key: str | None = None

    def __post_init__(self) -> None:
        whole("samples", self.samples, LEAST, MOST)
        whole("samples_in_training", self.samples_in_training, LEAST, MOST)
        whole("every_n_epochs", self.every_n_epochs, 0)
        self._ready: Features | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Fit the features before the training, so that what cannot work is refused now."""
        if self._ready is None and trainer.is_global_zero:
            model = generative(pl_module).model
            refuse_real_values(model.spec)
            data = data_of(trainer)
            self._ready = ready(self.features, data.spec, data, self._cache())

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or self.every_n_epochs == 0:
            return
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._measure(trainer, generative(pl_module), self.samples_in_training)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measure(trainer, generative(pl_module), self.samples)

    def _cache(self) -> Path | None:
        return None if self.data_key is None else cache(self.data_key)

    def _measure(self, trainer: pl.Trainer, module: GenerativeModule, samples: int) -> None:
        model, split = module.model, evaluated_split(trainer)
        if not isinstance(model, CanSample) or not takes_part(trainer):
            return
        if self._ready is None:  # a process without which the first cannot compute the model
            self._help(module, data_of(trainer), samples, split)
            return
        try:
            with TemporaryDirectory(prefix="genlab-quality-") as temporary:
                found = self._found(trainer, module, samples, split, Path(temporary))
        except (GenlabError, OSError) as error:
            log.warning("no quality at step %d: %s", trainer.global_step, error)
            return
        for note in found.notes:
            log.info("quality: %s", note)
        row = {f"{split}/{name}": value for name, value in found.metrics().items()}
        module.log_float64(row, rank_zero_only=True)

    def _help(self, module: GenerativeModule, data: ImageData, samples: int, split: Any) -> None:
        settings_of(module.model, module.seed)  # whose digest is of the weights of all processes
        makes = [(draw(module.model, module.seed), samples)]
        if remake := reconstruct(module.model, data, split):
            makes.append((remake, len(quality.chosen_of(data.size(split)))))
        for make, number in makes:
            for _ in make(chunks_of(number)):
                pass

    def _found(
        self,
        trainer: pl.Trainer,
        module: GenerativeModule,
        samples: int,
        split: Any,
        temporary: Path,
    ) -> quality.Quality:
        assert self._ready is not None
        data, model = data_of(trainer), module.model
        self._ready.module.to(module.device)
        reference = quality.Reference.of(
            self._ready, split, data, self._cache() or temporary / "reference"
        )
        settings = settings_of(model, module.seed)
        kept_in = self.run if split == "test" else None
        # the processes that help draw all samples: none that an earlier call drew is left out
        folder = temporary if kept_in is None or needs_all(trainer) else kept_in
        found = quality.measure(
            reference,
            samples,
            draw(model, module.seed),
            reconstruct(model, data, split),
            folder,
            settings,
            with_floor=split == "test",
        )
        if kept_in is not None:
            quality.keep(Layout(kept_in), found, Run(kept_in).quality)
        return found


def cache(data_key: str) -> Path:
    """Return the folder of the cache for the features of a data set."""
    return default_cache_dir(None) / "quality" / data_key


def refuse_real_values(spec: ImageSpec) -> None:
    """Refuse images whose pixels are real numbers.

    Raises:
        ConfigError: the pixels are not in [0, 1].
    """
    if spec.levels is None:
        raise ConfigError(
            "the pixels of these data are real numbers, and quality is measured on images in "
            "[0, 1]: leave callbacks=quality or --quality out, or give 8-bit images"
        )


def settings_of(model: Any, seed: int) -> dict[str, Any]:
    """Return all that the images of a model depend on beside the way to sample."""
    device = next((p.device.type for p in model.parameters()), "cpu")
    return {"model": weights_digest(model), "seed": seed, "device": device}


def draw(model: CanSample, seed: int) -> quality.Make:
    """Return the function that draws samples by their numbers, as 8-bit images."""

    def make(ranges: Sequence[range]) -> Iterator[Tensor]:
        for part in ranges:
            with torch.inference_mode():
                images = model.sample(len(part), seed, part.start).float()
            yield as_pixels(images)

    return make


def reconstruct(model: object, data: ImageData, split: Any) -> quality.Make | None:
    """Return the function that reconstructs images of a split; None if the model cannot."""
    if not isinstance(model, CanReconstruct):
        return None
    place = next(model.parameters()).device  # type: ignore[attr-defined]
    able = model

    def make(ranges: Sequence[range]) -> Iterator[Tensor]:
        pixels = data.pixels(split)
        numbers = quality.chosen_of(len(pixels))
        for part in ranges:
            batch = torch.from_numpy(np.array(pixels[numbers[part.start : part.stop]]))
            with torch.inference_mode():
                images = able.reconstruct(to_unit_interval(batch).to(place)).float()
            yield as_pixels(images)

    return make


def as_pixels(images: Tensor) -> Tensor:
    """Round images in [0, 1] to 8 bits; those that are not finite stay, and are refused later."""
    images = images.detach().cpu()
    return to_pixels(images) if images.isfinite().all() else images
