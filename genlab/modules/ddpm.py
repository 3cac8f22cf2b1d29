"""The DDPM under training: a forward process, a network that undoes it, a bound by its terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from genlab.checks import number, whole
from genlab.diffusion import bound
from genlab.diffusion.bound import BoundTerms
from genlab.diffusion.curves import Curves
from genlab.diffusion.parameterizations import Parameterization
from genlab.diffusion.process import Process, diffuse
from genlab.diffusion.samplers import Denoise, ImageNoise, Noise, OnStep, Project, Sampler, guided
from genlab.diffusion.schedule_check import ScheduleSummary
from genlab.diffusion.schedules import NoiseSchedule
from genlab.diffusion.time_samplers import TimeSampler
from genlab.diffusion.variances import Optimal, Prediction, ReverseVariance
from genlab.diffusion.weightings import VLB, Weighting
from genlab.errors import ConfigError
from genlab.modules.base import GenerativeModule
from genlab.modules.optimization import Adam
from genlab.protocols import ImageSpec
from genlab.tensors import nats_to_bits_per_dim, sum_except_batch

_BINS = 40


class DDPM(GenerativeModule):
    """A denoising diffusion model (Ho et al. 2020), discrete or in continuous time (VDM, 2021).

    The loss is E_t w(lambda_t) ||x_0 - x0_hat||^2, summed over dimensions and averaged over images;
    the bound is reconstruction + kl with reconstruction = L_0 and kl = L_T + sum L_(t-1), in nats.

    Args:
        spec: the images, 8-bit.
        steps: T; null for continuous time.
        noise_schedule, parameterization, weighting, time_sampler, reverse_variance, sampler: the
            components of these names.
        net: the network, which still needs the spec, its output channels and the classes.
        conditional: whether the network is told the class.
        label_drop: the share of training images whose class is hidden, for guidance.
        guidance: scale of classifier-free guidance in the samples that training draws; 1 is none.
        variance_loss_weight: of the bound in the loss where the variance is learned.
        clip: whether x0_hat is clipped to [-1, 1] in the bound; a sampler has a key of its own.
        val_draws: times at which the bound is measured for each validation image.
        test_draws: the same for the test; null takes all T terms.
        optimizer, seed: see `GenerativeModule`.

    Raises:
        ConfigError: for a value outside its range, or components that do not fit each other.
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
        conditional: bool,
        label_drop: float,
        guidance: float,
        variance_loss_weight: float,
        clip: bool,
        val_draws: int,
        test_draws: int | None,
        optimizer: Adam,
        seed: int,
    ) -> None:
        super().__init__(spec, optimizer, seed)
        bound.check_levels(spec)
        if conditional and not spec.classes:
            raise ConfigError("model.conditional=true: these data have no classes; give false")
        number("model.label_drop", label_drop, at_least=0, at_most=1)
        number("model.guidance", guidance, at_least=0)
        if guidance != 1 and not (conditional and label_drop > 0):
            raise ConfigError(
                f"model.guidance={guidance:g}: guidance needs a model that knows images with and "
                "without their class; set model.conditional=true and model.label_drop=0.1"
            )
        number("model.variance_loss_weight", variance_loss_weight, at_least=0)
        whole("model.val_draws", val_draws, 1)
        if test_draws is None and steps is None:
            raise ConfigError(
                "model.test_draws=null: in continuous time the bound is an integral and has no "
                "last term; give a number of draws, for instance 64"
            )
        if test_draws is not None:
            whole("model.test_draws", test_draws, 1)
        self.process = Process(noise_schedule, steps)
        parameterization.check(self.process)
        reverse_variance.check(self.process)
        sampler.check(self.process)
        self.noise_schedule, self.time_sampler = noise_schedule, time_sampler
        self.reverse_variance = reverse_variance
        self.parameterization, self.weighting, self.sampler = parameterization, weighting, sampler
        self.conditional, self.label_drop, self.guidance = conditional, label_drop, guidance
        self.variance_loss_weight, self.clip = variance_loss_weight, clip
        self.val_draws, self.test_draws = val_draws, test_draws
        outputs = 2 if reverse_variance.is_learned else 1
        self.net = net(
            spec=spec,
            out_channels=outputs * spec.channels,
            classes=len(spec.classes) if conditional else 0,
        )
        self._curves: Curves | None = None
        learns_schedule = any(True for _ in noise_schedule.parameters())
        if learns_schedule and not (isinstance(weighting, VLB) and steps is None):
            raise ConfigError(
                "model/noise_schedule=learned: it is trained to lower the variance of the bound, "
                "in continuous time; set model/weighting=vlb and model.steps=null"
            )

    def networks(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def label(self) -> str:
        return f"{type(self.noise_schedule).__name__} schedule"

    def meaning(self) -> str:
        schedule = ScheduleSummary.of(self.label(), self.process)
        steps = "continuous time" if self.process.steps is None else f"T = {self.process.steps}"
        sentence = (
            f"{self.label()}, {steps}: log-SNR {float(schedule.log_snr[0]):.2f} to "
            f"{float(schedule.log_snr[-1]):.2f}, L_T at most {schedule.prior_bits:.1e} bits/dim"
        )
        return sentence if schedule.warning is None else f"{sentence}\nwarning {schedule.warning}"

    def _network(self, x_t: Tensor, log_snr: Tensor, labels: Tensor | None) -> Prediction:
        """The network's output in its own terms, beside what it says of the variance."""
        output = self.net(x_t, log_snr, labels if self.conditional else None).to(x_t.dtype)
        if self.reverse_variance.is_learned:
            return Prediction(*output.chunk(2, dim=1))
        return Prediction(output)

    def predict(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Prediction:
        """What the network says of x_0, given x_t (B, C, H, W) at times t (B,) and the classes."""
        log_snr = self.process.log_snr(t)
        output, fraction = self._network(x_t, log_snr, labels)
        return Prediction(self.parameterization.x0_hat(output, x_t, log_snr), fraction)

    def _hidden(self, labels: Tensor | None) -> Tensor | None:
        """Labels of which some are hidden (-1), so that the network also learns to do without."""
        if labels is None or not self.conditional or self.label_drop == 0:
            return labels
        hidden = torch.rand(len(labels), device=labels.device) < self.label_drop
        return labels.masked_fill(hidden, -1)

    def on_train_start(self) -> None:
        super().on_train_start()
        steps = self.total_steps * self.trainer.accumulate_grad_batches
        self.time_sampler.check(steps * self._batch_size)

    def objective(self, x: Tensor, labels: Tensor | None, step: int) -> dict[str, Tensor]:
        x0 = 2 * x - 1
        u, importance = self.time_sampler.sample(len(x), x.device)
        t = self.process.times(u)
        log_snr = self.process.log_snr(t)
        log_weight = self.weighting.log_weight(self.process, t)
        eps = torch.randn_like(x0)
        x_t = diffuse(x0, eps, log_snr)
        output, fraction = self._network(x_t, log_snr, self._hidden(labels))
        error = sum_except_batch((output - self.parameterization.target(x0, eps, log_snr)).square())
        log_scale = self.parameterization.log_scale(log_snr)
        losses = (log_weight + log_scale).exp().to(error.dtype) * error
        if log_snr.requires_grad:
            self._lower_variance(losses, log_snr, log_weight)
        self.time_sampler.update(self.of_all(u), self.of_all(losses.detach()))
        importance = importance.to(losses.dtype)
        loss = (importance * losses).mean()
        if fraction is None:
            return {"loss": loss}
        # the mean is trained by the plain loss alone: here it is held still
        said = self.parameterization.x0_hat(output.detach(), x_t, log_snr)
        term = bound.bound_term(
            x0, Prediction(said, fraction), self.process, t, self.reverse_variance
        )
        in_nats = self._steps * (importance * term).mean()
        total = loss + self.variance_loss_weight * in_nats
        return {"loss": total, "error_loss": loss, "variance_loss": in_nats}

    @property
    def _steps(self) -> int:
        assert self.process.steps is not None
        return self.process.steps

    @staticmethod
    def _lower_variance(losses: Tensor, *of_schedule: Tensor) -> None:
        """Let the schedule descend on E[losses^2], while the network descends on E[losses].

        Between fixed ends the mean does not depend on the schedule, so that this is the variance
        of the estimate (Kingma et al. 2021, appendix I.2). d(l^2) = 2 l dl, image by image.
        """
        twice = 2 * losses.detach() / losses.detach().mean()
        for value in of_schedule:
            value.register_hook(lambda gradient: gradient * twice.to(gradient.dtype))

    def bound(self, x: Tensor) -> dict[str, Tensor]:
        terms, _ = self._bound_terms(x, None, self.val_draws)
        return {"reconstruction": terms.reconstruction, "kl": terms.kl}

    def _bound_terms(
        self, x: Tensor, labels: Tensor | None, draws: int | None
    ) -> tuple[BoundTerms, Tensor]:
        """The bound, and ||x_0 - x0_hat||^2 (B, N) of what the network said, before clipping."""
        x0 = 2 * x - 1
        unclipped: list[Tensor] = []

        def predict(x_t: Tensor, t: Tensor) -> Prediction:
            prediction = self.predict(x_t, t, labels)
            unclipped.append(sum_except_batch((x0 - prediction.x0_hat).square().double()))
            if not self.clip:
                return prediction
            return prediction._replace(x0_hat=prediction.x0_hat.clamp(-1, 1))

        if draws is None:
            terms = bound.exact(x0, predict, self.process, self.reverse_variance)
        else:
            terms = bound.stratified(x0, predict, self.process, self.reverse_variance, draws)
        return terms, torch.stack(unclipped, 1)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._curves = None

    def evaluate(self, x: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        draws = self.test_draws if self.trainer.testing else self.val_draws
        terms, unclipped = self._bound_terms(x, labels, draws)
        log_snr = self.process.log_snr(terms.t)
        bins = self._steps if draws is None else min(_BINS, self.process.steps or _BINS)
        curves = Curves.of(terms, log_snr, bins)
        self._curves = curves if self._curves is None else self._curves.plus(curves)
        neg_elbo = terms.reconstruction + terms.kl
        return {
            "loss": self._loss(terms, unclipped),
            "reconstruction": terms.reconstruction,
            "kl": terms.kl,
            "kl_prior": terms.prior,
            "kl_diffusion": terms.diffusion,
            "neg_elbo_squared": neg_elbo.square(),
        }

    def _loss(self, terms: BoundTerms, squared_error: Tensor) -> Tensor:
        """What is optimised, (B,), from the errors at the times of the bound."""
        t = terms.t.flatten()
        weight = self.weighting.log_weight(self.process, t).exp()
        if self.process.steps is None:  # the bound's times are even in the log-SNR, the loss's in t
            first, last = self.process.log_snr(t.new_tensor([0.0, 1.0]))
            weight = weight * (last - first) / self.noise_schedule.slope(t)
        losses = weight.unflatten(0, terms.t.shape) * squared_error
        if self.process.steps is None:
            loss = losses.mean(1)
        else:
            first, later = losses[:, 0], losses[:, 1:]
            rest = self.process.steps - 1
            loss = (first + rest * (later.mean(1) if rest else 0)) / self.process.steps
        if self.reverse_variance.is_learned:
            loss = loss + self.variance_loss_weight * (terms.reconstruction + terms.diffusion)
        return loss

    def summary(self, means: dict[str, float], split: str) -> dict[str, float]:
        images = self.evaluated_images
        neg_elbo = means["reconstruction"] + means["kl"]
        spread = max(0.0, means.pop("neg_elbo_squared") - neg_elbo**2)
        curves = self._reduced_curves()
        if isinstance(self.reverse_variance, Optimal) and split == "val":
            self.reverse_variance.measure(*curves.measured(self.spec.dims))
        self.final_curves = curves.record(images, self.spec.dims)
        metrics = {
            **means,
            "neg_elbo": neg_elbo,
            "neg_elbo_se": math.sqrt(spread / max(1, images - 1)),
            "bits_per_dim": nats_to_bits_per_dim(neg_elbo, self.spec.dims),
        }
        edges = bound.LOG_SNR_EDGES
        shares = (curves.nats_by_log_snr / images).tolist()
        for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True):
            if share != 0:
                metrics[f"bound_log_snr_{(low + high) / 2:+g}"] = share
        return metrics

    def _reduced_curves(self) -> Curves:
        assert self._curves is not None
        return Curves(*(self.reduce_sum(part) for part in self._curves))

    def denoiser(self, labels: Tensor | None = None, guidance: float = 1.0) -> Denoise:
        """`denoise(x_t, t)` for samplers, told the classes (B,) where there are any."""
        if labels is None or not self.conditional:
            return self.predict
        return guided(self.predict, labels, guidance)

    def sample(self, n: int, seed: int, on_step: OnStep | None = None) -> Tensor:
        labels = torch.arange(n) % len(self.spec.classes) if self.conditional else None
        return self.sample_with(
            range(n), seed, labels=labels, guidance=self.guidance, on_step=on_step
        )

    def sample_with(
        self,
        indices: Sequence[int],
        seed: int,
        sampler: Sampler | None = None,
        labels: Tensor | None = None,
        guidance: float = 1.0,
        on_step: OnStep | None = None,
        project: Project | None = None,
        noise: Noise | None = None,
    ) -> Tensor:
        """Images (n, C, H, W) in [0, 1]; image i depends on (seed, indices[i]) and its label alone.

        Args:
            sampler: null is the one of the config.
            labels: (n,) classes, -1 for none; of a conditional model only.
            guidance: scale of classifier-free guidance; 1 is none.
            on_step: is shown every step.
            project: changes x_s before the next step. `inpaint(known, mask, noise)` keeps a part of
                the images, given `known` in [-1, 1] and an `ImageNoise` of another seed.
            noise: takes the place of the streams of (seed, indices).

        Raises:
            ConfigError: see `check_request`.
        """
        self.check_request(labels, guidance)
        if noise is None:
            noise = ImageNoise(seed, indices, self.spec.shape, self.device)
        here = None if labels is None else labels.to(self.device)
        # without the bookkeeping of no_grad, which is 2 % of a small network's forward pass
        with torch.inference_mode():
            images = (self.sampler if sampler is None else sampler)(
                self.denoiser(here, guidance),
                noise(),
                self.process,
                noise,
                on_step=on_step,
                project=project,
                variance=self.reverse_variance,
            )
        return ((images + 1) / 2).clamp(0, 1)

    def check_request(self, labels: Tensor | None, guidance: float) -> None:
        """Raise ConfigError for classes or guidance that the model does not have."""
        classes = len(self.spec.classes)
        if labels is not None and not self.conditional:
            raise ConfigError(
                "class: this model was trained without classes (model.conditional=false); leave "
                "the class out, or train one with model.conditional=true"
            )
        wrong = [] if labels is None else [c for c in labels.tolist() if not -1 <= c < classes]
        if wrong:
            raise ConfigError(f"class={wrong[0]}: this model knows the classes 0 to {classes - 1}")
        if guidance != 1 and (labels is None or self.label_drop == 0):
            raise ConfigError(
                f"guidance={guidance:g}: this model has no class to be guided to, or never learned "
                "to do without; use guidance=1, or train with model.conditional=true and "
                "model.label_drop=0.1"
            )
