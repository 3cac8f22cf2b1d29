"""Load the trained model of a run directory, which may be from another person.

From the directory come the config of the model, the image spec and the weights, and nothing else:
no path, data set, callback, logger or trainer.
"""

from __future__ import annotations

from collections.abc import Collection
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import torch
from lightning import LightningModule
from torch import nn
from torch.overrides import TorchFunctionMode

from genlab.config.check import Config, coerce, from_yaml, import_class
from genlab.config.trust import check_received
from genlab.errors import ConfigError, GenlabError, RunDirectoryError, at_key
from genlab.protocols import ImageSpec
from genlab.runs.files import refuse_links
from genlab.runs.reading import open_regular, size_without_holes
from genlab.runs.run import Run
from genlab.training import weights
from genlab.training.run_config import build_model, check_model, without_training

#: The largest spec that is believed: values of an image, classes, and letters of a class's name.
_DIMS, _CLASSES, _NAME = 1 << 22, 1 << 17, 200
#: The functions by which modules make their tensors, and the bytes that one costs beside its own.
_FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.arange, torch.linspace}
_FACTORIES |= {torch.rand, torch.randn}
_OVERHEAD = 1 << 16
#: A model takes at most so many times the bytes of its checkpoint, and so many more.
_TIMES, _BYTES = 4, 1 << 28


class Received(NamedTuple):
    """All that a run directory says about how its model is built.

    Attributes:
        model: the checked config of the model.
        spec: shape and kind of its images.
    """

    model: Config
    spec: ImageSpec


def read_config(run: str | PathLike[str]) -> Config:
    """Read the config of a run directory, of which nothing is checked.

    Raises:
        ConfigError, RunDirectoryError: it is missing or cannot be read.
    """
    text, path = Run(run).config_text, fspath(run)
    if text is None:
        raise RunDirectoryError(f"{path} has no config.yaml: it is no run directory")
    return from_yaml(text, f"{path}/config.yaml")


def read_received(run: str | PathLike[str], packages: Collection[str] = ()) -> Received:
    """Read and check what a run directory says about its model; nothing is built.

    Args:
        packages: those whose classes the config may name beside those of genlab's models.

    Raises:
        ConfigError: the config or the spec say something that a run directory may not say.
        RunDirectoryError: one of them is missing or cannot be read.
    """
    model = read_config(run).get("model")
    return Received(read_model(model, packages), _read_spec(Run(run)))


def read_model(node: Any, packages: Collection[str] = ()) -> Config:
    """Check the config of a model that comes in a run directory, without its training.

    Raises:
        ConfigError: it says something that a run directory may not say.
    """
    if isinstance(node, dict):
        node = without_training(node)
    check_received(node, nn.Module, "model", packages)
    model = check_model(node)
    if issubclass(import_class(model["_target_"], "model"), LightningModule):
        raise ConfigError(f"model._target_={model['_target_']!r}: an nn.Module alone is needed")
    return model


def _read_spec(run: Run) -> ImageSpec:
    given, known = run.spec, get_type_hints(ImageSpec)
    if given is None:
        raise RunDirectoryError(
            f"{run.path} has no spec.json, which says the shape and the kind of the images: train "
            "the run again with overwrite=true"
        )
    where = str(run.spec_path)
    if given.keys() != known.keys():
        raise ConfigError(f"{where}: exactly the keys {', '.join(known)} are needed")
    checked = {name: coerce(given[name], hint, f"{where}: {name}") for name, hint in known.items()}
    with at_key(where):
        spec = ImageSpec(**{**checked, "classes": tuple(checked["classes"])})
    names = max(map(len, spec.classes), default=0)
    if spec.dims > _DIMS or len(spec.classes) > _CLASSES or names > _NAME:
        raise ConfigError(
            f"{where}: at most {_DIMS:,} values an image and {_CLASSES:,} classes with names of "
            f"{_NAME} letters are read"
        )
    return spec


def load(
    run: str | PathLike[str],
    checkpoint: str | None = None,
    packages: Collection[str] = (),
    device: str | torch.device = "cpu",
) -> Any:
    """Load the trained model of a run directory, or of an export of one, for evaluation.

    Its data are not needed.

    Returns:
        An `nn.Module` with the abilities of `genlab.protocols` that its family has. They take and
        give images (B, C, H, W), floats in [0, 1].

    Args:
        run: the run directory, a `genlab.runs.run.Run`, or a folder of `genlab export`.
        checkpoint: "best" by validation loss, "last", or None for that of the run's test; see
            `weights.checkpoint_of`. An export has one alone.
        packages: those whose classes the run's config may name beside those of genlab's models.
        device: the model's.

    Raises:
        ConfigError: the config says something that a run directory may not say, or describes no
            model that can be built.
        RunDirectoryError: config, spec or checkpoint are missing or unreadable.
    """
    received = read_received(run, packages)
    refuse_links(run, ["checkpoints"])
    path = weights.checkpoint_of(run, checkpoint)
    model = build_believed(received, path)
    weights.load_into(_Holder(model), path)
    return model.eval().to(device)


def build_believed(received: Received, checkpoint: Path) -> nn.Module:
    """Build the model that a run directory describes, which its checkpoint must be as large as.

    Raises:
        ConfigError: it cannot be built, or is far larger than the checkpoint.
    """
    size = 0
    if checkpoint.is_file():
        with open_regular(checkpoint) as file:
            size = size_without_holes(file)
    return build_received(received, _TIMES * size + _BYTES)


def build_received(received: Received, most_bytes: int = _BYTES) -> nn.Module:
    """Build the model that a run directory describes, whose tensors take at most so many bytes.

    Raises:
        ConfigError: it cannot be built.
    """
    target = received.model["_target_"]
    try:
        with _LimitedMemory(most_bytes):
            model = build_model(*received)
    except GenlabError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ConfigError(
            f"model: a {target} with these values cannot be built ({reason})"
        ) from error
    if not isinstance(getattr(model, "spec", None), ImageSpec):
        raise ConfigError(f"model._target_={target!r}: a model of images is needed, not a part")
    return model


class _LimitedMemory(TorchFunctionMode):
    """Context in which tensors that are made take at most so many bytes, all together.

    Raises:
        ValueError: before the one is made that would take more.
    """

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self.left = most_bytes

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _FACTORIES:
            outline = {name: value for name, value in kwargs.items() if name != "generator"}
            self.left -= function(*args, **{**outline, "device": "meta"}).nbytes + _OVERHEAD
            if self.left < 0:
                raise ValueError("the model is far larger than its checkpoint")
        return function(*args, **kwargs)


class _Holder(nn.Module):
    """Module that holds a model under the name that checkpoints use."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
