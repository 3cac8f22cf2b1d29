"""Embeddings of the other inputs of a denoising network: the log-SNR and the class."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOG_SNR_MIN, LOG_SNR_MAX = -20.0, 20.0
_POSITIONS = 1000.0
_LONGEST_PERIOD = 10_000.0


def position(log_snr: Tensor) -> Tensor:
    """Map log-SNRs (B,) to [0, 1000], the usual range of timesteps: 0 is clean, 1000 is noise.

    The map is linear in the log-SNR, which is clamped to [-20, 20]: beyond that an image in float32
    hardly changes.
    """
    clamped = log_snr.clamp(LOG_SNR_MIN, LOG_SNR_MAX)
    return (LOG_SNR_MAX - clamped) * (_POSITIONS / (LOG_SNR_MAX - LOG_SNR_MIN))


def class_index(labels: Tensor | None, classes: int, log_snr: Tensor) -> Tensor:
    """Map labels (B,), -1 or None for no class, to rows (B,) of a table; the last is "no class".

    Args:
        log_snr: (B,); only its length and its device are used.
    """
    if labels is None:
        return torch.full_like(log_snr, classes, dtype=torch.int64)
    return torch.where(labels < 0, classes, labels)


class LogSNREmbedding(nn.Module):
    """A map from log-SNR (B,) to (B, size): sines and cosines of its position, then two layers.

    The frequencies are those of the Transformer (Vaswani et al. 2017, sec. 3.5), as in DDPM (Ho et
    al. 2020). The output has the dtype of the weights if the caller disables autocast.

    Args:
        features: number of sines and cosines together, rounded up to an even number.
        size: size of the embedding.
    """

    frequencies: Tensor

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        half = (features + 1) // 2
        exponents = torch.arange(half, dtype=torch.float64) / max(half - 1, 1)
        frequencies = torch.exp(-math.log(_LONGEST_PERIOD) * exponents).float()
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.hidden = nn.Linear(2 * half, size)
        self.out = nn.Linear(size, size)

    def forward(self, log_snr: Tensor) -> Tensor:
        angles = position(log_snr).to(self.frequencies.dtype)[:, None] * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], 1)
        embedding: Tensor = self.out(F.silu(self.hidden(waves)))
        return embedding


class ClassEmbedding(nn.Embedding):
    """A map from labels (B,) to (B, size), with an extra vector for no class (labels -1, or None).

    Raises:
        IndexError: if a label is not the number of a class.
    """

    def __init__(self, classes: int, size: int) -> None:
        super().__init__(classes + 1, size)
        self.classes = classes

    def forward(self, labels: Tensor | None, log_snr: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(class_index(labels, self.classes, log_snr))
