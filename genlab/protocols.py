"""Interfaces between the parts of genlab: the shape of images, and the abilities of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributions import Distribution, Normal

    from genlab.seeding import Noise


#: Function called with i, t, x_t and x0_hat at every step of a sampler.
OnStep = Callable[[int, float, "Tensor", "Tensor"], None]


@dataclass(frozen=True)
class ImageSpec:
    """The shape and the kind of the images of a data set, known before an image is read.

    Attributes:
        channels: 1 for grey, 3 for colour.
        height, width: in pixels.
        levels: number of values a pixel can take (256 for 8 bits, 2 after binarisation); None if
            pixels are real numbers.
        classes: names of the labels, in the order of their numbers; empty without labels.
    """

    channels: int
    height: int
    width: int
    levels: int | None = 256
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("channels", "height", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: an image needs at least 1")
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"levels={self.levels}: a pixel takes at least 2 values, or None")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an image, (C, H, W)."""
        return (self.channels, self.height, self.width)

    @property
    def dims(self) -> int:
        """D = C * H * W, used to convert nats to bits/dim."""
        return self.channels * self.height * self.width


@dataclass(frozen=True)
class NetworkExport:
    """A network of a model as a function of tensors alone, which other programs can compute.

    Attributes:
        module: called with the inputs in their order; returns a tensor, or a tuple of them.
        inputs: examples by name; their first axis is the batch, of the same size of at least 2.
        outputs: names, in their order.
        meaning: the rest of a sentence that begins with the name of the network: what it computes
            from which inputs, with shapes.
        notes: further sentences on the inputs, where they are given as in `inputs`.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    meaning: str
    notes: str = ""


class Model(Protocol):
    """An `nn.Module` that genlab trains; images x are (B, C, H, W) in [0, 1].

    The protocols below are optional: callbacks, commands and reports check for each, and skip what
    a model does not support. `compile=true` compiles `forward`, in which a model may compute the
    part of its loss that is a function of tensors alone, after its random draws.
    """

    spec: ImageSpec

    def loss(
        self, x: Tensor, labels: Tensor | None, step: int | None, noise: Noise | None
    ) -> dict[str, Tensor]:
        """Compute scalars in nats per image: `loss`, which is minimised, and its terms by name."""
        ...

    def evaluate(
        self, x: Tensor, labels: Tensor | None, noise: Noise | None, full: bool
    ) -> dict[str, Tensor]:
        """Evaluate images; return values by name whose first axis is the images.

        Values of shape (B,) are averaged over the split. `full` adds the values for a test only.
        """
        ...


@runtime_checkable
class KeepsInputs(Protocol):
    """A model whose loss needs of an image only what frozen networks make of it."""

    @property
    def keeps_inputs(self) -> bool:
        """True if the result of `inputs` is worth keeping."""
        ...

    def inputs(self, x: Tensor) -> Tensor:
        """Compute all that the loss needs of images (B, C, H, W) in [0, 1], (B, ...)."""
        ...

    def loss_of_inputs(
        self, inputs: Tensor, labels: Tensor | None, step: int | None, noise: Noise
    ) -> dict[str, Tensor]:
        """Compute the loss of `Model`, from the result of `inputs` for its images."""
        ...


@runtime_checkable
class CanSample(Protocol):
    """A model that draws images from noise alone."""

    def sample(self, n: int, seed: int = 0, first: int = 0) -> Tensor:
        """Draw (n, C, H, W) in [0, 1]; image `first` + i depends only on (seed, `first` + i)."""
        ...


@runtime_checkable
class CanSampleClasses(Protocol):
    """A model that draws images from noise alone, or from noise and a class.

    Attributes:
        spec: shape and kind of the images.
        conditional: whether the class of an image is an input of the model.
    """

    spec: ImageSpec
    conditional: bool

    def sample(
        self, n: int, seed: int = 0, first: int = 0, *, classes: Sequence[int] | None = None
    ) -> Tensor:
        """Draw images as in `CanSample`, of the classes in turn; None for all of them."""
        ...


@runtime_checkable
class CanReconstruct(Protocol):
    """A model that encodes an image and reconstructs it."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to their mean reconstructions, same shape and range."""
        ...


@runtime_checkable
class CanEncode(Protocol):
    """A model that maps an image to a distribution over latents."""

    def encode(self, x: Tensor) -> Distribution:
        """Compute q(z|x), a batch of B, for images (B, C, H, W)."""
        ...


