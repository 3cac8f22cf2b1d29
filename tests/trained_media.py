"""Short trainings for tests of what callbacks draw, and images as those show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from trained_runs import load_with_data, train_in

from genlab.callbacks.base import Inputs, first_images, shown
from genlab.callbacks.videos import KINDS
from genlab.data.datamodule import ImageData
from genlab.runs.run import Run

Pixels = npt.NDArray[np.uint8]

TINY = ["trainer=smoke", "logger=none", "forecast=false", "data.eval_batch_size=20"]
SMALL_VAE = ["model.net.encoder.hidden=[32]", "model.net.decoder.hidden=[32]"]
SMALL_DDPM = ["model=ddpm", "model.steps=20", "model.sampler.steps=6", "model.net.channels=8"]
VIDEOS = [
    *("callbacks=videos", "trainer.max_epochs=3"),
    *(f"callbacks.video_{kind}.{key}" for kind in KINDS for key in ("seconds=1", "images=2")),
    "callbacks.video_interpolation.stops=2",
]


def train(folder: Path, *overrides: str) -> Run:
    return train_in(folder, *TINY, *overrides)


def train_videos(folder: Path, *overrides: str) -> Path:
    return train(folder, *VIDEOS, *overrides).path


def train_weights(folder: Path) -> Path:
    """Train three VAEs that differ in their KL weight and seed; return the sweep's directory."""
    for weight, seed in ((0, 0), (30, 0), (30, 1)):
        settings = [f"model.kl_weight={weight}", f"seed={seed}", "group=weights"]
        train_videos(folder, *SMALL_VAE, *settings)
    return folder / "weights"


def loaded(path: Path, checkpoint: str = "last") -> tuple[Any, ImageData]:
    """A run's model, and its data, which are read."""
    model, data = load_with_data(path, checkpoint)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return model, data


def validation_images(data: ImageData) -> Inputs:
    return lambda count: first_images(data, "val", count)


def decoded(model: Any, x: torch.Tensor) -> Pixels:
    """Grey images (N, 1, H, W) in [0, 1] as the pixels (N, H, W) that are shown of them."""
    return shown(model, x)[:, 0]


def differ(a: Pixels, b: Pixels) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())
