"""Where along the way from noise to data the bound is spent: by time and by log-SNR."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from genlab.diffusion.bound import LOG_SNR_EDGES, BoundTerms, by_log_snr

_FINER = 4
_FINE_EDGES = (
    tuple(
        low + i * (high - low) / _FINER
        for low, high in pairwise(LOG_SNR_EDGES)
        for i in range(_FINER)
    )
    + LOG_SNR_EDGES[-1:]
)


class Curves(NamedTuple):
    """Sums over the images of a split; those of several batches or processes can be added.

    Attributes:
        by_time: (4, K), in K equal bins of time: how many predictions, their log-SNRs, their
            squared errors, and their shares of the bound in nats.
        by_log_snr: (4, L), the same in bins of log-SNR, a quarter of those of `LOG_SNR_EDGES`.
    """

    by_time: Tensor
    by_log_snr: Tensor

    @classmethod
    def of(cls, terms: BoundTerms, log_snr: Tensor, bins: int) -> Curves:
        """The curves of one batch; `log_snr` (B, N) is that of `terms.t`."""
        # a time i/K on the edge of two bins belongs to the one that it ends
        place = (torch.ceil(terms.t * bins - 1e-6).long() - 1).clamp(0, bins - 1).flatten()
        rows = (torch.ones_like(log_snr), log_snr, terms.squared_error, terms.terms)
        values = torch.stack([row.flatten() for row in rows])
        by_time = values.new_zeros(4, bins).index_add_(1, place, values)
        return cls(by_time, torch.stack([by_log_snr(log_snr, row, _FINE_EDGES) for row in rows]))

    def plus(self, other: Curves) -> Curves:
        """Both together."""
        return Curves(self.by_time + other.by_time, self.by_log_snr + other.by_log_snr)

    @property
    def nats_by_log_snr(self) -> Tensor:
        """Shares of the bound in the bins between `LOG_SNR_EDGES`."""
        return self.by_log_snr[3].unflatten(0, (-1, _FINER)).sum(1)

    def measured(self, dims: int) -> tuple[Tensor, Tensor]:
        """Log-SNRs and the mean squared error per dimension there.

        Means over bins of log-SNR, in which the error changes little; over an equal bin of time it
        falls by orders of magnitude near the data.
        """
        count, log_snr, error, _ = self.by_log_snr[:, self.by_log_snr[0] > 0]
        return log_snr / count, error / (count * dims)

    def record(self, images: int, dims: int) -> dict[str, list[float | None]]:
        """As plain lists: `nats` are shares of a bound per image, and sum to it."""
        count, log_snr, error, nats = self.by_time
        bins = len(count)
        return {
            "time": [(i + 1) / bins for i in range(bins)],
            "log_snr": _finite(log_snr / count),
            "squared_error_per_dim": _finite(error / (count * dims)),
            "nats": (nats / images).tolist(),
            "log_snr_edges": [float(edge) for edge in LOG_SNR_EDGES],
            "nats_by_log_snr": (self.nats_by_log_snr / images).tolist(),
        }


def _finite(values: Tensor) -> list[float | None]:
    """JSON has no number for the mean of an empty bin, nor for the log-SNR of clean noise."""
    return [value if math.isfinite(value) else None for value in values.tolist()]
