"""The generative adversarial network: a generator against a discriminator, and their losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from genlab.errors import whole
from genlab.gan.augmentation import DifferentiableAugmentation
from genlab.gan.evaluation import energy_score
from genlab.gan.losses import AdversarialLoss
from genlab.gan.penalties import GradientPenalty
from genlab.protocols import ImageSpec, NetworkExport
from genlab.seeding import ImageNoise, Noise, or_default
from genlab.tensors import device_of, great_circle, parameter_count

#: Number of images of a walk that are drawn at once.
_WALK_BATCH = 64
#: A generator has collapsed below this diversity, or where the shares of the classes are further
#: from those of the data than this part of the distance of samples of one class. From this accuracy
#: on a discriminator is saturated.
COLLAPSED, ONE_SIDED, SATURATED = 0.5, 0.75, 0.995


@dataclass(frozen=True)
class Networks:
    """Constructors of the generator and the discriminator; the GAN gives them spec and sizes."""

    generator: Callable[..., nn.Module]
    discriminator: Callable[..., nn.Module]


class GAN(nn.Module):
    """A generative adversarial network (Goodfellow et al. 2014).

    The generator maps z ~ N(0, I) to an image, the discriminator an image to a score. They are
    trained in turn, each to lower a loss that the other raises; there is no bound on a likelihood.
    Images x are (B, C, H, W) in [0, 1], and in [-1, 1] within. Without `noise`, torch's default
    generator is used.

    Args:
        spec: shape and kind of the images.
        latent_dim: d, the size of z.
        adversarial_loss: the losses of both networks.
        net: generator and discriminator.
        penalty: a term of the discriminator's loss; None for none.
        augmentation: changes real and drawn images before the discriminator; None for none.
        conditional: whether both networks know the class of an image.
        draws: number of samples with which an evaluation compares each image; 2 or more.

    Raises:
        ValueError: if a value is outside its range, the data have no classes, or the loss needs a
            penalty and there is none.
    """

    def __init__(
        self,
        spec: ImageSpec,
        latent_dim: int,
        adversarial_loss: AdversarialLoss,
        net: Networks,
        penalty: GradientPenalty | None = None,
        augmentation: DifferentiableAugmentation | None = None,
        conditional: bool = False,
        draws: int = 4,
    ) -> None:
        super().__init__()
        whole("latent_dim", latent_dim, 1)
        whole("draws", draws, 2)
        if conditional and not spec.classes:
            raise ValueError("conditional=true: these data have no classes; give false")
        self.spec, self.latent_dim = spec, latent_dim
        self.adversarial_loss, self.penalty = adversarial_loss, penalty
        self.augmentation, self.conditional, self.draws = augmentation, conditional, draws
        classes = len(spec.classes) if conditional else 0
        self.generator = net.generator(spec=spec, latent_dim=latent_dim, classes=classes)
        self.discriminator = net.discriminator(spec=spec, classes=classes)
        if adversarial_loss.needs_penalty and (penalty is None or penalty.is_zero):
            self._check_bounded()

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map latents (B, d) and, for a conditional model, classes (B,) to images.

        Data lie in [-1, 1], images may lie beyond: a generator that ends in a tanh, and once drew
        black images alone, would have no gradient to leave them.
        """
        images: Tensor = self.generator(z, labels).float()
        return images

    def score(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map images in [-1, 1] to the discriminator's scores (B,), large for real images."""
        scores: Tensor = self.discriminator(x, labels).float()
        return scores

    def discriminator_loss(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        step: int | None = None,
        noise: Noise | None = None,
    ) -> dict[str, Tensor]:
        """Compute the discriminator's loss of a batch, and its parts, scalars.

        Args:
            x: images (B, C, H, W) in [0, 1].
            labels: classes (B,) of a conditional model, drawn evenly if None; else ignored.
            step: the optimizer step, for a penalty that is not due at each; None if it is due.
            noise: source of the random numbers for z and the augmentation.

        Returns:
            `discriminator_loss`, which is minimised; the mean scores `real_score` and
            `fake_score`; and the weighted penalties by name.
        """
        noise = or_default(noise, x)
        labels = self._labels(labels, x, noise)
        z = noise.normal(self.latent_dim)
        # detached, not under no_grad: autocast would keep copies of the weights without gradients
        fake = self._augmented(self.generate(z, labels).detach(), noise)
        real = self._augmented(2 * x - 1, noise)
        real_score, fake_score = self.score(real, labels), self.score(fake, labels)
        loss = self.adversarial_loss.discriminator(real_score, fake_score).mean()
        terms = {"real_score": real_score.mean(), "fake_score": fake_score.mean()}
        if self.penalty is not None and self.penalty.is_due(step):
            with torch.autocast(x.device.type, enabled=False):
                penalties = self.penalty(
                    # `forward`, since a compiled network cannot be differentiated twice
                    lambda images: self.discriminator.forward(images, labels),
                    real,
                    fake,
                    noise,
                )
            terms |= {name: values.mean() for name, values in penalties.items()}
            loss = loss + self.penalty.every * sum(terms[name] for name in penalties)
        return {"discriminator_loss": loss, **terms}

    def generator_loss(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        noise: Noise | None = None,
    ) -> dict[str, Tensor]:
        """Compute `generator_loss` of a batch, a scalar; the discriminator gets no gradient.

        The arguments are those of `discriminator_loss`.
        """
        noise = or_default(noise, x)
        labels = self._labels(labels, x, noise)
        z = noise.normal(self.latent_dim)
        with _frozen(self.discriminator):
            fake_score = self.score(self._augmented(self.generate(z, labels), noise), labels)
            real_score = fake_score.detach()
            if self.adversarial_loss.is_relative:
                real_score = self.score(self._augmented(2 * x - 1, noise), labels)
        return {"generator_loss": self.adversarial_loss.generator(real_score, fake_score).mean()}

    def loss(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        step: int | None = None,
        noise: Noise | None = None,
    ) -> dict[str, Tensor]:
        """Compute both losses and their sum `loss`, whose gradient is that of each network's own.

        The arguments are those of `discriminator_loss`.
        """
        noise = or_default(noise, x)
        terms = self.discriminator_loss(x, labels, step, noise)
        terms |= self.generator_loss(x, labels, noise)
        return {"loss": terms["discriminator_loss"] + terms["generator_loss"], **terms}

    @torch.no_grad()
    def evaluate(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        noise: Noise | None = None,
        full: bool = False,
    ) -> dict[str, Tensor]:
        """Evaluate images (B, C, H, W) with samples of their own; values begin with the images.

        Values of shape (B,) are averaged over a data set: `energy_score` (see
        `genlab.gan.evaluation`), `discriminator_accuracy`, the share of the samples whose score is
        below that of the image, and `real_score` and `fake_score`. `sample` (B, C, H, W) is for
        the diversity.
        """
        noise = or_default(noise, x)
        labels = self._labels(labels, x, noise)
        drawn = [self.generate(noise.normal(self.latent_dim), labels) for _ in range(self.draws)]
        real_score = self.score(2 * x - 1, labels)
        fake_scores = torch.stack([self.score(fake, labels) for fake in drawn], 1)
        above = (real_score[:, None] - fake_scores).sign()
        samples = self._stored(torch.stack(drawn, 1))
        return {
            "energy_score": energy_score(samples, x),
            "discriminator_accuracy": ((above + 1) / 2).mean(1),
            "real_score": real_score,
            "fake_score": fake_scores.mean(1),
            "sample": samples[:, 0],
        }

    @torch.no_grad()
    def sample(
        self, n: int, seed: int = 0, first: int = 0, *, classes: Sequence[int] | None = None
    ) -> Tensor:
        """Draw images `first`, ..., `first` + n - 1 of a seed, (n, C, H, W) in [0, 1].

        Image i depends only on (seed, i) and its class.

        Args:
            classes: assigned to the images in turn; None for all classes of the data. Only for a
                conditional model.

        Raises:
            ValueError: if the model does not know the classes.
        """
        known = len(self.spec.classes) if self.conditional else 0
        if wrong := [c for c in classes or () if not 0 <= c < known]:
            told = f"knows the classes 0 to {known - 1}" if known else "was trained without classes"
            raise ValueError(f"class={wrong[0]}: this model {told}")
        indices = range(first, first + n)
        noise = ImageNoise(seed, "sample", indices=indices, device=device_of(self))
        return self._images(noise.normal(self.latent_dim), classes, indices)

    @torch.no_grad()
    def walk(self, panels: int, steps: int, seed: int = 0) -> Tensor:
        """Draw a closed walk along a great circle through two draws of z; see `VAE.walk`.

        Returns:
            (steps, panels, C, H, W) in [0, 1].
        """
        noise = ImageNoise(seed, "walk", indices=range(panels), device=device_of(self))
        a, b = noise.normal(2, self.latent_dim).unbind(1)
        z = great_circle(a, b, steps).flatten(0, 1)
        panel = [i % panels for i in range(len(z))]
        images = [
            self._images(batch, None, panel[start : start + _WALK_BATCH])
            for start, batch in zip(
                range(0, len(z), _WALK_BATCH), z.split(_WALK_BATCH), strict=True
            )
        ]
        return torch.cat(images).unflatten(0, (steps, panels))

    def label(self) -> str:
        """Return the loss and the penalty, for a caption."""
        penalty = self.penalty.label if self.penalty is not None else ""
        return ", ".join(filter(None, [f"{self.adversarial_loss.name} loss", penalty]))

    def describe(self) -> str:
        """Describe losses and sizes in one line."""
        sizes = [
            f"{name} {parameter_count(network):,}" for name, network in self.networks().items()
        ]
        steps = 1 if self.penalty is None else self.penalty.every
        every = f" every {steps} steps" if steps > 1 else ""
        return f"{self.label()}{every}; parameters: {', '.join(sizes)}"

    def verdict(self, metrics: Mapping[str, float]) -> str:
        """Name an instability of the training, from the metrics of a split; empty if there is none.

        A collapse is told first, since a discriminator also wins against a collapsed generator. It
        is one where the samples vary too little, or, if a callback has measured `class_distance`,
        where most classes are missing: the others can vary enough by themselves. Three of ten
        classes are a collapse. Shapeless samples of a short training, which a classifier takes for
        few classes, are none.
        """
        if not math.isfinite(metrics.get("energy_score", 0.0)):
            return "diverged"
        distances = [v for name, v in metrics.items() if name.startswith("class_distance")]
        of_one_class = 1 - 1 / len(self.spec.classes) if self.spec.classes else 1.0
        is_one_sided = max(distances, default=0.0) > ONE_SIDED * of_one_class
        if metrics.get("diversity", 1.0) < COLLAPSED or is_one_sided:
            return "mode collapse"
        if metrics.get("discriminator_accuracy", 0.0) > SATURATED:
            return "saturated discriminator"
        return ""

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks by name, to be compiled and sharded."""
        return {"generator": self.generator, "discriminator": self.discriminator}

    def exports(self) -> dict[str, NetworkExport]:
        """Return `generator`, a function of z and, for a conditional model, of the classes."""
        inputs = {"z": torch.zeros(3, self.latent_dim)}
        known, notes = "", ""
        if self.conditional:
            inputs["labels"] = torch.arange(3) % len(self.spec.classes)
            known, notes = " and their classes", "`labels` are numbers of classes, int64, (B,)."
        meaning = f"maps draws z of N(0, I), (B, d),{known} to images (B, C, H, W)"
        meaning += " of real numbers." if self.spec.levels is None else " in [0, 1]."
        return {"generator": NetworkExport(_Images(self), inputs, ("image",), meaning, notes)}

    def _check_bounded(self) -> None:
        """Refuse a discriminator whose gradient neither a penalty nor its own weights bound."""
        if any(map(is_parametrized, self.discriminator.modules())):  # as by a spectral norm
            return
        raise ValueError(
            f"penalty={'null' if self.penalty is None else 0}: the {self.adversarial_loss.name} "
            "loss has no minimum where nothing bounds the discriminator's gradient; give a penalty "
            "with a weight above 0, such as one_centred or r1"
        )

    def _labels(self, labels: Tensor | None, x: Tensor, noise: Noise) -> Tensor | None:
        if not self.conditional:
            return None
        return (noise.uniform() * len(self.spec.classes)).long() if labels is None else labels

    def _augmented(self, x: Tensor, noise: Noise) -> Tensor:
        return x if self.augmentation is None else self.augmentation(x, noise)

    def _images(self, z: Tensor, classes: Sequence[int] | None, indices: Sequence[int]) -> Tensor:
        """Draw images in [0, 1]; the i-th has the class of its index."""
        labels = None
        if self.conditional:
            classes = classes or range(len(self.spec.classes))
            labels = torch.tensor([classes[i % len(classes)] for i in indices], device=z.device)
        return self._stored(self.generate(z, labels))

    def _stored(self, images: Tensor) -> Tensor:
        """Map images from [-1, 1] to [0, 1]; what lies beyond is cut off, but of real numbers."""
        x = (images + 1) / 2
        return x if self.spec.levels is None else x.clamp(0, 1)


class _Images(nn.Module):
    """The images of the generator, in the range of the data, as a module."""

    def __init__(self, model: GAN) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.model._stored(self.model.generate(z, labels))


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Keep a network's weights without gradients, though not its inputs."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
