"""The terms of the bound and the error of the network, by time and by log-SNR."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torchmetrics import Metric

from genlab.diffusion.bound import LOG_SNR_EDGES, log_snr_bins

_FINER = 4
_FINE_EDGES = (
    tuple(
        low + i * (high - low) / _FINER
        for low, high in pairwise(LOG_SNR_EDGES)
        for i in range(_FINER)
    )
    + LOG_SNR_EDGES[-1:]
)


class BoundCurves(Metric):
    """The bound and the error of the network over all images, by time and by log-SNR.

    Args:
        bins: K, the number of equal bins of time.
        dims: D, the dimensions of an image.
        steps: T, if time is discrete; a bin then ends at the last step in it.
    """

    full_state_update = False
    curves = (
        *("time", "log_snr", "squared_error_per_dim", "nats"),
        *("log_snr_edges", "nats_by_log_snr"),
    )
    by_time: Tensor
    by_log_snr: Tensor
    images: Tensor

    def __init__(self, bins: int, dims: int, steps: int | None = None) -> None:
        super().__init__()
        self.bins, self.dims, self.steps = bins, dims, steps
        # rows: number of predictions; sums of log-SNRs, squared errors and terms of the bound, nats
        for name, size in (("by_time", bins), ("by_log_snr", len(_FINE_EDGES) - 1)):
            zeros = torch.zeros(4, size, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, t: Tensor, log_snr: Tensor, squared_error: Tensor, terms: Tensor) -> None:
        """Add images, with N predictions for each: all (B, N), as in `BoundTerms`."""
        # a time i/K on the edge of two bins belongs to the earlier one
        place = (torch.ceil(t * self.bins - 1e-6).long() - 1).clamp(0, self.bins - 1).flatten()
        bins = log_snr_bins(log_snr, _FINE_EDGES)
        # added one after another to the sums so far, so that batches do not change the rounding
        for i, row in enumerate((torch.ones_like(log_snr), log_snr, squared_error, terms)):
            self.by_time[i].index_add_(0, place, row.flatten())
            self.by_log_snr[i].index_add_(0, bins, row.flatten())
        self.images += len(t)

    def compute(self) -> dict[str, Tensor]:
        """Compute the share of each bin between `LOG_SNR_EDGES`, in nats per image, and the curves.

        The shares, `bound_log_snr_MIDDLE`, are scalars, one for each bin that is not empty. The
        curves are vectors, NaN where a bin is empty: by time, `time` (the end of each bin),
        `log_snr`, `squared_error_per_dim` and `nats`; by log-SNR, `log_snr_edges` and
        `nats_by_log_snr`.
        """
        count, log_snr, error, nats = self.by_time
        shares = self.by_log_snr[3].unflatten(0, (-1, _FINER)).sum(1) / self.images
        edges = torch.tensor(LOG_SNR_EDGES, dtype=torch.float64)
        time = torch.arange(1, self.bins + 1, dtype=torch.float64) / self.bins
        if self.steps is not None:
            time = torch.floor(time * self.steps + 1e-6) / self.steps
        visited = {
            f"bound_log_snr_{float(low + high) / 2:+g}": share
            for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True)
            if share != 0
        }
        return {
            **visited,
            "time": time,
            "log_snr": log_snr / count,
            "squared_error_per_dim": error / (count * self.dims),
            "nats": nats / self.images,
            "log_snr_edges": edges,
            "nats_by_log_snr": shares,
        }

    def error_by_log_snr(self) -> tuple[Tensor, Tensor]:
        """Return log-SNRs and the network's mean squared error per dimension there, both (L,).

        The means are over bins of log-SNR, in which the error changes little; within a bin of time
        near the data it changes by orders of magnitude. They cover this process alone, unless the
        metric is synced.
        """
        count, log_snr, error, _ = self.by_log_snr[:, self.by_log_snr[0] > 0]
        return log_snr / count, error / (count * self.dims)
