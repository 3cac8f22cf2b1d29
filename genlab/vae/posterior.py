"""q(z|x): the diagonal Gaussian that an encoder parameterises."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Normal


def diagonal_gaussian(parameters: Tensor, log_var_range: tuple[float, float]) -> Normal:
    """(B, 2d), means then log-variances, to a Normal (B, d) in float32 or wider.

    The log-variance is clamped to `log_var_range`: at KL weight 0 nothing else bounds the rate.
    """
    mean, log_var = _split(parameters)
    return Normal(mean, (0.5 * log_var.clamp(*log_var_range)).exp(), validate_args=False)


def clamped_fraction(parameters: Tensor, log_var_range: tuple[float, float]) -> Tensor:
    """The share of the log-variances in (B, 2d) that `diagonal_gaussian` clamps, a scalar."""
    _, log_var = _split(parameters)
    low, high = log_var_range
    return ((log_var < low) | (log_var > high)).float().mean()


def _split(parameters: Tensor) -> tuple[Tensor, Tensor]:
    wide = parameters if parameters.dtype.itemsize >= 4 else parameters.float()
    mean, log_var = wide.chunk(2, dim=1)
    return mean, log_var