@runtime_checkable
class CanDecode(Protocol):
    """A model that maps latents to distributions over images."""

    def decode(self, z: Tensor) -> Distribution:
        """Compute p(x|z), over images (B, C, H, W) in [0, 1], for latents (B, d)."""
        ...


@runtime_checkable
class HasLatentMap(Protocol):
    """An encoder whose latents (B, d) are a flattened map.

    Attributes:
        latent_shape: (C, h, w) of the map; d = C * h * w.
    """

    latent_shape: tuple[int, int, int]


@runtime_checkable
class Autoencoder(Protocol):
    """A model of images by latents z (B, d): q(z|x) is a diagonal Gaussian, p(x|z) known.

    Attributes:
        spec: shape and kind of the images.
        latent_shape: shape of the latents of an image before they are flattened, (C, h, w), with
            C * h * w = d; (d, 1, 1) for a vector.
    """

    spec: ImageSpec
    latent_shape: tuple[int, int, int]

    def encode(self, x: Tensor) -> Normal:
        """Compute q(z|x), (B, d), from images (B, C, H, W) in [0, 1]."""
        ...

    def decode(self, z: Tensor) -> Distribution:
        """Compute p(x|z), over images (B, C, H, W) in [0, 1], for latents (B, d)."""
        ...

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """Compute log p(x|z) of images (B, C, H, W) and latents (B, d), (B,) in nats."""
        ...

    def check_density(self) -> None:
        """Raise ValueError if p(x|z) is neither a density nor a probability of the images."""
        ...


@runtime_checkable
class CanInterpolate(Protocol):
    """A model that can interpolate between two images."""

    def interpolate(self, a: Tensor, b: Tensor, steps: int) -> Tensor:
        """Map pairs (B, C, H, W) to (B, steps, C, H, W), from a to b, in [0, 1]."""
        ...


@runtime_checkable
class CanTraverse(Protocol):
    """A model whose latents can be changed one at a time."""

    def latent_kl(self, x: Tensor) -> Tensor:
        """Compute the KL of each latent, its mean over images x, (d,), in nats."""
        ...

    def traverse(self, x: Tensor, dims: Sequence[int], values: Sequence[float]) -> Tensor:
        """Decode one image (1, C, H, W) with one latent at a time set to each value.

        Returns:
            (len(dims), len(values), C, H, W) in [0, 1].
        """
        ...


@runtime_checkable
class CanWalk(Protocol):
    """A model whose samples change smoothly with their latents or noise."""

    def walk(self, panels: int, steps: int, seed: int = 0) -> Tensor | None:
        """Draw along a closed walk through the prior: (steps, panels, C, H, W) in [0, 1].

        Returns None if this model has no such walk.
        """
        ...


@runtime_checkable
class CanSampleAggregate(Protocol):
    """A model that can decode latents drawn from a fit to those of real images."""

    @property
    def is_tied_to_prior(self) -> bool:
        """True if the loss pulls the latents towards the prior."""
        ...

    def sample_aggregate(self, x: Tensor, n: int, seed: int = 0) -> Tensor:
        """Draw n images with latents from a distribution fitted to those of the images x."""
        ...


@runtime_checkable
class HasBound(Protocol):
    """A model with a bound on the likelihood, as the two terms reconstruction and kl."""

    def bound(self, x: Tensor) -> dict[str, Tensor]:
        """Compute `reconstruction` and `kl` of images, each (B,), in nats per image."""
        ...


@runtime_checkable
class HasLikelihood(Protocol):
    """A model with a lower bound on the log-likelihood of an image, as tight as it offers."""

    def log_likelihood(self, x: Tensor) -> Tensor:
        """Estimate a lower bound on log p(x) of images (B, C, H, W) in [0, 1], (B,) in nats."""
        ...


