"""Likelihoods p(x|z): distributions over images, parameterised by the output of a decoder.

Every `log_prob` is in nats per image, summed over dimensions, with its normalising constant, and in
float32 whatever the precision of the network. To add one, write a subclass here and a YAML file in
`conf/model/likelihood/`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli as BernoulliDistribution
from torch.distributions import Distribution, Independent, Normal
from torch.nn import functional

from genlab.distributions import (
    MIN_LOG_SCALE,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
)
from genlab.errors import number, whole
from genlab.protocols import ImageSpec
from genlab.tensors import sum_except_batch

# (1/255)^2 / 1000: far below the rounding of 8-bit data; keeps log p finite for a perfect fit.
_MIN_VARIANCE = 1e-8


class Likelihood(nn.Module, ABC):
    """A map from decoder output (B, output_channels, H, W) to a distribution over (B, C, H, W)."""

    def output_channels(self, spec: ImageSpec) -> int:
        """Return the number of output channels that the decoder needs for images like `spec`."""
        return spec.channels

    def check(self, spec: ImageSpec) -> None:
        """Raise ValueError if this likelihood does not fit the data; by default it fits all."""

    def check_density(self, spec: ImageSpec) -> None:
        """Raise ValueError if `log_prob` is no density or probability of images like `spec`."""

    @abstractmethod
    def forward(self, output: Tensor) -> Distribution:
        """Return the distribution, with `mean` and `sample`: batch (B,), event (C, H, W)."""

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """Compute log p(x|z) in nats per image, (B,), for training and evaluation."""
        log_prob: Tensor = self(output).log_prob(x)
        return log_prob

    def squared_error_scale(self) -> float | None:
        """Return sigma if -log p(x|z) is SSE / (2 sigma^2) plus a constant, else None."""
        return None


class Bernoulli(Likelihood):
    """Cross-entropy on logits: a likelihood of binary data, only a bound on one for grey pixels.

    For a grey pixel x the cross-entropy is the expectation over a binary pixel that is 1 with
    probability x. Its minimum is the entropy of these binary pixels (45.5 nats on MNIST), not 0.

    Args:
        colour_targets: true to accept colour images that were not binarised.
    """

    def __init__(self, colour_targets: bool = False) -> None:
        super().__init__()
        self.colour_targets = colour_targets

    def check(self, spec: ImageSpec) -> None:
        if spec.levels is None:
            raise ValueError(
                "bernoulli: the data are real numbers, not pixels in [0, 1]; use gaussian"
            )
        if spec.levels > 2 and spec.channels > 1 and not self.colour_targets:
            raise ValueError(
                f"bernoulli: {spec.channels} channels of {spec.levels} levels are "
                "not binary; set data.binarisation=static, or accept cross-entropy as a bound by "
                "colour_targets=true, or use discretized_logistic"
            )

    def check_density(self, spec: ImageSpec) -> None:
        if spec.levels != 2:
            raise ValueError(
                "bernoulli: on grey pixels the cross-entropy is no density of the images, but a "
                "bound for binary ones; train the VAE with model/likelihood=discretized_logistic, "
                "or with data.binarisation=static"
            )

    def forward(self, output: Tensor) -> Distribution:
        return Independent(
            BernoulliDistribution(logits=output.float(), validate_args=False),
            3,
            validate_args=False,
        )

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        nats = functional.binary_cross_entropy_with_logits(output.float(), x, reduction="none")
        return -sum_except_batch(nats)


class ContinuousBernoulliLikelihood(Likelihood):
    """The cross-entropy, normalised to a density on [0, 1] (Loaiza-Ganem & Cunningham 2019)."""

    def check(self, spec: ImageSpec) -> None:
        if spec.levels is None or spec.levels == 2:
            kind = "real numbers" if spec.levels is None else "binary"
            remedy = "gaussian" if spec.levels is None else "bernoulli"
            raise ValueError(
                f"continuous_bernoulli: the data are {kind}, and this is a "
                f"density on [0, 1]; use {remedy}"
            )

    def forward(self, output: Tensor) -> Distribution:
        return Independent(ContinuousBernoulli(output.float()), 3, validate_args=False)


class GaussianLikelihood(Likelihood):
    """A Gaussian whose mean is the output and whose standard deviation is the constant `scale`."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = number("scale", scale, above=0)

    def forward(self, output: Tensor) -> Distribution:
        return _normal(output.float(), torch.full_like(output, self.scale, dtype=torch.float32))

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        constant = 0.5 * x[0].numel() * math.log(2 * math.pi * self.scale**2)
        return _squared_error(output, x) * (-0.5 / self.scale**2) - constant

    def squared_error_scale(self) -> float:
        return self.scale


