"""Means over a split: exact, so that neither batches nor their order change a bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from genlab.diffusion.curves import BoundCurves
from genlab.gan.evaluation import Diversity
from genlab.metrics.measures import SplitMetrics
from genlab.tensors import exact_sum
from genlab.vae.evaluation import Latents, WeightedLoss
from genlab.vae.kl import FreeBits, KLPenalty, KLWeight

IMAGES, LATENTS, TIMES = 203, 5, 20
PENALTY = KLPenalty(KLWeight(1.0, 1.0, None, ""), free_bits=FreeBits("per_dimension", 0.5))
FAMILIES: dict[str, Callable[[], dict[str, Metric]]] = {
    "vae": lambda: {"loss": WeightedLoss(PENALTY), "latents": Latents(kl_is_analytic=True)},
    "ddpm": lambda: {"curves": BoundCurves(bins=40, dims=784, steps=1000)},
    "gan": lambda: {"diversity": Diversity()},
}


def values() -> dict[str, Tensor]:
    """Values of float32 networks, as large as those of images are."""
    random = torch.Generator().manual_seed(0)
    rows = torch.rand(IMAGES, LATENTS, generator=random)
    times = (1, 1000, (IMAGES, TIMES))
    return {
        "reconstruction": 700 + 50 * torch.randn(IMAGES, generator=random),
        "kl": rows.sum(1),
        "kl_rows": rows,
        "mean": torch.randn(IMAGES, LATENTS, generator=random),
        "log_var": torch.randn(IMAGES, LATENTS, generator=random),
        "z": torch.randn(IMAGES, LATENTS, generator=random),
        "t": torch.randint(*times, generator=random).double() / 1000,
        "log_snr": 8 * torch.randn(IMAGES, TIMES, generator=random).double(),
        "squared_error": 90 * torch.rand(IMAGES, TIMES, generator=random).double(),
        "terms": torch.rand(IMAGES, TIMES, generator=random).double(),
        "sample": torch.rand(IMAGES, 3, 9, 12, generator=random),
        "target": torch.rand(IMAGES, 3, 9, 12, generator=random),
    }


def in_batches(size: int) -> Iterator[dict[str, Tensor]]:
    for start in range(0, IMAGES, size):
        yield {name: value[start : start + size] for name, value in values().items()}


def text_of(metrics: SplitMetrics) -> Any:
    evaluation = metrics.compute()
    return repr(sorted(evaluation.metrics.items())), repr(sorted(evaluation.curves.items()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_split_measures_the_same_to_the_last_bit_in_batches_of_any_size(family: str) -> None:
    found = []
    for size in (1, 7, 128, IMAGES):
        metrics = SplitMetrics(FAMILIES[family](), dims=784)
        for batch in in_batches(size):
            metrics.update(batch, len(batch["kl"]))
        found.append(text_of(metrics))
    assert all(other == found[0] for other in found)


def test_a_mean_over_a_split_is_the_nearest_number_to_the_true_one() -> None:
    metrics = SplitMetrics({}, dims=784)
    for batch in in_batches(50):
        metrics.update(batch, len(batch["kl"]))
    of_images = values()["reconstruction"].double().tolist()
    assert metrics.compute().metrics["reconstruction"] == math.fsum(of_images) / IMAGES


def test_a_sum_is_exact_whatever_the_order() -> None:
    rows = torch.tensor([[1e16, 1.0], [1.0, 0.1], [-1e16, 0.1]], dtype=torch.float64)
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        assert exact_sum(rows[order]).tolist() == [1.0, 1.2]
    assert exact_sum(rows[:, 0]).shape == () and exact_sum(rows[:0, 0]) == 0


def test_a_sum_of_a_diverged_model_is_what_floats_give() -> None:
    assert exact_sum(torch.tensor([1e308, 1e308], dtype=torch.float64)) == math.inf
    assert exact_sum(torch.tensor([math.inf, -math.inf])).isnan()
