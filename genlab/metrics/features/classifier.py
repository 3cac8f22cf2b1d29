"""Features of a small classifier that is trained on the labels of the data set itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import whole
from genlab.metrics.features.base import BATCH, TrainingImages
from genlab.protocols import ImageSpec
from genlab.seeding import fold_in, numpy_generator
from genlab.tensors import to_unit_interval

#: Every so many images of the training set, one is kept apart to measure the accuracy.
_APART = 10


class Classifier(nn.Module):
    """A convolutional network, trained on labels; its features are the inputs of its last layers.

    The recipe is fixed: AdamW with a cosine schedule, in one thread, from one seed, so that the
    same images give the same weights on the same kind of machine.

    Args:
        dims: d, number of features.
        width: channels after the first convolution; doubled at the two that follow.
        steps: training steps.
        batch_size: images of a step.
        learning_rate: the largest.
    """

    name = "classifier"
    accuracy: Tensor

    def __init__(
        self,
        dims: int = 64,
        width: int = 16,
        steps: int = 500,
        batch_size: int = 128,
        learning_rate: float = 3e-3,
    ) -> None:
        super().__init__()
        for key, value in (("dims", dims), ("width", width), ("steps", steps)):
            whole(key, value, 1)
        self.dims, self.width, self.steps = dims, width, steps
        self.batch_size = whole("batch_size", batch_size, 1)
        if not learning_rate > 0:
            raise ValueError(f"learning_rate={learning_rate}: give a number above 0")
        self.learning_rate = learning_rate
        self.recipe = (
            f"dims={dims} width={width} steps={steps} batch_size={batch_size} "
            f"learning_rate={learning_rate}"
        )
        self.register_buffer("accuracy", torch.zeros(()))

    def prepare(self, spec: ImageSpec) -> None:
        """Make the network for images like `spec`.

        Raises:
            ValueError: the images have no labels.
        """
        if not spec.classes:
            raise ValueError("these images have no labels to train it on; give features=pixels")
        w = self.width
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(fold_in(0, "classifier"))
            self.body = nn.Sequential(
                *_block(spec.channels, w, 2),
                *_block(w, 2 * w, 2),
                *_block(2 * w, 4 * w, 2),
                nn.AdaptiveAvgPool2d(2),
                nn.Flatten(),
                nn.Linear(16 * w, self.dims),
            )
            self.head = nn.Linear(self.dims, len(spec.classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [0, 1] to features (N, d)."""
        found: Tensor = self.body(2 * x - 1)
        return found

    def logits(self, features: Tensor) -> Tensor:
        """Map features (N, d) to the logits of the classes (N, K)."""
        found: Tensor = self.head(F.silu(features))
        return found

    def classes(self, features: Tensor) -> Tensor:
        """Return the most likely class (N,) of images with these features."""
        return self.logits(features).argmax(1)

    def fit(self, images: TrainingImages, advance: Callable[[int], None]) -> None:
        """Train on nine tenths of the training images, and measure the accuracy on the others."""
        pixels = images.pixels("train")
        labels = torch.from_numpy(images.labels("train").copy())
        order = numpy_generator(0, "classifier").permutation(len(pixels))
        apart = order[: max(1, len(order) // _APART)]
        rows = order[len(apart) :] if len(order) > 1 else order
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, self.learning_rate, total_steps=self.steps, pct_start=0.1
            )
            self.train()
            for step in range(self.steps):
                draw = numpy_generator(0, "classifier", step).integers(
                    len(rows), size=self.batch_size
                )
                chosen = rows[draw]
                x = to_unit_interval(torch.from_numpy(pixels[chosen]))
                loss = F.cross_entropy(self.logits(self(x)), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                advance(100 * (step + 1) // self.steps - 100 * step // self.steps)
            self.eval()
            with torch.inference_mode():
                right = 0
                for start in range(0, len(apart), BATCH):
                    chosen = apart[start : start + BATCH]
                    x = to_unit_interval(torch.from_numpy(pixels[chosen]))
                    right += int((self.classes(self(x)) == labels[chosen]).sum())
                self.accuracy.fill_(right / len(apart))
        finally:
            torch.set_num_threads(threads)


def _block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
    ]
