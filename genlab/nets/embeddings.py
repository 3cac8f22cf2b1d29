"""What a denoising network is told beside the image: how noisy it is, and what it shows."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOG_SNR_MIN, LOG_SNR_MAX = -20.0, 20.0
_POSITIONS = 1000.0
_LONGEST_PERIOD = 10_000.0


def position(log_snr: Tensor) -> Tensor:
    """Log-SNRs (B,) to [0, 1000], where networks are used to find time: 0 clean, 1000 noise.

    Linear in the log-SNR, which is clamped to [-20, 20]: beyond that an image in float32 does not
    change any more.
    """
    clamped = log_snr.clamp(LOG_SNR_MIN, LOG_SNR_MAX)
    return (LOG_SNR_MAX - clamped) * (_POSITIONS / (LOG_SNR_MAX - LOG_SNR_MIN))


def class_index(labels: Tensor | None, classes: int, log_snr: Tensor) -> Tensor:
    """Labels (B,), -1 or None for no class, to rows (B,) of a table whose last one is "no class".

    Args:
        log_snr: (B,), for its length and its device.
    """
    if labels is None:
        return torch.full_like(log_snr, classes, dtype=torch.int64)
    return torch.where(labels < 0, classes, labels)


class LogSNREmbedding(nn.Module):
    """log-SNR (B,) to (B, size): sines and cosines of its position, then two layers.

    The frequencies are those of the Transformer (Vaswani et al. 2017, sec. 3.5), as in DDPM (Ho et
    al. 2020). What comes out has the type of the weights, and autocast is the caller's to disable.

    Args:
        features: number of sines and cosines together, rounded up to an even one.
        size: of the embedding.
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
    """Labels (B,) to (B, size), with a vector of its own for no class (labels -1, or None).

    Raises:
        IndexError: for a label that is no class.
    """

    def __init__(self, classes: int, size: int) -> None:
        super().__init__(classes + 1, size)
        self.classes = classes

    def forward(self, labels: Tensor | None, log_snr: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(class_index(labels, self.classes, log_snr))
