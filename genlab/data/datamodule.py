"""The datamodule: splits an `ImageSource` and gives its batches to Lightning."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast, get_args

import lightning
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from genlab.data.base import Images, ImageSource, PixelArray, SourceSplit
from genlab.data.batches import Batches, BatchLoader, Split, binarise_static
from genlab.data.order import BatchIndex, EvalOrder, TrainOrder
from genlab.errors import ConfigError, DataError, whole
from genlab.protocols import ImageSpec
from genlab.seeding import numpy_generator

log = logging.getLogger(__name__)

Binarisation = Literal["none", "static", "dynamic"]
SplitName = Literal["train", "val", "test"]

_EVALUATED: tuple[SplitName, ...] = ("val", "test")
# Not the run's seed, so that runs with different seeds are validated on the same images.
_VALIDATION_SEED = 0
#: The largest share of a GPU's free memory that images may fill.
_SHARE = 0.25


class ImageData(lightning.LightningDataModule):
    """Train, validation and test batches of a data set.

    The official test set stays the test set. Validation is the official validation set, or, where
    there is none, a fixed random part of the training set, the same for every seed. Batches are
    dicts of `image` (B, C, H, W) uint8 (float32 if pixels are real numbers), `label` (B,) and
    `index` (B,) int64, where `index` is the position in `pixels(split)`. The values of binarised
    images are 0 and 255.

    Args:
        source: the data set.
        batch_size: images per training step, over all processes; the remainder of an epoch is
            dropped.
        eval_batch_size: images per validation or test step, over all processes; nothing is dropped.
        val_images: number of training images that are set apart for validation, where the data set
            has no validation images of its own; 0 for no validation.
        seed: seed of the order, the flips and the binarisation.
        data_dir: the folder that has one subfolder per source, with the name of the source.
        binarisation: "static" draws every bit once; "dynamic" draws new bits of the training images
            in every epoch (validation and test are static). Static bits are kept in memory, also
            for a memory-mapped source.
        flip: mirror training images left to right at random.
        num_workers: number of worker processes; 0 is fastest for sources in memory.
        train_images: number of training images to use; None for all.
        device: where training images are held: "cuda", the GPU that trains, so that no batch is
            copied to it; "cpu"; or "auto", the GPU if they fill at most a quarter of its free
            memory. Images that workers gather, or whose bits change in every epoch, or of which a
            model keeps something else, are held on the CPU.

    Attributes:
        train_inputs: what a model made of all training images, (1, N, ...), or (2, N, ...) with
            that of their mirror images; then training batches also have `inputs`. None for none.

    Raises:
        ValueError: if a value is out of range, or does not fit the source's spec.
    """

    def __init__(
        self,
        source: ImageSource,
        batch_size: int,
        eval_batch_size: int,
        val_images: int,
        seed: int,
        data_dir: str,
        binarisation: Binarisation = "none",
        flip: bool = False,
        num_workers: int = 0,
        train_images: int | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(source, ImageSource):
            raise ValueError(f"source={source!r}: give a subclass of ImageSource")
        if binarisation not in get_args(Binarisation):
            raise ValueError(
                f"binarisation={binarisation}: give one of {', '.join(get_args(Binarisation))}"
            )
        if binarisation != "none" and source.spec.levels is None:
            raise ValueError(
                f"binarisation={binarisation}: the pixels of {source.name} are real numbers, "
                "give none"
            )
        if not isinstance(flip, bool):
            raise ValueError(f"flip={flip!r}: give true or false")
        self.batch_size = whole("batch_size", batch_size, 1)
        self.eval_batch_size = whole("eval_batch_size", eval_batch_size, 1)
        self.val_images = whole("val_images", val_images, 0)
        self.num_workers = whole("num_workers", num_workers, 0)
        if train_images is not None:
            whole("train_images", train_images, 1)
        if device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device={device}: give one of auto, cpu, cuda")
        if device == "cuda" and (num_workers or binarisation == "dynamic"):
            raise ValueError(
                f"device=cuda: num_workers={num_workers} and binarisation={binarisation} make "
                "batches on the CPU; give auto, or no workers and another binarisation"
            )
        self.train_images, self.device = train_images, device
        self.seed = whole("seed", seed, 0)
        self.data_dir = Path(data_dir).expanduser()
        self.source, self.binarisation, self.flip = source, binarisation, flip
        self.train_inputs: npt.NDArray[np.float32] | None = None
        self._splits: dict[SplitName, Split] = {}
        self._loaders: list[BatchLoader] = []

    @property
    def spec(self) -> ImageSpec:
        """Shape and kind of the images that the model gets: 2 levels if they are binarised."""
        spec = self.source.spec
        return spec if self.binarisation == "none" else replace(spec, levels=2)

    def prepare_data(self) -> None:
        self.source.prepare(self.data_dir)

    def setup(self, stage: str | None = None) -> None:
        """Load the splits that `stage` needs, unless they are loaded.

        Raises:
            ConfigError: if a number of images does not fit the data, or a batch size the processes.
            DataError: if the source refuses its files.
        """
        if stage in (None, "fit", "validate"):
            if "train" not in self._splits:
                self._load_train()
            self._check_batch_size(len(self._splits["train"]))
        if stage in (None, "test", "predict") and "test" not in self._splits:
            self._splits["test"] = self._official("test")

    def teardown(self, stage: str | None = None) -> None:
        """End the worker processes; keep the data, since reports need it after training."""
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()

    def size(self, split: SplitName) -> int:
        """Return the number of images of the split."""
        return len(self._part(split))

    def rows(self, split: SplitName, number: int) -> int:
        """Return the size of evaluation batch `number`, over all processes."""
        return min(self.eval_batch_size, self.size(split) - number * self.eval_batch_size)

    def batches(self) -> dict[str, int]:
        """Return the number of batches of each split."""
        found = {"train": self.size("train") // self.batch_size}
        for name in _EVALUATED:
            found[name] = -(-self.size(name) // self.eval_batch_size)
        return found

    def pixels(self, split: SplitName) -> PixelArray:
        """Return the model's images, (N, C, H, W); grey ones if the bits change in every epoch."""
        part = self._part(split)
        return part.pixels if part.rows is None else part.pixels.take(part.rows, axis=0)

    def gather(self, split: SplitName, positions: npt.NDArray[np.int64]) -> PixelArray:
        """Copy the images (B, C, H, W) at these positions of `pixels`."""
        return self._part(split).gather(positions)[0]

    def labels(self, split: SplitName) -> npt.NDArray[np.int64]:
        """Return the labels, (N,), in the order of `pixels`."""
        part = self._part(split)
        return part.labels if part.rows is None else part.labels.take(part.rows)

    def train_dataloader(self) -> BatchLoader:
        """Return a loader that starts at the trainer's counters; its length is a whole epoch."""
        part = self._part("train")
        rank, world = self._place()
        order = TrainOrder(
            len(part),
            self.batch_size // world,
            self.seed,
            lambda: self._batches_seen(len(order)),
            rank,
            world,
        )
        dynamic = self.binarisation == "dynamic"
        batches = Batches(
            part,
            self.seed,
            flip=self.flip,
            binarised=dynamic,
            inputs=self.train_inputs,
            device=self._gpu_with_room_for(part),
        )
        return self._loader(batches, order)

    def _gpu_with_room_for(self, part: Split) -> torch.device | None:
        """Return the GPU that is to hold the training images; None if they stay on the CPU."""
        made_on_cpu = self.num_workers or self.binarisation == "dynamic"
        if self.device == "cpu" or made_on_cpu or self.train_inputs is not None:
            return None
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if device.type != "cuda":
            return None
        size = len(part) * part.pixels[0].nbytes
        fits = size <= _SHARE * torch.cuda.mem_get_info(device)[0]
        return device if fits or self.device == "cuda" else None

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """Return a loader of every validation image once; an empty list if there are none."""
        return self.eval_loader("val") if self.val_images else []

    def test_dataloader(self) -> BatchLoader:
        """Return a loader of every test image once."""
        return self.eval_loader("test")

    def _check_batch_size(self, images: int) -> None:
        if self.batch_size > images:
            raise ConfigError(
                f"data.batch_size={self.batch_size} is more than the {images:,} training images: "
                f"give at most {images}"
            )
        _, world = self._place()
        for key in ("batch_size", "eval_batch_size"):
            if getattr(self, key) % world:
                raise ConfigError(
                    f"data.{key}={getattr(self, key)} cannot be dealt out evenly to {world} "
                    f"processes: give a multiple of {world}"
                )
        if world > 1:  # processes gather at the end of an evaluation, all at the same batch
            for name in ("val", "test"):
                images = len(self._splits.get(name, ()))
                left = images % self.eval_batch_size
                if 0 < left < world:
                    raise ConfigError(
                        f"data.eval_batch_size={self.eval_batch_size} leaves {left} of the "
                        f"{images:,} {name} images for the last batch, too few for {world} "
                        "processes that compute together: give another number"
                    )

    def eval_loader(self, split: SplitName) -> BatchLoader:
        """Return a loader of every image of a split once, in order."""
        part, (rank, world) = self._part(split), self._place()
        if len(part) < world:
            raise ConfigError(
                f"{len(part)} {split} images cannot be shared by {world} processes: give more "
                "images or fewer processes"
            )
        order = EvalOrder(len(part), self.eval_batch_size // world, rank, world)
        return self._loader(Batches(part, self.seed), order)

    def _loader(self, dataset: Batches, order: Sampler[BatchIndex]) -> BatchLoader:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        pinned = on_gpu and dataset.device is None
        loader = BatchLoader(dataset, order, self.num_workers, pin_memory=pinned)
        self._loaders.append(loader)
        return loader

    def _place(self) -> tuple[int, int]:
        """Return rank and world size."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _batches_seen(self, per_epoch: int) -> int:
        """Count the batches since epoch 0, with those that `limit_train_batches` left out."""
        if self.trainer is None or not self.trainer.training:
            return 0
        limit = self.trainer.limit_train_batches
        used = min(limit, per_epoch) if isinstance(limit, int) else int(per_epoch * limit)
        # Only this count is correct in every checkpoint: those that a callback writes within an
        # epoch, at the end of an epoch, or after an exception.
        seen = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        epoch, offset = divmod(seen, used)
        # With overfit_batches every epoch has the same batches.
        overfitting = self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        return offset if overfitting else offset + epoch * per_epoch

    def _part(self, split: SplitName) -> Split:
        self.setup("test" if split == "test" else "fit")
        return self._splits[split]

    def _load_train(self) -> None:
        pixels, labels = self._load("train")
        n = len(pixels)
        has_own = self.val_images > 0 and "val" in self.source.splits(self.data_dir)
        apart = 0 if has_own else self.val_images
        if apart >= n:
            raise ConfigError(
                f"data.val_images={self.val_images} leaves nothing of the {n:,} training images: "
                f"give at most {n - 1}"
            )
        shuffled = numpy_generator(_VALIDATION_SEED, "validation").permutation(n)
        val, train = np.sort(shuffled[:apart]), shuffled[apart:]
        if self.train_images is not None and self.train_images > len(train):
            raise ConfigError(
                f"data.train_images={self.train_images}: there are {len(train):,} beside the "
                f"{apart:,} of data.val_images"
            )
        train = np.sort(train[: self.train_images])
        val_part = Split(pixels, labels, val)
        if self.binarisation == "static":
            pixels = binarise_static(_uint8(pixels), np.arange(n), self.seed, "train")
            val_part = Split(pixels, labels, val)
        elif self.binarisation == "dynamic":
            bits = binarise_static(_uint8(pixels), val, self.seed, "train")
            val_part = Split(bits, labels.take(val), None)
        self._splits["train"] = Split(pixels, labels, None if len(train) == n else train)
        self._splits["val"] = self._official("val") if has_own else val_part
        if has_own:
            log.info(
                "validation: the %s images of the data set's own, and none of data.val_images",
                f"{len(self._splits['val']):,}",
            )

    def _official(self, split: SourceSplit) -> Split:
        """Load a split of evaluation; its bits are drawn once, however those of training are."""
        pixels, labels = self._load(split)
        if self.binarisation != "none":
            pixels = binarise_static(_uint8(pixels), np.arange(len(pixels)), self.seed, split)
        return Split(pixels, labels, None)

    def _load(self, split: SourceSplit) -> Images:
        images = self.source.load(self.data_dir, split)
        if len(images.pixels) == 0 or len(images.pixels) != len(images.labels):
            raise DataError(
                f"{self.source.name} has {len(images.pixels):,} {split} images and "
                f"{len(images.labels):,} labels: check its files under {self.data_dir}"
            )
        return images


def _uint8(pixels: PixelArray) -> npt.NDArray[np.uint8]:
    return cast("npt.NDArray[np.uint8]", pixels)
