"""Samplers: from noise to images; their only access to the model is `denoise(x_t, t) -> x0_hat`.

Each is a rule that computes x_s from x_t and x0_hat, with coefficients that are plain floats,
computed before the first step. Memory use does not grow with the number of steps: only x and at
most two x0_hat are kept. To add one, write a subclass of `Sampler` here and a YAML file in
`conf/model/sampler/`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from genlab.diffusion.grids import PURE_NOISE, Grid, Path, path
from genlab.diffusion.process import Process, alpha_sigma, posterior_coefficients, scale
from genlab.diffusion.variances import Prediction, ReverseVariance
from genlab.errors import TrainingError, number, whole
from genlab.protocols import OnStep

#: Largest scale of classifier-free guidance; images are saturated far below it.
MOST_GUIDANCE = 1000.0
#: Maps x_t (B, C, H, W) and t (B,) float64 to x0_hat, or to a Prediction.
Denoise = Callable[[Tensor, Tensor], Tensor | Prediction]
#: A conditional denoiser: (x_t, t, labels), with labels (B,) int64, -1 for none.
LabelledDenoise = Callable[[Tensor, Tensor, Tensor], Tensor | Prediction]
#: Returns the next standard normal noise, shaped like the images.
Draw = Callable[[], Tensor]
#: Maps x_s and its log-SNR, infinite for clean data, to the x_s to continue from.
Project = Callable[[Tensor, float], Tensor]
#: Maps i, x_t and the prediction of the network to x_s.
Rule = Callable[[int, Tensor, Prediction], Tensor]


class Walk(NamedTuple):
    """The inputs of a rule: path, network at its i-th time, noise, reverse variance."""

    process: Process
    path: Path
    evaluate: Callable[[int, Tensor], Prediction]
    noise: Draw
    variance: ReverseVariance | None


@dataclass(frozen=True)
class Sampler(ABC):
    """A method that generates images from noise.

    Attributes:
        steps: N; None for all steps of the model.
        grid: the spacing of the steps (`genlab.diffusion.grids`).
        clip: whether x0_hat is clipped to [-1, 1], and eps_hat computed again from it.

    Raises:
        ValueError: if a value is out of range.
    """

    steps: int | None = 50
    grid: Grid = "log_snr"
    clip: bool = True

    def __post_init__(self) -> None:
        if self.steps is not None:
            whole("steps", self.steps, 1)

    @abstractmethod
    def rule(self, walk: Walk) -> Rule:
        """Return the rule that maps x_t at path.times[i] to x_s at path.times[i + 1]."""

    def path(self, process: Process) -> Path:
        """Return the times at which the network is evaluated.

        Raises:
            ValueError: if there are more steps than a discrete process has, or steps is None in
                continuous time.
        """
        steps = process.steps if self.steps is None else self.steps
        if steps is None:
            raise ValueError(
                "steps=null takes each of the model's steps, and in continuous time "
                "(model.steps=null) there are none to count: give a number"
            )
        if process.steps is not None and steps > process.steps:
            raise ValueError(
                f"steps={steps}: the model has model.steps={process.steps}, "
                f"each taken at most once; give at most {process.steps}"
            )
        return path(process, steps, self.grid)

    def check(self, process: Process) -> None:
        """Raise ValueError if this sampler does not fit the process."""
        self.path(process)

    @torch.no_grad()
    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        process: Process,
        noise: Draw,
        on_step: OnStep | None = None,
        project: Project | None = None,
        variance: ReverseVariance | None = None,
        along: Path | None = None,
    ) -> Tensor:
        """Generate images (B, C, H, W) in model space from x, the noise at t = 1.

        Args:
            noise: source of the noise that stochastic samplers add.
            on_step: called at every step.
            project: changes x_s before the next step, for instance `inpainting.inpaint`.
            variance: variance of p(x_s | x_t); only ancestral sampling uses it.
            along: the path to use instead of that of the grid; it may end before clean data.

        Raises:
            ValueError: if the steps do not fit the process, or the variance the network.
            TrainingError: as soon as x is not finite; the message names the step.
        """
        way = self.path(process) if along is None else along
        times, log_snrs = way.times.tolist(), way.log_snrs.tolist()
        on_device = way.times.to(x.device)

        def evaluate(i: int, x_t: Tensor) -> Prediction:
            output = denoise(x_t, on_device[i].expand(len(x_t)))
            prediction = output if isinstance(output, Prediction) else Prediction(output)
            return prediction.clipped() if self.clip else prediction

        advance = self.rule(Walk(process, way, evaluate, noise, variance))
        if project is not None:
            x = project(x, log_snrs[0])
        for i in range(way.steps):
            prediction = evaluate(i, x)
            if on_step is not None:
                on_step(i, times[i], x, prediction.x0_hat)
            x = advance(i, x, prediction)
            if project is not None:
                x = project(x, log_snrs[i + 1])
            # The sum shows a non-finite value, and only one number per step is read back.
            if not math.isfinite(x.sum().item()):
                raise TrainingError(
                    f"{type(self).__name__}: x is not finite after step {i + 1} of {way.steps} "
                    f"(t={times[i]:.4g}); the network's output is not usable there, as after a "
                    "divergence: use an earlier checkpoint, or model.sampler.clip=true"
                )
        return x


@dataclass(frozen=True)
class Ancestral(Sampler):
    """Ancestral sampling from p(x_s | x_t) (Ho et al. 2020, algorithm 2).

    The last step returns the mean. Without a given variance, that of the posterior is used.
    """

    steps: int | None = None

    def rule(self, walk: Walk) -> Rule:
        log_snrs = walk.path.log_snrs
        from_x0, from_x_t, variance = posterior_coefficients(log_snrs[1:], log_snrs[:-1])
        table = list(zip(from_x_t.tolist(), from_x0.tolist(), strict=True))
        std = variance.sqrt().tolist()
        times = walk.path.times

        def advance(i: int, x_t: Tensor, prediction: Prediction) -> Tensor:
            mean = _combine(x_t, prediction.x0_hat, *table[i])
            if math.isinf(log_snrs[i + 1]):
                return mean
            if walk.variance is None:
                return mean.add_(walk.noise(), alpha=std[i])
            return mean.add_(_reverse_noise(walk, walk.variance, times[i : i + 2], prediction))

        return advance


def _reverse_noise(
    walk: Walk, variance: ReverseVariance, times: Tensor, prediction: Prediction
) -> Tensor:
    if variance.is_learned and prediction.variance_fraction is None:
        raise ValueError(
            "reverse_variance: this network puts out no variance, so that ancestral "
            "sampling has none to draw with; choose model/reverse_variance=fixed_large"
        )
    x0_hat = prediction.x0_hat
    t, s = times.to(x0_hat.device).unsqueeze(1).expand(2, len(x0_hat))
    std = (variance.log_variance(walk.process, t, prediction, s) / 2).exp()
    return scale(std, walk.noise()) if std.ndim == 1 else std.to(x0_hat.dtype) * walk.noise()


@dataclass(frozen=True)
class DDIM(Sampler):
    """DDIM (Song et al. 2021, eq. 12, with the sigma of eq. 16).

    Attributes:
        eta: 0 is deterministic; 1 is ancestral sampling with the posterior variance.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("eta", self.eta, at_least=0, at_most=1)

    def rule(self, walk: Walk) -> Rule:
        table, std = _ddim(walk.path, self.eta)

        def advance(i: int, x_t: Tensor, prediction: Prediction) -> Tensor:
            x_s = _combine(x_t, prediction.x0_hat, *table[i])
            return x_s.add_(walk.noise(), alpha=std[i]) if std[i] > 0 else x_s

        return advance