@runtime_checkable
class HasTrajectory(Protocol):
    """A model that samples step by step from noise, and can diffuse images to noise."""

    def sampling_steps(self) -> int:
        """Return the number of steps of the sampler."""
        ...

    def sample(
        self,
        n: int,
        seed: int = 0,
        first: int = 0,
        *,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Draw images as in `CanSample`; `on_step` is called at every step."""
        ...

    def images_of(self, x0: Tensor) -> Tensor:
        """Decode x_t or x0_hat, as `on_step` gets them, to images (n, C, H, W)."""
        ...

    def log_snr(self, t: Sequence[float]) -> list[float]:
        """Return the log-SNR at times in [0, 1]."""
        ...

    def noised(self, x: Tensor, steps: int, seed: int = 0) -> tuple[Tensor, list[float]]:
        """Diffuse images to evenly spaced times t.

        Returns:
            (B, 1 + steps, C, H, W), the images themselves first, and the log-SNRs of the others.
        """
        ...


@runtime_checkable
class HasSampler(HasTrajectory, Protocol):
    """A model that samples step by step, with a choice of how: sampler, classes and guidance.

    Attributes:
        spec: shape and kind of the images.
        sampler: the default sampler.
        conditional: whether the class of an image is an input of the model.
        guidance: the default scale of classifier-free guidance; 1 is none.
    """

    spec: ImageSpec
    sampler: Any
    conditional: bool
    guidance: float

    def sampling_steps(self, sampler: Any = None) -> int:
        """Return the number of steps of a sampler; None for that of the model.

        Raises:
            ValueError: if the sampler does not fit the model.
        """
        ...

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
        ...

    def sample(
        self,
        n: int,
        seed: int = 0,
        first: int = 0,
        *,
        sampler: Any = None,
        classes: Sequence[int] | None = None,
        guidance: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Draw images as in `CanSample`, of the classes in turn; None for the model's defaults."""
        ...


class Terms(Protocol):
    """The terms of the evaluation of a batch, in their order: rows (k, B), float64, of k values."""

    def known(self) -> Sequence[Tensor]:
        """Return the first terms, where they are known from an evaluation that was stopped."""
        ...

    def add(self, rows: Tensor) -> None:
        """Take the next term as soon as it is computed."""
        ...


@runtime_checkable
class EvaluatesInTerms(Protocol):
    """A model that evaluates a batch term by term, which can take minutes."""

    def evaluation_terms(self, full: bool = False) -> int:
        """Return the number of terms of a batch, of a full evaluation or of another one."""
        ...

    def values_per_term(self) -> int:
        """Return k, the number of values of an image in each of the `Terms`."""
        ...

    def evaluate(
        self,
        x: Tensor,
        labels: Tensor | None,
        noise: Noise | None,
        full: bool,
        terms: Terms | None = None,
    ) -> dict[str, Tensor]:
        """Evaluate images as in `Model`; terms that are known are not computed again."""
        ...


@runtime_checkable
class HasForecast(Protocol):
    """A model with a forecast before training."""

    def forecast(self, pixels: Any) -> Forecast | None:
        """Forecast the result on training images (N, C, H, W), as stored; None if unknown."""
        ...


class Forecast(Protocol):
    """A forecast of a training, made before it begins."""

    @property
    def sentence(self) -> str:
        """The forecast in one line."""
        ...

    @property
    def rate_by_unit(self) -> tuple[float, ...] | None:
        """The KL of each latent unit in nats, largest first; None if unknown."""
        ...

    def metrics(self) -> dict[str, float]:
        """Return the known numbers by name."""
        ...


@runtime_checkable
class HasSetting(Protocol):
    """A model with a hyperparameter whose values are compared."""

    def label(self) -> str:
        """Return the setting and its value, for a caption."""
        ...

    def describe(self) -> str:
        """Describe the setting in one line; a second line may be a warning."""
        ...

    def verdict(self, metrics: Mapping[str, float]) -> str:
        """Summarise the model in two or three words for a table, or in an empty string."""
        ...


@runtime_checkable
class HasNetworks(Protocol):
    """A model that names its networks, so that each can be compiled and sharded."""

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks by name."""
        ...


@runtime_checkable
class CanExport(Protocol):
    """A model whose networks can be exported, for instance to ONNX."""

    def exports(self) -> dict[str, NetworkExport]:
        """Return the networks that can be exported, by name, which becomes that of a file."""
        ...


@runtime_checkable
class CanExportScheduler(CanExport, Protocol):
    """A diffusion model that diffusers may have too.

    Its `exports` have an entry `unet`, of `x_t`, `log_snr` and, if it knows classes, `labels`.
    """

    def step_log_snrs(self) -> Tensor | None:
        """Return the log-SNRs of the T steps, (T,) float64; None in continuous time."""
        ...

    def scheduler(self) -> Any:
        """Build the scheduler of diffusers that draws as this model does, step by step.

        Raises:
            ValueError: if diffusers has none; the message says why.
            ImportError: if diffusers is not installed.
        """
        ...


@runtime_checkable
class ShardsNetworks(Protocol):
    """A Lightning strategy that shards networks over the processes of a run."""

    def shard(self, model: nn.Module) -> None:
        """Shard the networks of a model over the processes."""
        ...
