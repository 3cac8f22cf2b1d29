"""The variance of the reverse step p(x_s | x_t), which the forward process does not determine.

The mean is always that of q(x_s | x_t, x_0) with x0_hat in the place of x_0. Variances are stored
as logs in float64. To add one, write a subclass here and a YAML file in
`conf/model/reverse_variance/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from genlab.diffusion.process import Process, posterior_coefficients, step_fraction
from genlab.tensors import like_images

# Far below the rounding error of 8-bit data; keeps the variance of a perfect network positive.
_MIN_SQUARED_ERROR = 1e-12
# Log-SNRs are clamped to +-this for interpolation, so that they may be infinite.
_MAX_LOG_SNR = 50.0


class Prediction(NamedTuple):
    """A network's prediction of x_0 from x_t.

    Attributes:
        x0_hat: (B, C, H, W).
        variance_fraction: (B, C, H, W), the extra output channels of the network, for a learned
            variance: -1 means the posterior variance, 1 means beta_t.
    """

    x0_hat: Tensor
    variance_fraction: Tensor | None = None

    def clipped(self) -> Prediction:
        """Return a copy with x0_hat clipped to the range of images, [-1, 1]."""
        return self._replace(x0_hat=self.x0_hat.clamp(-1, 1))


class ReverseVariance(nn.Module, ABC):
    """The log-variance of p(x_s | x_t).

    Attributes:
        is_learned: whether the network outputs `variance_fraction`, C more channels.
    """

    is_learned: ClassVar[bool] = False

    def check(self, process: Process) -> None:
        """Raise ValueError if this does not fit the process; by default it fits all."""

    @abstractmethod
    def log_variance(
        self, process: Process, t: Tensor, prediction: Prediction, s: Tensor | None = None
    ) -> Tensor:
        """Compute ln of the variance of p(x_s | x_t), float64, (B,) or shaped like images.

        Args:
            t: (B,) float64.
            s: (B,), earlier than t; None for the step before t (discrete time only).
        """


class FixedSmall(ReverseVariance):
    """The posterior variance, a lower bound (Ho et al. 2020, section 3.2).

    In the step to clean data it is 0; that of the second step of the process is used instead.
    """

    def check(self, process: Process) -> None:
        _check_two_steps(process, "fixed_small")

    def log_variance(
        self, process: Process, t: Tensor, prediction: Prediction, s: Tensor | None = None
    ) -> Tensor:
        return _log_clipped_posterior_variance(process, t, s)


class FixedLarge(ReverseVariance):
    """beta_t = sigma^2_(t|s), an upper bound (Ho et al. 2020, section 3.2), at every step."""

    def log_variance(
        self, process: Process, t: Tensor, prediction: Prediction, s: Tensor | None = None
    ) -> Tensor:
        return _log_beta(*_log_snrs(process, t, s))


class Learned(ReverseVariance):
    """Interpolation of the two fixed log-variances per pixel (Nichol & Dhariwal 2021, eq. 15).

    As in the paper, the network's channels are not limited to [-1, 1].
    """

    is_learned: ClassVar[bool] = True

    def check(self, process: Process) -> None:
        _check_two_steps(process, "learned")
        if not process.is_discrete:
            raise ValueError(
                "learned: the bound in continuous time (model.steps=null) "
                "does not depend on the variance, so it would never be trained; set model.steps, "
                "or use model/reverse_variance=fixed_large"
            )

    def log_variance(
        self, process: Process, t: Tensor, prediction: Prediction, s: Tensor | None = None
    ) -> Tensor:
        assert prediction.variance_fraction is not None
        fraction = (prediction.variance_fraction.double() + 1) / 2
        small = like_images(_log_clipped_posterior_variance(process, t, s), fraction)
        large = like_images(_log_beta(*_log_snrs(process, t, s)), fraction)
        return fraction * large + (1 - fraction) * small


class Optimal(ReverseVariance):
    """The scalar variance that minimises the bound for any network (Bao et al. 2022, Analytic-DPM).

    It is the posterior variance + (coefficient of x_0)^2 E||x_0 - x0_hat||^2 / D. Until the
    expectation is measured, the variance is that of `FixedLarge`.
    """

    log_snr: Tensor
    log_squared_error: Tensor
    #: Buffers whose length is the number of measured log-SNRs; loading resizes them.
    resized_by_checkpoint: ClassVar[tuple[str, ...]] = ("log_snr", "log_squared_error")

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("log_snr", torch.empty(0, dtype=torch.float64))
        self.register_buffer("log_squared_error", torch.empty(0, dtype=torch.float64))

    @property
    def is_measured(self) -> bool:
        """True if the network's error has been measured."""
        return len(self.log_snr) > 0

    def measure(self, log_snr: Tensor, squared_error_per_dim: Tensor) -> None:
        """Set the network's mean squared error E||x_0 - x0_hat||^2 / D at some log-SNRs, both (K,).

        The log of the error is interpolated linearly in the log-SNR, and constant outside.
        """
        # Validation runs in inference mode; a later load could not write to its tensors.
        with torch.inference_mode(False):
            known, order = _bounded(log_snr.detach().to(self.log_snr)).sort()
            error = squared_error_per_dim.detach().to(self.log_snr)[order]
            self.log_snr, self.log_squared_error = known, error.clamp(_MIN_SQUARED_ERROR).log()

    def log_variance(
        self, process: Process, t: Tensor, prediction: Prediction, s: Tensor | None = None
    ) -> Tensor:
        log_snr_s, log_snr_t = _log_snrs(process, t, s)
        if not self.is_measured:
            return _log_beta(log_snr_s, log_snr_t)
        from_x0, _, _ = posterior_coefficients(log_snr_s, log_snr_t)
        return torch.logaddexp(
            log_posterior_variance(log_snr_s, log_snr_t),
            2 * from_x0.log() + self._log_squared_error_at(log_snr_t),
        )

    def _log_squared_error_at(self, log_snr: Tensor) -> Tensor:
        if len(self.log_snr) == 1:
            return self.log_squared_error.expand_as(log_snr)
        at = _bounded(log_snr)
        right = torch.searchsorted(self.log_snr, at).clamp(1, len(self.log_snr) - 1)
        low, high = self.log_snr[right - 1], self.log_snr[right]
        weight = ((at - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        return torch.lerp(self.log_squared_error[right - 1], self.log_squared_error[right], weight)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in self.resized_by_checkpoint:
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, getattr(self, name).new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def log_posterior_variance(log_snr_s: Tensor, log_snr_t: Tensor) -> Tensor:
    """Compute ln of the variance of q(x_s | x_t, x_0), (B,) float64 (Ho et al. 2020, eq. 7).

    It is -inf if s is clean data.
    """
    return logsigmoid(-log_snr_s.double()) + step_fraction(log_snr_s, log_snr_t).log()


def _log_beta(log_snr_s: Tensor, log_snr_t: Tensor) -> Tensor:
    return logsigmoid(-log_snr_t.double()) + step_fraction(log_snr_s, log_snr_t).log()


def _log_snrs(process: Process, t: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor]:
    return process.log_snr(process.previous(t) if s is None else s), process.log_snr(t)


def _log_clipped_posterior_variance(process: Process, t: Tensor, s: Tensor | None) -> Tensor:
    s = process.previous(t) if s is None else s
    if process.is_discrete:
        to_clean = s < process.first / 2
        s = torch.where(to_clean, process.first, s)
        t = torch.where(to_clean, t.clamp(min=2 * process.first), t)
    return log_posterior_variance(process.log_snr(s), process.log_snr(t))


def _check_two_steps(process: Process, name: str) -> None:
    if process.steps == 1:
        raise ValueError(
            f"{name}: with model.steps=1 the only step has posterior "
            "variance 0; take 2 steps or more, or model/reverse_variance=fixed_large"
        )


def _bounded(log_snr: Tensor) -> Tensor:
    return log_snr.clamp(-_MAX_LOG_SNR, _MAX_LOG_SNR)
