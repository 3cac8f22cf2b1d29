"""The contract of features, and their preparation: fitted once for each data set, named, checked.

Features are an `nn.Module` that maps images (N, C, H, W), floats in [0, 1], to (N, d) float32. Any
such module will do. What else it can do is one of the protocols below.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from genlab.errors import ConfigError, DataError, RunDirectoryError
from genlab.protocols import ImageSpec
from genlab.runs.files import write_atomically
from genlab.runs.reading import read_bytes
from genlab.tensors import device_of, to_unit_interval

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Array = npt.NDArray[np.float32]
Split = Literal["train", "val", "test"]

#: Images that a module of features gets at once, always, so that its rounding never differs.
BATCH = 128
#: Largest file of fitted weights that is read, in bytes.
_LARGEST = 1 << 28


class TrainingImages(Protocol):
    """The training images of a data set, as `genlab.data.datamodule.ImageData` has them."""

    def pixels(self, split: Split, /) -> Pixels:
        """Return images (N, C, H, W), uint8, or float32 in [0, 1]."""
        ...

    def labels(self, split: Split, /) -> npt.NDArray[np.int64]:
        """Return labels (N,)."""
        ...


@runtime_checkable
class NeedsFit(Protocol):
    """Features that are fitted to the training images of a data set.

    Attributes:
        recipe: all that the fit depends on beside the images, in one line.
    """

    recipe: str

    def prepare(self, spec: ImageSpec) -> None:
        """Make the parts whose shapes depend on the images. Raises ValueError."""
        ...

    def fit(self, images: TrainingImages, advance: Callable[[int], None]) -> None:
        """Fit to the images; `advance` is called with the percents of the work done since."""
        ...


@runtime_checkable
class HasClasses(Protocol):
    """Features from which the class of an image is told."""

    def classes(self, features: Tensor) -> Tensor:
        """Return the most likely class (N,) of images with these features (N, d)."""
        ...


@runtime_checkable
class HasAccuracy(Protocol):
    """Features that tell classes, and know how well.

    Attributes:
        accuracy: share of the images that it was not trained on whose class is told correctly.
    """

    accuracy: Tensor


class Features:
    """Features that are ready to be used, under a name that no others have.

    Args:
        module: maps images (N, C, H, W), floats in [0, 1], to (N, d) float32; fitted.
        spec: shape and kind of the images.

    Attributes:
        name: of the module and a hash of its class, recipe and weights: `classifier_1a2b3c`.
        dims: d.

    Raises:
        ConfigError: the module does not map such images to such features.
    """

    def __init__(self, module: nn.Module, spec: ImageSpec) -> None:
        self.module, self.spec = module.eval().requires_grad_(False), spec
        self.name = f"{plain_name(module)}_{_digest(module)}"
        shape = (2, *spec.shape)
        try:
            with torch.inference_mode():
                found = module(torch.zeros(shape, device=device_of(module)))
        except (RuntimeError, ValueError, IndexError) as error:
            raise ConfigError(
                f"features={plain_name(module)} cannot read images of {_sides(spec.shape)} "
                f"({_line(error)}): give features for such images"
            ) from error
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2:
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(
                f"features={plain_name(module)} maps images {list(shape)} to {got}: a module that "
                "returns features (N, d) is needed"
            )
        self.dims = found.shape[1]

    @torch.inference_mode()
    def __call__(self, images: Tensor, first: int = 0) -> Array:
        """Compute the features (N, d) of images (N, C, H, W), uint8, or floats in [0, 1].

        Args:
            first: number of the first image, for an error.

        Raises:
            DataError: images have another shape, are not finite, or lie outside [0, 1].
        """
        if tuple(images.shape[1:]) != self.spec.shape:
            raise DataError(
                f"images of {_sides(tuple(images.shape[1:]))} cannot be compared with those of "
                f"{_sides(self.spec.shape)}: give images of one shape"
            )
        device = device_of(self.module)
        rows = [self.module(_checked(batch, first).to(device)) for batch in images.split(BATCH)]
        found = torch.cat(rows).float().cpu()
        if not found.isfinite().all():
            raise DataError(f"features={plain_name(self.module)} gave values that are not finite")
        return np.asarray(found.numpy())

    def classes(self, features: npt.NDArray[np.floating]) -> npt.NDArray[np.int64] | None:
        """Return the classes (N,) of images with these features; None if they tell none."""
        if not isinstance(self.module, HasClasses):
            return None
        rows = torch.from_numpy(np.asarray(features, dtype=np.float32)).to(device_of(self.module))
        with torch.inference_mode():
            return np.asarray(self.module.classes(rows).cpu().numpy(), dtype=np.int64)

    @property
    def accuracy(self) -> float | None:
        """The accuracy of the classes, None where the features tell none."""
        module = self.module
        return float(module.accuracy) if isinstance(module, HasAccuracy) else None


def ready(
    module: nn.Module,
    spec: ImageSpec,
    images: TrainingImages | None,
    folder: Path | None,
    advance: Callable[[int], None] = lambda percents: None,
) -> Features:
    """Fit features to a data set, or read the fit that was made before; others are ready as is.

    Args:
        images: the training images; None where they are gone.
        folder: of the data set, where fits are kept; None to keep none.

    Raises:
        ConfigError: the features do not fit the images, or must be fitted and cannot be.
        DataError: the folder cannot be written.
    """
    if not isinstance(module, NeedsFit):
        return Features(module, spec)
    name = plain_name(module)
    try:
        module.prepare(spec)
    except ValueError as error:
        raise ConfigError(f"features={name}: {error}") from error
    digits = hashlib.sha256(f"{type(module).__qualname__} {module.recipe}".encode()).hexdigest()
    path = folder / f"{name}-{digits[:8]}.safetensors" if folder is not None else None
    if path is not None and path.exists():
        _read_fit(module, path)
        return Features(module, spec)
    if images is None:
        raise ConfigError(
            f"features={name}: they are fitted to the training images, which are gone, and no "
            "earlier fit is kept here: give data=NAME with the images of the run"
        )
    module.fit(images, advance)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, save(module.state_dict()))
        except OSError as error:
            raise DataError(
                f"{path} cannot be written ({error.strerror}): make the folder writable, or set "
                "XDG_CACHE_HOME to one that is"
            ) from error
    return Features(module, spec)


def plain_name(module: nn.Module) -> str:
    """Return the name of features without their hash: `name` of the module, or its class."""
    name = getattr(module, "name", None)
    words = name if isinstance(name, str) else type(module).__name__
    return re.sub(r"[^a-z0-9]+", "", words.lower()) or "features"


def _read_fit(module: nn.Module, path: Path) -> None:
    try:
        weights = load(read_bytes(path, _LARGEST))
        if not all(weight.isfinite().all() for weight in weights.values()):
            raise ValueError("a weight in it is not finite")
        module.load_state_dict(weights)
    except (OSError, RuntimeError, ValueError, SafetensorError, RunDirectoryError) as error:
        raise DataError(
            f"{path} cannot be read ({_line(error)}): remove it, and it is made again"
        ) from error


def _digest(module: nn.Module) -> str:
    words = f"{type(module).__qualname__} {getattr(module, 'recipe', module)}"
    return hashlib.sha256(f"{words} {weights_digest(module)}".encode()).hexdigest()[:6]


def weights_digest(module: nn.Module) -> str:
    """Return 16 hex digits of the names, shapes and values of a module's weights.

    If they are sharded over processes, all of these must call this.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        tensor = weight.full_tensor() if isinstance(weight, DTensor) else weight
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _checked(batch: Tensor, first: int) -> Tensor:
    x = to_unit_interval(batch)
    if batch.dtype == torch.uint8:
        return x
    rows = x.flatten(1)
    if not rows.isfinite().all():
        place = int((~rows.isfinite()).any(1).nonzero()[0])
        raise DataError(
            f"image {first + place} holds values that are not finite: the model has diverged, or "
            "its images are damaged"
        )
    low, high = float(rows.min()), float(rows.max())
    if low < 0 or high > 1:
        raise DataError(
            f"images from {low:g} to {high:g}: quality is measured on images in [0, 1], or on uint8"
        )
    return x


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
