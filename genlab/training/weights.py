"""Run directory to module, and weights into modules; only tensors and plain containers are read."""

from __future__ import annotations

import logging
import lzma
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genlab.config import configs
from genlab.data.datamodule import ImageData
from genlab.errors import ConfigError, RunDirectoryError
from genlab.modules.base import GenerativeModule
from genlab.modules.sharding import spread_like
from genlab.runs.directory import Run
from genlab.runs.files import before, replacing

log = logging.getLogger(__name__)


class UnreadableCheckpointError(RunDirectoryError):
    """A checkpoint is torn, altered, or holds more than tensors and plain containers."""


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU, if it is what was written: torch checks no checksum, but
    the file is a zip archive, and those have one of each entry.

    Raises:
        RunDirectoryError: if there is none, or it is torn or altered, or holds more than tensors
            and plain containers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (altered := archive.testzip()) is not None:
                raise ValueError(f"{altered} does not match its checksum")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RunDirectoryError(
            f"{path}: there is no such checkpoint; give a run directory or a .ckpt file"
        ) from error
    except (
        *(EOFError, OSError, RuntimeError, ValueError),
        *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        if "Weights only load failed" in reason:
            reason = "it holds more than tensors and plain containers"
        raise UnreadableCheckpointError(
            f"{path} is no readable checkpoint ({reason[:120]}): give another; of a run that is to "
            "go on, remove it, or start anew with overwrite=true"
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise RunDirectoryError(f"{path} holds no state_dict: it is no checkpoint of genlab")
    return content


def check_fits(module: nn.Module, path: Path) -> dict[str, Any]:
    """The checkpoint at `path`, if its weights are those of `module`'s architecture.

    Raises:
        ConfigError: naming the first weight that differs.
    """
    content = read(path)
    there, here = content["state_dict"], module.state_dict()
    resized = {
        f"{prefix}.{name}"
        for prefix, part in module.named_modules()
        for name in getattr(part, "resized_by_checkpoint", ())
    }
    for name in sorted({*there, *here}):
        if name not in there or name not in here:
            where = "the model" if name in here else "the checkpoint"
            raise ConfigError(
                f"{path} is of another architecture: {name} is in {where} alone; use the config "
                "that it was trained with"
            )
        if name not in resized and there[name].shape != here[name].shape:
            raise ConfigError(
                f"{path} is of another architecture: {name} has shape "
                f"{tuple(there[name].shape)}, the model needs {tuple(here[name].shape)}; use the "
                "config that it was trained with"
            )
    return content


def to_resume(module: nn.Module, last: Path) -> Path | None:
    """The checkpoint from which a training of `module` goes on; None if there is none.

    That is `last`, or the one before it, which takes its place with a warning, where `last` cannot
    be read.

    Raises:
        ConfigError, RunDirectoryError: see `check_fits`, or for one that holds weights alone.
    """
    if not last.exists():
        return None
    try:
        path, content = last, check_fits(module, last)
    except UnreadableCheckpointError as error:
        path = before(last)
        if not path.exists():
            raise
        content = check_fits(module, path)
        log.warning("%s; going on from the one before it, %s", error, path.name)
        with replacing(last) as file:  # else the next one would keep the damaged one as its before
            file.write(path.read_bytes())
    if "optimizer_states" not in content:
        raise RunDirectoryError(
            f"{path} holds weights alone, from which a run cannot go on: remove it, or move it and "
            "start from its weights with overwrite=true init_from=FILE"
        )
    return path


def load_weights(module: nn.Module, path: Path) -> None:
    """Weights of a checkpoint, or of a run directory's best one, into `module`.

    Where weights were averaged these are the averaged ones.

    Raises:
        ConfigError, RunDirectoryError: see `check_fits`.
    """
    if path.is_dir():
        path = path / "checkpoints" / "best.ckpt"
    weights = check_fits(module, path)["state_dict"]
    here = module.state_dict()
    module.load_state_dict({n: spread_like(w, here[n]) for n, w in weights.items()})


def load(run: Path, which: str = "best") -> tuple[GenerativeModule, ImageData]:
    """The trained module of a run directory and its (not yet read) data, from its config alone.

    Raises:
        ConfigError: if the config names something that may not be built.
        RunDirectoryError: if config or checkpoint are missing or unreadable.
    """
    text = Run(run).config_text
    if text is None:
        raise RunDirectoryError(f"{run} has no config.yaml: it is no run directory")
    config = configs.from_yaml(text, f"{run}/config.yaml")
    for key, kind in (("data", ImageData), ("model", GenerativeModule)):
        configs.need(config.get(key), kind, key)
    seed: int = configs.coerce(config.get("seed"), int, "seed")
    data: ImageData = configs.build(config["data"], "data")
    module: GenerativeModule = configs.build(config["model"], "model", spec=data.spec, seed=seed)
    load_weights(module, run / "checkpoints" / f"{which}.ckpt")
    return module.eval(), data