@dataclass(frozen=True)
class Euler(Sampler):
    """Euler's method on the straight path (1 - t) x_0 + t eps, at the flow's own times.

    A step from t to s adds (s - t) times the velocity (x - x0_hat) / t. It is DDIM, which keeps
    the same x0_hat and eps_hat, at the times of another grid.
    """

    grid: Grid = "flow"

    def rule(self, walk: Walk) -> Rule:
        alpha, sigma = alpha_sigma(walk.path.log_snrs)
        t, on_path = sigma / (alpha + sigma), alpha + sigma
        kept = t[1:] / t[:-1]
        from_x_t = (kept * on_path[1:] / on_path[:-1]).tolist()
        table = list(zip(from_x_t, ((1 - kept) * on_path[1:]).tolist(), strict=True))

        def advance(i: int, x_t: Tensor, prediction: Prediction) -> Tensor:
            return _combine(x_t, prediction.x0_hat, *table[i])

        return advance


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), a multistep method of second order.

    The first step and the step to clean data have first order and equal DDIM.
    """

    steps: int | None = 20

    def rule(self, walk: Walk) -> Rule:
        table, _ = _ddim(walk.path, eta=0.0)
        h = (walk.path.log_snrs.diff() / 2).tolist()
        previous: Tensor | None = None

        def advance(i: int, x_t: Tensor, prediction: Prediction) -> Tensor:
            nonlocal previous
            from_x_t, from_x0 = table[i]
            before, previous = previous, prediction.x0_hat
            if before is None or math.isinf(h[i]):
                return _combine(x_t, previous, from_x_t, from_x0)
            extrapolated = from_x0 * h[i] / (2 * h[i - 1])
            x_s = _combine(x_t, previous, from_x_t, from_x0 + extrapolated)
            return x_s.add_(before, alpha=-extrapolated)

        return advance


@dataclass(frozen=True)
class DPMSolverSDE(Sampler):
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, app. B.5): ancestral sampling of second order.

    The mean of each step extrapolates x0_hat as `DPMSolver` does; the noise is that of ancestral
    sampling with the posterior variance. The first step and the step to clean data are ancestral.
    """

    steps: int | None = 50

    def rule(self, walk: Walk) -> Rule:
        log_snrs = walk.path.log_snrs
        from_x0, from_x_t, variance = posterior_coefficients(log_snrs[1:], log_snrs[:-1])
        table = list(zip(from_x_t.tolist(), from_x0.tolist(), strict=True))
        std, h = variance.sqrt().tolist(), log_snrs.diff().tolist()
        previous: Tensor | None = None

        def advance(i: int, x_t: Tensor, prediction: Prediction) -> Tensor:
            nonlocal previous
            before, previous = previous, prediction.x0_hat
            mean = _combine(x_t, previous, *table[i])
            if math.isinf(log_snrs[i + 1]):
                return mean
            if before is not None:
                mean.add_(previous - before, alpha=table[i][1] * h[i] / (2 * h[i - 1]))
            return mean.add_(walk.noise(), alpha=std[i])

        return advance