class LearnedGaussian(Likelihood):
    """A Gaussian whose mean is the output, with one trained standard deviation for all pixels.

    Args:
        initial_scale: standard deviation before training.
    """

    def __init__(self, initial_scale: float = 1.0) -> None:
        super().__init__()
        scale = number("initial_scale", initial_scale, above=0)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def forward(self, output: Tensor) -> Distribution:
        return _normal(output.float(), self.log_scale.exp().expand(output.shape))

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        return _gaussian_log_prob(output, x, 2 * self.log_scale)


class CalibratedGaussian(Likelihood):
    """A Gaussian whose variance, in training, is the mean squared error of the batch.

    This variance is optimal given the means; then -log p = D/2 (ln 2 pi sigma^2 + 1) on average
    (Rybkin et al. 2021, sigma-VAE). Evaluation uses a running mean of the training variances.

    Args:
        decay: share of the running variance kept at each training step; the first steps are
            averaged with equal weights, so the initial value has no weight.
    """

    averaged = ("variance",)  # with the weights, where those are averaged
    variance: Tensor
    batches: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = number("decay", decay, at_least=0, at_most=1)
        self.register_buffer("variance", torch.tensor(1.0))
        self.register_buffer("batches", torch.tensor(0.0))

    def forward(self, output: Tensor) -> Distribution:
        return _normal(output.float(), self.variance.sqrt().expand(output.shape))

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        if not self.training:
            return _gaussian_log_prob(output, x, self.variance.log())
        squared_error = _squared_error(output, x)
        variance = (squared_error.mean() / x[0].numel()).clamp(min=_MIN_VARIANCE)
        with torch.no_grad():
            self.batches += 1
            new_share = (1 / self.batches).clamp(min=1 - self.decay)
            self.variance += new_share * (variance.detach() - self.variance)
        return _gaussian_log_prob(output, x, variance.log())


class DiscretizedLogisticLikelihood(Likelihood):
    """One logistic per pixel on 256 levels; location and log-scale are in units of [-1, 1]."""

    def output_channels(self, spec: ImageSpec) -> int:
        return 2 * spec.channels

    def check(self, spec: ImageSpec) -> None:
        _need_8_bits("discretized_logistic", spec)

    def forward(self, output: Tensor) -> Distribution:
        loc, log_scale = output.float().chunk(2, dim=1)
        log_scale = log_scale.clamp(min=MIN_LOG_SCALE)
        pixels = DiscretizedLogistic((loc + 1) / 2, log_scale - math.log(2.0))
        return Independent(pixels, 3, validate_args=False)


class DiscretizedLogisticMixtureLikelihood(Likelihood):
    """A mixture of logistics per pixel on 256 levels, channels coupled (Salimans et al. 2017).

    Args:
        components: logistics per pixel.
    """

    def __init__(self, components: int = 5) -> None:
        super().__init__()
        self.components = whole("components", components, 1)

    def output_channels(self, spec: ImageSpec) -> int:
        return DiscretizedLogisticMixture.parameters_per_pixel(self.components, spec.channels)

    def check(self, spec: ImageSpec) -> None:
        _need_8_bits("discretized_logistic_mixture", spec)

    def forward(self, output: Tensor) -> Distribution:
        per_channel = output.shape[1] / self.components
        # 1 + 2C + C(C - 1)/2 channels per component, solved for C.
        channels = round((math.sqrt(1 + 8 * per_channel) - 3) / 2)
        return DiscretizedLogisticMixture(output.float(), self.components, channels)


def _need_8_bits(name: str, spec: ImageSpec) -> None:
    if spec.levels != 256:
        kind = "real numbers" if spec.levels is None else f"of {spec.levels} levels"
        remedy = "bernoulli" if spec.levels == 2 else "gaussian"
        raise ValueError(
            f"{name}: it scores 8-bit pixels and the data are {kind} "
            f"(latents, continuous or binarised); use {remedy}"
        )


def _normal(loc: Tensor, scale: Tensor) -> Distribution:
    return Independent(Normal(loc, scale, validate_args=False), 3, validate_args=False)


def _squared_error(output: Tensor, x: Tensor) -> Tensor:
    return sum_except_batch((output.float() - x).square())


def _gaussian_log_prob(output: Tensor, x: Tensor, log_variance: Tensor) -> Tensor:
    constant = 0.5 * x[0].numel() * (math.log(2 * math.pi) + log_variance)
    return -0.5 * (-log_variance).exp() * _squared_error(output, x) - constant
