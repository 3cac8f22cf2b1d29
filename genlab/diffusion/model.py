"""The denoising diffusion model: a forward process, a network that inverts it, and the bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from genlab.codecs.base import Codec
from genlab.codecs.pixels import PixelCodec
from genlab.diffusion import bound, diffusers_scheduler
from genlab.diffusion.bound import BoundTerms
from genlab.diffusion.parameterizations import Parameterization
from genlab.diffusion.process import Process, diffuse
from genlab.diffusion.samplers import MOST_GUIDANCE, Denoise, Project, Sampler, guided
from genlab.diffusion.schedule_check import ScheduleSummary
from genlab.diffusion.schedule_ends import between
from genlab.diffusion.schedules import NoiseSchedule
from genlab.diffusion.time_samplers import TimeSampler
from genlab.diffusion.variances import Optimal, Prediction, ReverseVariance
from genlab.diffusion.weightings import VLB, Weighting, mean_loss
from genlab.errors import naming, number, whole
from genlab.protocols import ImageSpec, NetworkExport, OnStep, Terms
from genlab.seeding import ImageNoise, Noise, TurnedNoise, or_default
from genlab.tensors import all_gather_rows, device_of, has_diverged, sum_except_batch

#: Number of bins of time in which the bound is shown if not all T terms are measured.
_BINS = 40


def _interval(log_snrs: Sequence[float] | None) -> tuple[float, float]:
    """Check the two ends of `guidance_interval`, and return them; None is all log-SNRs."""
    if log_snrs is None:
        return -math.inf, math.inf
    ends = [number("guidance_interval", value) for value in log_snrs]
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise ValueError(
            f"guidance_interval={list(log_snrs)}: give two log-SNRs, the lower one first, "
            "for instance [-3, 5], or null"
        )
    return ends[0], ends[1]


class DDPM(nn.Module):
    """A denoising diffusion model (Ho et al. 2020), discrete or in continuous time (VDM, 2021).

    The loss is E_t w(lambda_t) ||x_0 - x0_hat||^2, summed over dimensions and averaged over images;
    the bound is reconstruction + kl in nats, on pixels reconstruction = L_0 and kl = L_T + sum
    L_(t-1). Images x are (B, C, H, W) in [0, 1]; the codec maps them to x_0. Without `noise`,
    torch's default generator is used.

    Args:
        spec: shape and kind of the images.
        steps: T; None for continuous time.
        noise_schedule, parameterization, weighting, time_sampler, reverse_variance, sampler: the
            components of these names.
        net: constructor of the network, called with the spec of x_0, the output channels and the
            classes.
        codec: constructor of the map from images to x_0, called with the spec.
        log_snr_max, log_snr_min: cut the noise schedule at these log-SNRs; None keeps its own end.
        conditional: whether the class is an input of the network.
        label_drop: the share of training images whose class is hidden, for guidance.
        guidance: scale of classifier-free guidance in samples; 1 is none.
        guidance_interval: the lowest and the highest log-SNR at which there is guidance; None for
            all.
        variance_loss_weight: weight of the bound in the loss, if the variance is learned.
        clip: whether x0_hat is clipped to [-1, 1] in the bound; a sampler has its own setting.
            Where x_0 are real numbers, neither clips.
        val_draws: number of times at which an evaluation measures the bound of each image.
        test_draws: the same for a full evaluation; None for all T terms.

    Raises:
        ValueError: if a value is outside its range, or components do not fit each other.
    """

    def __init__(
        self,
        spec: ImageSpec,
        steps: int | None,
        noise_schedule: NoiseSchedule,
        parameterization: Parameterization,
        weighting: Weighting,
        time_sampler: TimeSampler,
        reverse_variance: ReverseVariance,
        sampler: Sampler,
        net: Callable[..., nn.Module],
        codec: Callable[..., Codec] = PixelCodec,
        log_snr_max: float | None = None,
        log_snr_min: float | None = None,
        conditional: bool = False,
        label_drop: float = 0.1,
        guidance: float = 1.0,
        guidance_interval: Sequence[float] | None = None,
        variance_loss_weight: float = 0.001,
        clip: bool = True,
        val_draws: int = 4,
        test_draws: int | None = None,
    ) -> None:
        super().__init__()
        self.codec = codec(spec=spec)
        if conditional and not spec.classes:
            raise ValueError("conditional=true: these data have no classes; give false")
        number("label_drop", label_drop, at_least=0, at_most=1)
        number("guidance", guidance, at_least=0, at_most=MOST_GUIDANCE)
        if guidance != 1 and not (conditional and label_drop > 0):
            raise ValueError(
                f"guidance={guidance:g}: guidance needs a model that knows images with and without "
                "their class; set model.conditional=true and model.label_drop=0.1"
            )
        self.guidance_interval = _interval(guidance_interval)
        number("variance_loss_weight", variance_loss_weight, at_least=0)
        whole("val_draws", val_draws, 1)
        if test_draws is None and steps is None:
            raise ValueError(
                "test_draws=null: in continuous time the bound is an integral and has no last "
                "term; give a number of draws, for instance 64"
            )
        if test_draws is not None:
            whole("test_draws", test_draws, 1)
        noise_schedule = between(noise_schedule, log_snr_max, log_snr_min)
        self.process = Process(noise_schedule, steps)
        # not a buffer: module.to(bfloat16) would convert a buffer
        self._table: Tensor | None = None
        for name, component in (
            ("parameterization", parameterization),
            ("reverse_variance", reverse_variance),
            ("sampler", sampler),
        ):
            with naming(name):
                component.check(self.process)
        self.spec = spec
        self.noise_schedule, self.time_sampler = noise_schedule, time_sampler
        self.reverse_variance, self.sampler = reverse_variance, self._fitting(sampler)
        self.parameterization, self.weighting = parameterization, weighting
        self.conditional, self.label_drop, self.guidance = conditional, label_drop, guidance
        self.variance_loss_weight = variance_loss_weight
        self.clip = clip and self.code.levels is not None
        self.val_draws, self.test_draws = val_draws, test_draws
        outputs = 2 if reverse_variance.is_learned else 1
        self.net = net(
            spec=self.code,
            out_channels=outputs * self.code.channels,
            classes=len(spec.classes) if conditional else 0,
        )
        if noise_schedule.is_learned and not (isinstance(weighting, VLB) and steps is None):
            raise ValueError(
                "noise_schedule: one that is learned is trained to lower the variance of the "
                "bound, in continuous time; set model/weighting=vlb and model.steps=null"
            )

    @property
    def code(self) -> ImageSpec:
        """Shape and kind of x_0."""
        return self.codec.code

    def _fitting(self, sampler: Sampler) -> Sampler:
        """Return a sampler that does not clip x0_hat where x_0 are real numbers."""
        return sampler if self.code.levels is not None else replace(sampler, clip=False)

    def loss(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        step: int | None = None,
        noise: Noise | None = None,
    ) -> dict[str, Tensor]:
        """Compute the loss of a batch and its terms, scalars in nats per image.

        Args:
            x: images (B, C, H, W) in [0, 1].
            labels: classes (B,), or None.
            step: ignored.
            noise: source of the random numbers for the code, t, eps and the hidden labels.
        """
        return self.loss_of_inputs(self.inputs(x), labels, step, or_default(noise, x))

    @property
    def keeps_inputs(self) -> bool:
        """True if the result of `inputs` is worth keeping."""
        return self.codec.is_costly

    def inputs(self, x: Tensor) -> Tensor:
        """Compute all that the loss needs of images (B, C, H, W) in [0, 1], (B, ...)."""
        return self.codec.inputs(x)

    def loss_of_inputs(
        self, inputs: Tensor, labels: Tensor | None, step: int | None, noise: Noise
    ) -> dict[str, Tensor]:
        """Compute the loss as `loss` does, from the result of `inputs` for its images."""
        x0 = self.codec.draw(inputs, noise)
        u, importance = self.time_sampler.sample(noise)
        t = self.process.times(u)
        log_snr, log_weight = self._levels(t)
        eps = noise.normal(*self.code.shape).to(x0.dtype)
        losses, prediction = self(x0, eps, log_snr, log_weight, self._hide(labels, noise))
        if log_snr.requires_grad:
            self._lower_variance(losses, log_snr, log_weight)
        self.time_sampler.update(all_gather_rows(u), all_gather_rows(losses.detach()))
        importance = importance.to(losses.dtype)
        loss = (importance * losses).mean()
        if prediction is None:
            return {"loss": loss}
        term = bound.bound_term(
            x0, prediction, self.process, t, self.reverse_variance, self.code.levels
        )
        variance_loss = self._steps * (importance * term).mean()
        total = loss + self.variance_loss_weight * variance_loss
        return {"loss": total, "error_loss": loss, "variance_loss": variance_loss}

    def forward(
        self,
        x0: Tensor,
        eps: Tensor,
        log_snr: Tensor,
        log_weight: Tensor,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, Prediction | None]:
        """Compute the loss of each image, from what is drawn at random; `compile` compiles this.

        Args:
            x0, eps: codes and noise, (B, C, h, w).
            log_snr, log_weight: lambda_t, and ln w(lambda_t), (B,) float64.
            labels: classes (B,), -1 where they are hidden; or None.

        Returns:
            The losses (B,); and the prediction of x_0, if the variance is learned.
        """
        x_t = diffuse(x0, eps, log_snr)
        output, fraction = self._network(x_t, log_snr, labels)
        error = sum_except_batch((output - self.parameterization.target(x0, eps, log_snr)).square())
        log_scale = self.parameterization.log_scale(log_snr)
        losses = (log_weight + log_scale).exp().to(error.dtype) * error
        if fraction is None:
            return losses, None
        # detached: only the plain loss trains the mean
        x0_hat = self.parameterization.x0_hat(output.detach(), x_t, log_snr)
        return losses, Prediction(x0_hat, fraction)

    def _levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-SNR and log-weight at times (B,), by a table of all T where there is one."""
        steps = self.process.steps
        if steps is None or self.noise_schedule.is_learned:
            return self.process.log_snr(t), self.weighting.log_weight(self.process, t)
        if self._table is None or self._table.device != t.device:
            times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
            rows = self.process.log_snr(times), self.weighting.log_weight(self.process, times)
            self._table = torch.stack(rows).to(t.device)
        log_snr, log_weight = self._table[:, (t * steps).round().long() - 1]
        return log_snr, log_weight

    def _network(self, x_t: Tensor, log_snr: Tensor, labels: Tensor | None) -> Prediction:
        """Run the network; return its output, not converted to x0_hat, and variance fraction."""
        output = self.net(x_t, log_snr, labels if self.conditional else None).to(x_t.dtype)
        if self.reverse_variance.is_learned:
            return Prediction(*output.chunk(2, dim=1))
        return Prediction(output)

    def _hide(self, labels: Tensor | None, noise: Noise) -> Tensor | None:
        """Hide some labels (-1), so that the network also learns the unconditional model."""
        if labels is None or not self.conditional or self.label_drop == 0:
            return labels
        return labels.masked_fill(noise.uniform() < self.label_drop, -1)

    @property
    def _steps(self) -> int:
        assert self.process.steps is not None
        return self.process.steps

    @staticmethod
    def _lower_variance(losses: Tensor, *of_schedule: Tensor) -> None:
        """Train the schedule to minimise E[losses^2], while the network minimises E[losses].

        Between fixed ends the mean does not depend on the schedule, so this minimises the variance
        of the estimate (Kingma et al. 2021, appendix I.2). d(l^2) = 2 l dl for each image.
        """
        twice = 2 * losses.detach() / all_gather_rows(losses.detach()).mean()
        for value in of_schedule:
            value.register_hook(lambda gradient: gradient * twice.to(gradient.dtype))

    def predict(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Prediction:
        """Predict x_0 from x_t (B, C, H, W) at times t (B,), given classes (B,) or None."""
        log_snr = self.process.log_snr(t)
        output, fraction = self._network(x_t, log_snr, labels)
        return Prediction(self.parameterization.x0_hat(output, x_t, log_snr), fraction)

    def evaluate(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        noise: Noise | None = None,
        full: bool = False,
        terms: Terms | None = None,
    ) -> dict[str, Tensor]:
        """Evaluate images (B, C, H, W); return values whose first axis is the images.

        Values of shape (B,), in nats, are averaged over a data set: `loss`, `reconstruction`, `kl`,
        `kl_prior`, `kl_diffusion`, and the parts of the bound that a codec adds. The others, `t`,
        `log_snr`, `squared_error` and `terms` (B, N), are for `genlab.diffusion.curves`.

        Args:
            full: use `test_draws` times instead of `val_draws`.
            terms: gets the rows of every prediction of the network, and may know the first ones.
        """
        draws = self.test_draws if full else self.val_draws
        found, parts = self._bound_terms(x, labels, draws, or_default(noise, x), terms)
        return {
            "loss": self._loss_at(found),
            **parts,
            "kl_prior": found.prior,
            "kl_diffusion": found.diffusion,
            "t": found.t,
            "log_snr": self.process.log_snr(found.t),
            "squared_error": found.squared_error,
            "terms": found.terms,
        }

    def evaluation_terms(self, full: bool = False) -> int:
        """Return the number of predictions by which `evaluate` measures the bound."""
        draws = self.test_draws if full else self.val_draws
        if draws is None or self.process.steps == 1:
            return self._steps
        return draws + self.process.is_discrete

    def values_per_term(self) -> int:
        """Return the number of values of an image by which a term is known."""
        return bound.VALUES

    def time_bins(self, full: bool = False) -> int:
        """Return the number of bins of time for the bound: T if all T terms are measured."""
        if full and self.test_draws is None:
            return self._steps
        return min(_BINS, self.process.steps or _BINS)

    def _bound_terms(
        self,
        x: Tensor,
        labels: Tensor | None,
        draws: int | None,
        noise: Noise,
        terms: Terms | None = None,
    ) -> tuple[BoundTerms, dict[str, Tensor]]:
        """Compute the bound on x_0 at a number of times, None for all T terms, and on images."""

        def predict(x_t: Tensor, t: Tensor) -> Prediction:
            return self.predict(x_t, t, labels)

        coded = self.codec.coded(x, noise)
        parts = (coded.x0, predict, self.process, self.reverse_variance)
        last = (noise, self.clip, terms, self.code.levels)
        if draws is None:
            found = bound.exact(*parts, *last)
        else:
            found = bound.stratified(*parts, draws, *last)
        return found, self.codec.bound(coded, found.reconstruction, found.kl)

    def _loss_at(self, terms: BoundTerms) -> Tensor:
        """Compute the training loss of each image, (B,), from the errors at the bound's times."""
        loss = mean_loss(self.weighting, self.process, terms.t, terms.unclipped_error)
        if self.reverse_variance.is_learned:
            loss = loss + self.variance_loss_weight * (terms.reconstruction + terms.diffusion)
        return loss

    def learn_variance(self, log_snr: Tensor, squared_error_per_dim: Tensor) -> None:
        """Give an `Optimal` reverse variance the network's error at some log-SNRs, both (L,)."""
        if isinstance(self.reverse_variance, Optimal):
            self.reverse_variance.measure(log_snr, squared_error_per_dim)

    @torch.no_grad()
    def bound(self, x: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        """Compute `reconstruction` and `kl` of images, each (B,), in nats per image."""
        _, parts = self._bound_terms(x, None, self.val_draws, or_default(noise, x))
        return {"reconstruction": parts["reconstruction"], "kl": parts["kl"]}

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, draws: int | None = None, noise: Noise | None = None
    ) -> Tensor:
        """Estimate a lower bound on log p(x), (B,) in nats: minus the bound's two terms.

        Args:
            x: images (B, C, H, W) in [0, 1].
            draws: number of times at which the bound is measured; None for `test_draws`, where None
                takes all T terms, at T evaluations of the network.
        """
        draws = self.test_draws if draws is None else draws
        _, parts = self._bound_terms(x, None, draws, or_default(noise, x))
        return -(parts["reconstruction"] + parts["kl"])

    def denoiser(
        self,
        labels: Tensor | None = None,
        guidance: float = 1.0,
        guidance_interval: Sequence[float] | None = None,
    ) -> Denoise:
        """Return `denoise(x_t, t)` for samplers, conditional on the classes (B,) if given."""
        if labels is None or not self.conditional:
            return self.predict
        asked = guidance_interval is not None
        low, high = _interval(guidance_interval) if asked else self.guidance_interval

        def is_guided(t: Tensor) -> bool:
            return low <= float(self.process.log_snr(t[:1])) <= high

        return guided(self.predict, labels, guidance, is_guided)

    def sample(
        self,
        n: int,
        seed: int = 0,
        first: int = 0,
        *,
        sampler: Sampler | None = None,
        classes: Sequence[int] | None = None,
        guidance: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        on_step: OnStep | None = None,
        project: Project | None = None,
        noise: Noise | None = None,
    ) -> Tensor:
        """Draw images `first`, ..., `first` + n - 1 of a seed, (n, C, H, W) in [0, 1].

        Image i depends only on (seed, i) and its class.

        Args:
            sampler: None for the sampler of the model.
            classes: assigned to the images in turn; None for all classes of the data. Only for a
                conditional model.
            guidance: scale of classifier-free guidance; 1 is none, None that of the model.
            guidance_interval: the lowest and the highest log-SNR at which there is guidance; None
                for those of the model.
            on_step: called at every step; `images_of` decodes x_t and x0_hat.
            project: changes x_s before the next step. `inpaint(known, mask, noise)` keeps a part of
                x_0, given `known` of the codec, in [-1, 1] for pixels, and noise of another seed.
            noise: used instead of the streams of (seed, i).

        Raises:
            ValueError: if the model does not support the classes or the guidance.
        """
        if classes is None:
            classes = range(len(self.spec.classes)) if self.conditional else ()
        guidance = self.guidance if guidance is None else guidance
        self.check_request(classes, guidance, guidance_interval)
        device = device_of(self)
        indices = range(first, first + n)
        labels = None
        if classes:
            labels = torch.tensor([classes[i % len(classes)] for i in indices], device=device)
        if noise is None:
            noise = ImageNoise(seed, "noise", indices=indices, device=device)
        draws, shape = noise, self.code.shape
        # has less overhead than no_grad: 2 % of the forward pass of a small network
        with torch.inference_mode():
            x0 = (self.sampler if sampler is None else self._fitting(sampler))(
                self.denoiser(labels, guidance, guidance_interval),
                draws.normal(*shape),
                self.process,
                lambda: draws.normal(*shape),
                on_step=on_step,
                project=project,
                variance=self.reverse_variance,
            )
        return self.images_of(x0)

    def images_of(self, x0: Tensor) -> Tensor:
        """Decode x_0, x_t or x0_hat to images, in [0, 1] unless pixels are real numbers."""
        images = (self.codec.decode(x0) + 1) / 2
        return images if self.spec.levels is None else images.clamp(0, 1)

    def check_request(
        self,
        classes: Sequence[int],
        guidance: float,
        guidance_interval: Sequence[float] | None = None,
    ) -> None:
        """Refuse classes or guidance that the model does not support.

        Raises:
            ValueError: with a message that names `class`, `guidance` or `guidance_interval`.
        """
        _interval(guidance_interval)
        known = len(self.spec.classes)
        if classes and not self.conditional:
            raise ValueError(
                "class: this model was trained without classes (model.conditional=false); leave "
                "the class out, or train one with model.conditional=true"
            )
        if wrong := [c for c in classes if not -1 <= c < known]:
            raise ValueError(f"class={wrong[0]}: this model knows the classes 0 to {known - 1}")
        number("guidance", guidance, at_least=0, at_most=MOST_GUIDANCE)
        if guidance != 1 and (not classes or self.label_drop == 0):
            raise ValueError(
                f"guidance={guidance:g}: this model has no class to be guided to, or never learned "
                "to do without; use guidance=1, or train with model.conditional=true and "
                "model.label_drop=0.1"
            )

    def sampling_steps(self, sampler: Sampler | None = None) -> int:
        """Return the number of steps of a sampler; None for the sampler of the model."""
        return (self.sampler if sampler is None else sampler).path(self.process).steps

    def log_snr(self, t: Sequence[float]) -> list[float]:
        """Return the log-SNR at times in [0, 1]."""
        times = torch.tensor(t, dtype=torch.float64, device=device_of(self))
        values: list[float] = self.process.log_snr(times).tolist()
        return values

    @torch.no_grad()
    def noised(self, x: Tensor, steps: int, seed: int = 0) -> tuple[Tensor, list[float]]:
        """Diffuse images to evenly spaced times t, with the same noise at each.

        Returns:
            Images (B, 1 + steps, C, H, W), x itself first, the others not limited to [0, 1]; and
            the log-SNRs.
        """
        noise = ImageNoise(seed, "noised", indices=range(len(x)), device=x.device)
        x0 = self.codec.encode(x, noise)
        eps = noise.normal(*self.code.shape)
        log_snrs = self.log_snr(torch.linspace(self.process.first, 1, steps).double().tolist())
        at = torch.tensor(log_snrs, dtype=torch.float64, device=x.device)
        noisy = (diffuse(x0, eps, log_snr.expand(len(x))) for log_snr in at)
        way = [2 * x - 1, *(self.codec.decode(x_t) for x_t in noisy)]
        return (torch.stack(way, 1) + 1) / 2, log_snrs

    def walk(self, panels: int, steps: int, seed: int = 0) -> Tensor:
        """Draw samples along a closed walk through the noise that the sampler uses.

        Each number is cos(u) a + sin(u) b of two independent draws a and b, which the samples of
        `seed` and of `seed` + 1 use; it is standard normal too.

        Returns:
            (steps, panels, C, H, W) in [0, 1].
        """
        frames = []
        for turn in torch.linspace(0, 2 * math.pi, steps + 1)[:-1].tolist():
            noise = TurnedNoise(turn, seed, "noise", indices=range(panels), device=device_of(self))
            frames.append(self.sample(panels, seed, noise=noise))
        return torch.stack(frames)

    def describe(self) -> str:
        """Describe the noise schedule in one line, and add a warning if it ends too early."""
        schedule = ScheduleSummary.of(self.label(), self.process)
        steps = "continuous time" if self.process.steps is None else f"T = {self.process.steps}"
        sentence = (
            f"{self.label()}, {steps}: log-SNR {float(schedule.log_snr[0]):.2f} to "
            f"{float(schedule.log_snr[-1]):.2f}, L_T at most {schedule.prior_bits:.1e} bits/dim"
        )
        return sentence if schedule.warning is None else f"{sentence}\nwarning {schedule.warning}"

    def label(self) -> str:
        """Return the setting, for a caption."""
        return f"{self.noise_schedule.name} schedule"

    def verdict(self, metrics: dict[str, float]) -> str:
        """Return "diverged" if it is so, else nothing: the numbers need no summary."""
        return "diverged" if has_diverged(metrics.get("neg_elbo", 0.0), self.spec.dims) else ""

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks by name, to be compiled and sharded."""
        return {"net": self.net}

    def exports(self) -> dict[str, NetworkExport]:
        """Return the network as `unet`, a function of x_t, the log-SNR and the classes."""
        inputs = {"x_t": torch.zeros(3, *self.code.shape), "log_snr": torch.linspace(-5, 5, 3)}
        notes = "`log_snr` is ln(alpha² / sigma²), (B,)."
        if self.conditional:
            inputs["labels"] = torch.arange(3) % (len(self.spec.classes) + 1) - 1
            notes += " `labels` are numbers of classes, int64, and -1 for none."
        output = self.parameterization.describe()
        if self.reverse_variance.is_learned:
            channels = self.code.channels
            output += f" in the first {channels} channels, and the fraction of the variance"
        meaning = (
            f"predicts {output} from x_t = alpha x + sigma noise, where {self.codec.describe()} "
            "and alpha² + sigma² = 1."
        )
        unet = NetworkExport(self.net, inputs, ("output",), meaning, notes)
        return {"unet": unet, **self.codec.exports()}

    @torch.no_grad()
    def step_log_snrs(self) -> Tensor | None:
        """Return the log-SNRs of the T steps, (T,) float64; None in continuous time."""
        steps = self.process.steps
        if steps is None:
            return None
        return self.process.log_snr(torch.arange(1, steps + 1, dtype=torch.float64) / steps)

    def scheduler(self) -> Any:
        """Build the scheduler of diffusers with this process (`diffusers_scheduler`)."""
        return diffusers_scheduler.scheduler(self)