@dataclass(frozen=True)
class UniPC(Sampler):
    """UniPC-2 with B(h) = e^h - 1 (Zhao et al. 2023): third order at one evaluation a step.

    The predictor of a step is `DPMSolver`; the corrector uses the evaluation at the predicted x_s,
    which the next step needs anyway.
    """

    steps: int | None = 20

    def rule(self, walk: Walk) -> Rule:
        table, _ = _ddim(walk.path, eta=0.0)
        h = (walk.path.log_snrs.diff() / 2).tolist()
        seen: list[Tensor] = []  # the last two x0_hat

        def advance(i: int, x_t: Tensor, prediction: Prediction) -> Tensor:
            x0_hat = prediction.x0_hat
            from_x_t, from_x0 = table[i]
            x_s = _combine(x_t, x0_hat, from_x_t, from_x0)
            if i > 0 and not math.isinf(h[i - 1]):
                correction = _correction(seen, x0_hat, h[max(0, i - 2) : i])
                x_s.add_(correction, alpha=from_x_t * table[i - 1][1])
            seen.append(x0_hat)
            del seen[:-2]
            if len(seen) < 2 or math.isinf(h[i]):
                return x_s
            return x_s.add_(x0_hat - seen[0], alpha=from_x0 * h[i] / (2 * h[i - 1]))

        return advance


def _correction(seen: Sequence[Tensor], x0_hat: Tensor, h: Sequence[float]) -> Tensor:
    """Compute the change of the mean x0_hat of a step by UniPC's corrector (Zhao et al. 2023).

    Args:
        seen: x0_hat at the start of the step, after that of the step before if there was one.
        x0_hat: the prediction at the end of the step.
        h: half the log-SNR that the step covers, after that of the step before.
    """
    change = x0_hat - seen[-1]
    if len(seen) < 2:
        return change / 2
    before, step = h
    phi = -math.expm1(-step)
    # The right-hand sides b_1 and b_2 of the paper's linear system, and its solution.
    b_1 = 1 / phi - 1 / step
    b_2 = (1 - 2 * (1 - phi / step) / step) / phi
    inverse_r = -step / before
    earlier = (b_1 - b_2) * inverse_r / (inverse_r - 1)
    slope = (seen[0] - seen[1]) * inverse_r
    return slope * (earlier - 0.5) + change * (b_1 - earlier)


