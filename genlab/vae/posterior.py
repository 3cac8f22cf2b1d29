"""q(z|x): the diagonal Gaussian that an encoder parameterises."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution, Normal


class DiagonalGaussian(Normal):
    """N(mean, exp(log_var)), element by element, that keeps its log-variance for the KL."""

    def __init__(self, mean: Tensor, log_var: Tensor) -> None:
        self.log_var = log_var
        # without Normal's own checks and broadcasts, which cost a step of a small network 1 %
        self.loc, self.scale = mean, (0.5 * log_var).exp()
        Distribution.__init__(self, mean.shape, validate_args=False)


def diagonal_gaussian(parameters: Tensor, log_var_range: tuple[float, float]) -> DiagonalGaussian:
    """(B, 2d), means then log-variances, to a Gaussian (B, d) in float32 or wider.

    The log-variance is clamped to `log_var_range`: at KL weight 0 nothing else holds it.
    """
    mean, log_var = _split(parameters)
    return DiagonalGaussian(mean, log_var.clamp(*log_var_range))


def clamped_fraction(parameters: Tensor, log_var_range: tuple[float, float]) -> Tensor:
    """The share of the log-variances in (B, 2d) that `diagonal_gaussian` clamps, a scalar."""
    _, log_var = _split(parameters)
    low, high = log_var_range
    return ((log_var < low) | (log_var > high)).float().mean()


def _split(parameters: Tensor) -> tuple[Tensor, Tensor]:
    wide = parameters if parameters.dtype.itemsize >= 4 else parameters.float()
    mean, log_var = wide.chunk(2, dim=1)
    return mean, log_var
