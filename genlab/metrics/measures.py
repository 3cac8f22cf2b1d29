"""Torchmetrics of values per image: in float64, exact over processes and short batches.

The parameters of `update` name the values that a metric needs; a model's `evaluate` returns them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric
from torchmetrics.utilities import dim_zero_cat

from genlab.tensors import exact_sum, nats_to_bits_per_dim

#: Inputs of a user's metric that are available in addition to the values of `evaluate`.
RECONSTRUCTION, IMAGES, LABELS = "preds", "target", "labels"
#: Names that a user's metric may not have: those of the families' metrics, and of a ModuleDict.
RESERVED = frozenset({"bound", "latents", "curves", *dir(nn.ModuleDict)})


@dataclass(frozen=True)
class Evaluation:
    """The results of the evaluation of one split.

    Attributes:
        metrics: numbers by name; see `genlab.metrics.names` for their units.
        curves: lists of numbers by name, NaN where unknown.
        images: number of images that were evaluated, over all processes.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    images: int = 0


class ExactMean(Metric):
    """The mean of values (B,) over all images, correctly rounded (`exact_sum`)."""

    full_state_update = False
    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, value: Tensor) -> None:
        """Add images: their values (B,)."""
        self.values.append(value.double())

    def compute(self) -> Tensor:
        """Compute the mean, a scalar."""
        values = dim_zero_cat(self.values)
        return exact_sum(values) / len(values)


class NegativeElbo(Metric):
    """The negative ELBO, reconstruction + kl, over all images; the KL weight is always 1.

    Args:
        dims: D, the dimensions of an image, for bits per dimension.
        has_error: whether to compute the standard error over the images too.
    """

    full_state_update = False
    nats: list[Tensor]

    def __init__(self, dims: int, has_error: bool = False) -> None:
        super().__init__()
        self.dims, self.has_error = dims, has_error
        self.add_state("nats", [], dist_reduce_fx="cat")

    def update(self, reconstruction: Tensor, kl: Tensor) -> None:
        """Add images: both terms (B,), in nats."""
        self.nats.append(reconstruction.double() + kl.double())

    def compute(self) -> dict[str, Tensor]:
        """Compute `neg_elbo` and `bits_per_dim`; if `has_error`, also `neg_elbo_se`."""
        nats = dim_zero_cat(self.nats)
        mean = exact_sum(nats) / len(nats)
        found = {"neg_elbo": mean, "bits_per_dim": nats_to_bits_per_dim(mean, self.dims)}
        if self.has_error:
            variance = exact_sum((nats - mean).square()) / max(1, len(nats) - 1)
            found["neg_elbo_se"] = (variance / len(nats)).sqrt()
        return found


class SplitMetrics(nn.Module):
    """All metrics of one split, updated batch by batch with the values of `evaluate`.

    A value of shape (B,) is averaged over the images; `reconstruction` and `kl` give the bound.

    Args:
        others: more metrics by name; each gets the values that are parameters of its `update`. In
            addition to the values of `evaluate` there are `target` (the images), `preds` (their
            reconstructions) and `labels`.
        dims: D, the dimensions of an image.
    """

    def __init__(self, others: Mapping[str, Metric], dims: int) -> None:
        super().__init__()
        self.images = SumMetric()
        self.means = nn.ModuleDict()
        self.others = nn.ModuleDict({"bound": NegativeElbo(dims), **others})

    def needs(self, value: str) -> bool:
        """Return True if a metric has this value as a parameter of `update`."""
        return any(value in update_parameters(metric) for metric in self._others().values())

    def update(self, values: Mapping[str, Tensor], images: int) -> None:
        """Add one batch.

        Raises:
            ValueError: if a value that a metric needs is missing.
        """
        self.images.update(images)
        for name, value in values.items():
            if value.ndim == 1 and name != LABELS:
                if name not in self.means:
                    self.means[name] = ExactMean().to(value.device)
                self.means[name].update(value)  # type: ignore[operator]
        for name, metric in self._others().items():
            parameters = update_parameters(metric)
            missing = [n for n, is_needed in parameters.items() if is_needed and n not in values]
            if not missing:
                metric.update(**{n: values[n] for n in parameters if n in values})
            elif name != "bound":
                raise ValueError(
                    f"metrics.{name}: {type(metric).__name__}.update needs {', '.join(missing)}, "
                    f"and this model has {', '.join(sorted(values))}"
                )

    def compute(self) -> Evaluation:
        """Compute all metrics: scalars by name (or key, if a metric returns a dict), and curves.

        Vectors become curves. A metric must list in its attribute `curves` those vectors that may
        have one element. Every process must call this.
        """
        metrics: dict[str, float] = {}
        curves: dict[str, list[float]] = {}
        for name, metric in (*self.means.items(), *self.others.items()):
            if not metric.update_called:
                continue
            value = metric.compute()  # type: ignore[operator]
            # torchmetrics converts a vector with one element to a scalar
            vectors = getattr(metric, "curves", ())
            for key, part in (value if isinstance(value, Mapping) else {name: value}).items():
                part = torch.as_tensor(part).detach().double()
                if part.numel() == 1 and key not in vectors:
                    metrics[key] = float(part)
                else:
                    curves[key] = part.flatten().tolist()
        return Evaluation(metrics, curves, int(self.images.compute()))

    def _others(self) -> dict[str, Any]:
        return dict(self.others.items())


def update_parameters(metric: Metric) -> dict[str, bool]:
    """Return the parameters of a metric's `update`, and whether each is required."""
    return {
        name: parameter.default is parameter.empty
        for name, parameter in inspect.signature(metric.update).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
