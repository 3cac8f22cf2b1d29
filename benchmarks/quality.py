"""CPU time of the quality of samples, beside the pipeline of torch-fidelity with the same features.

    python benchmarks/quality.py [--samples 10000] [--images 10000] [--rounds 3]

Both get the same 8-bit images and the same network, and compute features of samples and of real
images, FID, KID, precision and recall; genlab also density, coverage, energy distance and all
intervals. Rounds are interleaved; the process has one thread. torch-fidelity is no dependency of
genlab: it must be installed beside it, with a torchvision that fits its torch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.metrics import quality
from genlab.metrics.features.base import Features
from genlab.metrics.features.classifier import Classifier
from genlab.metrics.rows import Rows
from genlab.protocols import ImageSpec

SPEC = ImageSpec(1, 28, 28, 256, tuple("0123456789"))


def images(number: int, seed: int, scale: float) -> Tensor:
    """Make images (N, 1, 28, 28) of 16 directions, uint8."""
    random = np.random.default_rng(seed)
    directions = np.random.default_rng(0).normal(size=(16, 28 * 28))
    values = random.normal(size=(number, 16)) * scale @ directions / 4
    pixels = (255 / (1 + np.exp(-values))).round().astype(np.uint8)
    return torch.from_numpy(pixels.reshape(number, 1, 28, 28))


def ours(features: Features, x: Tensor, y: Tensor) -> dict[str, float]:
    """Measure by genlab."""
    found = quality.measured(Rows.of(features(x)), Rows.of(features(y)), features)
    return {name: found[name].value for name in ("fid", "kid", "precision", "recall")}


def theirs(module: torch.nn.Module) -> Callable[[Tensor, Tensor], dict[str, float]]:
    """Return the function that measures by torch-fidelity with the features of this module."""
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Extractor(FeatureExtractorBase):  # type: ignore[misc]
        def __init__(self, name: str, features_list: list[str], **others: Any) -> None:
            super().__init__(name, features_list)
            self.module = module

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "features"

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            with torch.inference_mode():
                return (self.module(x.float() / 255),)

    torch_fidelity.register_feature_extractor("of-genlab", Extractor)
    chosen: dict[str, Any] = {
        **{"cuda": False, "fid": True, "kid": True, "prc": True, "verbose": False, "cache": False},
        **{"feature_extractor": "of-genlab", "batch_size": 128, "prc_neighborhood": 5},
    }

    def measure(x: Tensor, y: Tensor) -> dict[str, float]:
        found = torch_fidelity.calculate_metrics(input1=_Images(x), input2=_Images(y), **chosen)
        names = ("frechet_inception_distance", "kernel_inception_distance_mean")
        values = [float(found[n]) for n in (*names, "precision", "recall")]
        return dict(zip(("fid", "kid", "precision", "recall"), values, strict=True))

    return measure


class _Images(torch.utils.data.Dataset[Tensor]):
    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> Tensor:
        return self.pixels[i]


def main() -> None:
    """Print the CPU seconds of each round, and the values."""
    parser = argparse.ArgumentParser()
    for name, number in (("samples", 10_000), ("images", 10_000), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=number)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = Classifier()
    module.prepare(SPEC)
    features = Features(module, SPEC)
    x, y = images(asked.samples, 1, 1.1), images(asked.images, 2, 1.0)
    pipelines: dict[str, Callable[[Tensor, Tensor], dict[str, float]]] = {
        "genlab": lambda x, y: ours(features, x, y)
    }
    try:
        pipelines["torch-fidelity"] = theirs(module)
    except ImportError as error:
        print(f"torch-fidelity is left out: {error}")
    seconds: dict[str, list[float]] = {name: [] for name in pipelines}
    for _ in range(asked.rounds):
        for name, measure in pipelines.items():
            start = time.process_time()
            values = measure(x, y)
            seconds[name].append(time.process_time() - start)
            shown = "  ".join(f"{key} {value:.5g}" for key, value in values.items())
            print(f"{name:15s} {seconds[name][-1]:6.2f} CPU s   {shown}", flush=True)
    for name, all_of_them in seconds.items():
        print(f"{name:15s} median {statistics.median(all_of_them):.2f} CPU s")


if __name__ == "__main__":
    main()