@dataclass(frozen=True)
class Heun(Sampler):
    """Heun's method: an Euler step, then the trapezoidal rule (Karras et al. 2022, algorithm 1).

    Their x is x/alpha here. Each step takes two evaluations; a step from pure noise and the step to
    clean data take one.
    """

    steps: int | None = 18

    def rule(self, walk: Walk) -> Rule:
        table, _ = _ddim(walk.path, eta=0.0)
        log_snrs = walk.path.log_snrs.tolist()
        alphas, sigmas = (values.tolist() for values in alpha_sigma(walk.path.log_snrs))

        def advance(i: int, x_t: Tensor, prediction: Prediction) -> Tensor:
            x_s = _combine(x_t, prediction.x0_hat, *table[i])
            if math.isinf(log_snrs[i + 1]) or log_snrs[i] < PURE_NOISE:
                return x_s
            # d(x/alpha) / d(sigma/alpha) is eps_hat. x_s used eps_hat at t; half of it is replaced
            # by eps_hat at s.
            half = (sigmas[i + 1] - alphas[i + 1] / alphas[i] * sigmas[i]) / 2
            eps_t = _combine(x_t, prediction.x0_hat, 1 / sigmas[i], -alphas[i] / sigmas[i])
            x0_hat = walk.evaluate(i + 1, x_s).x0_hat
            eps_s = _combine(x_s, x0_hat, 1 / sigmas[i + 1], -alphas[i + 1] / sigmas[i + 1])
            return x_s.add_(eps_s.sub_(eps_t), alpha=half)

        return advance


def _ddim(way: Path, eta: float) -> tuple[list[tuple[float, float]], list[float]]:
    """Compute the factors of x_t and x0_hat at each step, and the noise standard deviation."""
    _, _, variance = posterior_coefficients(way.log_snrs[1:], way.log_snrs[:-1])
    alpha, sigma = alpha_sigma(way.log_snrs)
    from_x_t = (sigma[1:].square() - eta**2 * variance).clamp(min=0).sqrt() / sigma[:-1]
    from_x0 = alpha[1:] - from_x_t * alpha[:-1]
    table = list(zip(from_x_t.tolist(), from_x0.tolist(), strict=True))
    return table, (eta * variance.sqrt()).tolist()


def _combine(x_t: Tensor, x0_hat: Tensor, from_x_t: float, from_x0: float) -> Tensor:
    return torch.mul(x_t, from_x_t).add_(x0_hat, alpha=from_x0)


def guided(
    denoise: LabelledDenoise,
    labels: Tensor,
    scale: float = 1.0,
    is_active: Callable[[Tensor], bool] = lambda t: True,
) -> Denoise:
    """Apply classifier-free guidance (Ho & Salimans 2022, eq. 6, with scale = 1 + w).

    x0_hat = unconditional + scale * (conditional - unconditional); the same holds for eps_hat,
    since each is linear in the other. Scale 1 is the conditional model, with one evaluation per
    image; other scales take two, in one batch of 2 B. The variance is that of the conditional
    model.

    Args:
        is_active: tells from times t (B,), all equal, whether there is guidance; elsewhere the
            model is the conditional one, at one evaluation (Kynkäänniemi et al. 2024).
    """
    number("guidance", scale, at_least=0, at_most=MOST_GUIDANCE)

    def conditional(x_t: Tensor, t: Tensor) -> Tensor | Prediction:
        return denoise(x_t, t, labels)

    def both(x_t: Tensor, t: Tensor) -> Tensor | Prediction:
        if not is_active(t):
            return conditional(x_t, t)
        pair = torch.cat([labels, torch.full_like(labels, -1)])
        output = denoise(torch.cat([x_t, x_t]), torch.cat([t, t]), pair)
        x0_hat, fraction = output if isinstance(output, Prediction) else (output, None)
        with_label, without = x0_hat.chunk(2)
        return Prediction(
            torch.lerp(without, with_label, scale), None if fraction is None else fraction[: len(t)]
        )

    return conditional if scale == 1 else both
