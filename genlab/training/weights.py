"""Load weights of checkpoints into modules; only tensors and plain containers are read."""

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

from genlab.errors import ConfigError, GenlabError, RunDirectoryError
from genlab.runs.files import before, replacing
from genlab.training.sharding import sharded_like

log = logging.getLogger(__name__)


class UnreadableCheckpointError(RunDirectoryError):
    """A checkpoint is torn, altered, or holds more than tensors and plain containers."""


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint's content to the CPU, and check that it is unaltered.

    The file is a zip archive with a checksum of each entry, which torch does not check.

    Raises:
        RunDirectoryError: the file is missing, torn or altered, or holds more than tensors and
            plain containers.
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
    """Read the checkpoint at `path`, and check that its weights fit `module`.

    Raises:
        ConfigError: a weight differs in name or shape; the message names the first one.
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
    """Return the checkpoint from which training of `module` resumes; None if there is none.

    This is `last`. If `last` cannot be read, the checkpoint before it replaces it, with a warning.

    Raises:
        ConfigError, RunDirectoryError: see `check_fits`; or the checkpoint holds only weights.
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
        # else the next save would keep the damaged file as the previous checkpoint
        with replacing(last) as file:
            file.write(path.read_bytes())
    if "optimizer_states" not in content:
        raise RunDirectoryError(
            f"{path} holds weights alone, from which a run cannot go on: remove it, or move it and "
            "start from its weights with overwrite=true init_from=FILE"
        )
    return path


def load_into(module: nn.Module, path: Path, key: str = "") -> None:
    """Load the weights of a checkpoint, or of a run directory's best checkpoint, into `module`.

    If weights were averaged, these are the averages.

    Args:
        key: named with the path in error messages.

    Raises:
        ConfigError, RunDirectoryError: see `check_fits`.
    """
    if path.is_dir():
        path = path / "checkpoints" / "best.ckpt"
    try:
        weights = check_fits(module, path)["state_dict"]
    except GenlabError as error:
        raise type(error)(f"{key}={path}: {error}" if key else str(error)) from error
    here = module.state_dict()
    module.load_state_dict({n: sharded_like(w, here[n]) for n, w in weights.items()})
