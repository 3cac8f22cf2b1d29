"""The posterior q(z|x): a diagonal Gaussian whose parameters are the encoder's output."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution, Normal


class DiagonalGaussian(Normal):
    """N(mean, exp(log_var)) per element; it keeps its log-variance for the KL."""

    def __init__(self, mean: Tensor, log_var: Tensor) -> None:
        self.log_var = log_var
        # skips the checks and broadcasts of Normal, which take 1 % of a step of a small network
        self.loc, self.scale = mean, (0.5 * log_var).exp()
        Distribution.__init__(self, mean.shape, validate_args=False)


def diagonal_gaussian(parameters: Tensor, log_var_range: tuple[float, float]) -> DiagonalGaussian:
    """Make a Gaussian (B, d), in float32 or wider, from (B, 2d): means, then log-variances.

    The log-variance is clamped to `log_var_range`, since at KL weight 0 nothing else bounds it.
    """
    mean, log_var = _split(parameters)
    return DiagonalGaussian(mean, log_var.clamp(*log_var_range))


def clamped_fraction(parameters: Tensor, log_var_range: tuple[float, float]) -> Tensor:
    """Compute the share of each image's log-variances that `diagonal_gaussian` clamps, (B,)."""
    _, log_var = _split(parameters)
    low, high = log_var_range
    return ((log_var < low) | (log_var > high)).float().mean(1)


def _split(parameters: Tensor) -> tuple[Tensor, Tensor]:
    wide = parameters if parameters.dtype.itemsize >= 4 else parameters.float()
    mean, log_var = wide.chunk(2, dim=1)
    return mean, log_var
