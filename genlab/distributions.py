"""Distributions over pixels that torch.distributions lacks, or computes inaccurately in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Size, Tensor
from torch.distributions import Distribution
from torch.nn import functional

# Log of the smallest scale of a logistic on [-1, 1] (PixelCNN++): a tenth of a bin of 8-bit data.
MIN_LOG_SCALE = -7.0


class _Discretized(Distribution):
    """A location-scale variable rounded to one of `levels` values, evenly spaced from low to high.

    The outermost bins are open, so the masses sum to 1 for every loc, also outside [low, high].
    `loc` and `log_scale` broadcast to batch_shape.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        loc: Tensor,
        log_scale: Tensor,
        low: float = 0.0,
        high: float = 1.0,
        levels: int = 256,
    ) -> None:
        self.loc, self.log_scale = torch.broadcast_tensors(loc, log_scale)
        self.low, self.high, self.levels = low, high, levels
        self.bin_width = (high - low) / (levels - 1)
        super().__init__(self.loc.shape, validate_args=False)

    def _log_masses(self, error: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute log-masses: below the bin's upper edge, above its lower edge, between them."""
        raise NotImplementedError

    def _mean_above_zero(self, z: Tensor) -> Tensor:
        """Compute the mean of max(0, z + e), where e is the variable of scale 1."""
        raise NotImplementedError

    def _draw(self, shape: Size) -> Tensor:
        """Draw from the variable of scale 1."""
        raise NotImplementedError

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log-mass in nats of values on the grid, broadcast with loc."""
        half = self.bin_width / 2
        log_below, log_above, log_between = self._log_masses(value - self.loc)
        inside = torch.where(value > self.high - half, log_above, log_between)
        return torch.where(value < self.low + half, log_below, inside)

    @property
    def mean(self) -> Tensor:
        """Mean of the variable clipped to [low, high], within half a bin of the rounded mean."""
        scale = self.log_scale.exp()
        rise = self._mean_above_zero((self.loc - self.low) / scale) - self._mean_above_zero(
            (self.loc - self.high) / scale
        )
        return (self.low + scale * rise).clamp(self.low, self.high)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            draw = self._draw(Size(sample_shape) + self.loc.shape).to(self.loc.dtype)
            y = self.loc + self.log_scale.exp() * draw
            level = ((y - self.low) / self.bin_width).round().clamp(0, self.levels - 1)
            return self.low + level * self.bin_width


class DiscretizedLogistic(_Discretized):
    """A logistic variable with `loc` and `log_scale`, rounded to one of `levels` values.

    Salimans et al. (2017, PixelCNN++), eq. 2.
    """

    def _log_masses(self, error: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        half, inverse_scale = self.bin_width / 2, torch.exp(-self.log_scale)
        upper, lower = (error + half) * inverse_scale, (error - half) * inverse_scale
        log_below, log_above = functional.logsigmoid(upper), functional.logsigmoid(-lower)
        # s(a) - s(b) = s(a) s(-b) (1 - e^(b-a)) for the sigmoid s; a - b = bin width / scale is
        # known without cancellation.
        log_gap = torch.log(-torch.expm1(-self.bin_width * inverse_scale))
        return log_below, log_above, log_below + log_above + log_gap

    def _mean_above_zero(self, z: Tensor) -> Tensor:
        return functional.softplus(z)

    def _draw(self, shape: Size) -> Tensor:
        return torch.logit(torch.rand(shape, device=self.loc.device), eps=1e-7)


class DiscretizedGaussian(_Discretized):
    """A Gaussian variable with `loc` and `log_scale`, rounded to one of `levels` values.

    The decoder of Ho et al. (2020, DDPM), eq. 13. Masses are computed in float64, since a wide
    Gaussian is nearly constant across a bin, and returned in the dtype of the inputs.
    """

    def _log_masses(self, error: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        half, scale = self.bin_width / 2, self.log_scale.double().exp()
        upper, lower = (error.double() + half) / scale, (error.double() - half) / scale
        # Both edges are mirrored to the lower tail, where log_ndtr is precise.
        distance = error.double().abs()
        near = torch.special.log_ndtr((half - distance) / scale)
        far = torch.special.log_ndtr((-half - distance) / scale)
        log_between = near + torch.log(-torch.expm1(far - near))
        log_below, log_above = torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower)
        dtype = torch.promote_types(error.dtype, self.log_scale.dtype)
        return log_below.to(dtype), log_above.to(dtype), log_between.to(dtype)

    def _mean_above_zero(self, z: Tensor) -> Tensor:
        density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
        return z * torch.special.ndtr(z) + density

    def _draw(self, shape: Size) -> Tensor:
        return torch.randn(shape, device=self.loc.device)


class DiscretizedLogisticMixture(Distribution):
    """A mixture of K discretized logistics per pixel; the channels share the component.

    Given the component, the location of channel c is shifted by a linear function of the earlier
    channels (Salimans et al. 2017, PixelCNN++, eq. 3). Event (C, H, W) on [0, 1], batch (B,).

    Args:
        parameters: (B, parameters_per_pixel(K, C), H, W), unconstrained, in units of [-1, 1].
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, parameters: Tensor, components: int, channels: int, levels: int = 256
    ) -> None:
        batch, _, height, width = parameters.shape
        k, c, pairs = components, channels, channels * (channels - 1) // 2
        logits, loc, log_scale, coupling = parameters.split([k, k * c, k * c, k * pairs], dim=1)
        self.log_weights = logits.log_softmax(1)
        self.loc = loc.unflatten(1, (k, c))
        self.log_scale = log_scale.unflatten(1, (k, c)).clamp(min=MIN_LOG_SCALE)
        self.coupling = coupling.tanh().reshape(batch, k, pairs, height, width)
        self.channels, self.levels = channels, levels
        super().__init__(Size([batch]), Size([channels, height, width]), validate_args=False)

    @staticmethod
    def parameters_per_pixel(components: int, channels: int) -> int:
        """Compute K (1 + 2 C + C (C - 1) / 2): weights, locations and scales, couplings."""
        return components * (1 + 2 * channels + channels * (channels - 1) // 2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log-mass in nats of images (B, C, H, W) on the grid, (B,)."""
        y = 2 * value.unsqueeze(1) - 1
        logistics = [self._channel(c, y.unbind(2)) for c in range(self.channels)]
        terms = [d.log_prob(y[:, :, c]) for c, d in enumerate(logistics)]
        per_component = torch.stack(terms).sum(0) + self.log_weights
        return per_component.logsumexp(1).flatten(1).sum(1)

    @property
    def mean(self) -> Tensor:
        """Mean (B, C, H, W), within half a level; couplings use the means of earlier channels."""
        y = self._chain(lambda d: d.mean)
        return ((self.log_weights.exp().unsqueeze(2) * y).sum(1) + 1) / 2

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            shape = Size(sample_shape)
            draws = torch.stack([self._draw() for _ in range(shape.numel())])
            return draws.reshape(shape + self.batch_shape + self.event_shape)

    def _draw(self) -> Tensor:
        gumbel = -torch.empty_like(self.log_weights).exponential_().log()
        chosen = (self.log_weights + gumbel).argmax(1, keepdim=True).unsqueeze(2)
        y = self._chain(lambda d: d.sample())
        return (torch.take_along_dim(y, chosen, 1).squeeze(1) + 1) / 2

    def _channel(self, c: int, earlier: Sequence[Tensor]) -> DiscretizedLogistic:
        loc, first = self.loc[:, :, c], c * (c - 1) // 2
        for j in range(c):
            loc = loc + self.coupling[:, :, first + j] * earlier[j]
        return DiscretizedLogistic(loc, self.log_scale[:, :, c], -1.0, 1.0, self.levels)

    def _chain(self, value: Callable[[DiscretizedLogistic], Tensor]) -> Tensor:
        """Compute values (B, K, C, H, W) channel by channel, each from the earlier channels."""
        values: list[Tensor] = []
        for c in range(self.channels):
            values.append(value(self._channel(c, values)))
        return torch.stack(values, dim=2)


class ContinuousBernoulli(Distribution):
    """The density on [0, 1] proportional to p^x (1 - p)^(1 - x), p = sigmoid(logits).

    Loaiza-Ganem & Cunningham (2019). The version of torch.distributions clamps p to the resolution
    of float32; at a logit of -40 (a pixel that is always black) its error is 0.9 nats. Here nothing
    is clamped: for a logit l the normaliser is l / tanh(l/2), and the mean 1 / (1 - e^-l) - 1 / l.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log-density in nats of values in [0, 1], broadcast with logits."""
        small, safe = self._guarded()
        log_ratio = safe.abs().log() - (safe.abs() / 2).tanh().log()
        log_normaliser = torch.where(small, math.log(2.0) + self.logits.square() / 12, log_ratio)
        logits, value = torch.broadcast_tensors(self.logits, value)
        cross_entropy = functional.binary_cross_entropy_with_logits(logits, value, reduction="none")
        return log_normaliser - cross_entropy

    @property
    def mean(self) -> Tensor:
        small, safe = self._guarded()
        return torch.where(small, 0.5 + self.logits / 12, -1 / torch.expm1(-safe) - 1 / safe)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            # The inverse cdf at logit -|l|, which cannot overflow; mirrored for positive logits.
            rate = self.logits.abs().clamp(min=1e-6)
            u = torch.rand(Size(sample_shape) + rate.shape, dtype=rate.dtype, device=rate.device)
            x = (-torch.log1p(u * torch.expm1(-rate)) / rate).clamp(0, 1)
            return torch.where(self.logits > 0, 1 - x, x)

    def _guarded(self) -> tuple[Tensor, Tensor]:
        """Return a mask of small |l|, where a series is used, and l with those entries set to 1."""
        small = self.logits.abs() < 0.05
        return small, torch.where(small, 1.0, self.logits)
