"""Read checkpoints, of which nothing is used before it is checked, and load their weights.

A checkpoint is a .ckpt file of a run, or the model.safetensors of an export.
"""

from __future__ import annotations

import logging
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor, nn

from genlab.config.check import coerce, from_yaml
from genlab.errors import ConfigError, GenlabError, RunDirectoryError
from genlab.runs.files import refuse_links, write_atomically
from genlab.runs.reading import read_bytes, size_without_holes
from genlab.runs.run import EXPORTED, Run
from genlab.runs.text import printable
from genlab.training import schema
from genlab.training.sharding import sharded_like

log = logging.getLogger(__name__)

Checkpoint = Literal["best", "last"]

#: Bytes of the part of a checkpoint that is not the content of tensors.
_STRUCTURE = 2**26
#: Holes make a file at most so many times as long; a filesystem may make some of zeros.
_TIMES = 4
#: The records at the end of a zip archive: of the directory's place, and in 64 bits.
_END = struct.Struct("<4s4H2LH")
_LOCATOR, _END_64 = struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
_REMEDY = (
    "give a checkpoint as genlab wrote it, or, of a run that is to go on, remove it, or start anew "
    "with overwrite=true"
)


class UnreadableCheckpointError(RunDirectoryError):
    """A checkpoint is torn, altered, or holds more than tensors and plain containers."""


def read(path: Path, at_most: float = float("inf")) -> dict[str, Any]:
    """Read a checkpoint's content to the CPU, and check that it is unaltered.

    The file is a zip archive with a checksum of each entry, which torch does not check.

    Args:
        at_most: size of the file in bytes; a larger one is not read.

    Raises:
        RunDirectoryError: the file is missing, no regular file, too large, torn or altered, or
            holds more than dense tensors and plain containers.
    """
    if path.suffix == Path(EXPORTED).suffix:
        return _read_exported(path, at_most)
    try:
        if not path.exists():
            raise RunDirectoryError(
                f"{path}: there is no such checkpoint; give a run directory or a .ckpt file"
            )
        if not path.is_file():
            raise RunDirectoryError(f"{path} is no regular file: give a checkpoint")
        with path.open("rb") as file:  # once, so that what is checked is what is loaded
            size = os.fstat(file.fileno()).st_size
            if size > at_most:
                raise RunDirectoryError(
                    f"{path} has {size:,} bytes, more than the {at_most:,.0f} that a checkpoint of "
                    "this model can have: give another"
                )
            if size > _STRUCTURE + _TIMES * (stored := size_without_holes(file)):
                raise RunDirectoryError(
                    f"{path} has {size:,} bytes, of which {stored:,} are stored and the others are "
                    "a hole: give a checkpoint as genlab wrote it"
                )
            with zipfile.ZipFile(file) as archive:
                _check_archive(archive, size)
                _check_directory(file, archive.start_dir, size)
            file.seek(0)
            with warnings.catch_warnings(action="ignore"):  # torch warns of what it cannot read
                content = torch.load(file, map_location="cpu", weights_only=True)
        schema.check_plain(content, size)
    except GenlabError:
        raise
    except Exception as error:  # a parser can raise anything on a file that was made to break it
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        if isinstance(error, pickle.UnpicklingError) or "Weights only load failed" in reason:
            reason = "it holds more than tensors and plain containers"
        raise UnreadableCheckpointError(
            f"{path} is no readable checkpoint ({reason[:160]}): give another; of a run that is to "
            "go on, remove it, or start anew with overwrite=true"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise RunDirectoryError(f"{path} holds no state_dict: it is no checkpoint of genlab")
    return content


def write_exported(path: Path, module: nn.Module) -> None:
    """Write the weights of a module as safetensors; `read` returns a model's as a checkpoint."""
    # clones, since a weight that has two names in a model may not share its memory here
    weights = {name: w.cpu().contiguous().clone() for name, w in module.state_dict().items()}
    write_atomically(path, to_safetensors(weights))


def to_safetensors(tensors: dict[str, Tensor]) -> bytes:
    """Return the content of a file of safetensors, of contiguous tensors with memory of its own."""
    from safetensors.torch import save

    return save(tensors, {"format": "pt"})


def read_safetensors(
    path: Path, at_most: float, remedy: str = "write it again"
) -> dict[str, Tensor]:
    """Read a file of safetensors, of at most so many bytes.

    Args:
        remedy: what to do where it cannot be read, for the error.

    Raises:
        FileNotFoundError: there is none.
        RunDirectoryError: it is no regular file, too large, or holds no readable tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(read_bytes(path, at_most))
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UnreadableCheckpointError(
            f"{path} holds no readable weights ({printable(str(error))[:160]}): {remedy}"
        ) from error


def _read_exported(path: Path, at_most: float) -> dict[str, Any]:
    """Read a model.safetensors as the content of a checkpoint.

    Raises:
        RunDirectoryError: see `read`.
    """
    try:
        weights = read_safetensors(path, at_most)
    except FileNotFoundError as error:
        raise RunDirectoryError(
            f"{path}: there is no such file; give a run directory or an export of one"
        ) from error
    return {"state_dict": {f"model.{name}": weight for name, weight in weights.items()}}


def _check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Check that an archive of `size` bytes is whole and no larger when it is unpacked.

    Raises:
        ValueError: it is not.
    """
    parts = archive.infolist()
    for part in parts:
        if part.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{part.filename!r} in it is compressed")
        if part.filename.endswith(".pkl") and part.file_size > _STRUCTURE:
            raise ValueError(f"{part.filename!r} in it has {part.file_size:,} bytes")
    if sum(part.file_size for part in parts) > size:
        raise ValueError("its parts are larger than the file")
    if (altered := archive.testzip()) is not None:
        raise ValueError(f"{altered!r} does not match its checksum")


def _check_directory(file: BinaryIO, start: int, size: int) -> None:
    """Check that torch finds the directory of the archive where zipfile found it, at `start`.

    zipfile corrects a wrong offset in the record at the end of the file, and torch does not: the
    two would read different archives in one file.

    Raises:
        ValueError: it is elsewhere, or the record is not at the very end.
    """
    file.seek(max(0, size - _END.size - _LOCATOR.size - _END_64.size))
    end_64, locator, end = _parts(file.read())
    kind, *_, offset, comment = _END.unpack(end)
    if _LOCATOR.unpack(locator)[0] == b"PK\6\7":
        kind_64, *_, offset_64 = _END_64.unpack(end_64)
        is_before = _LOCATOR.unpack(locator)[2] == size - len(end_64 + locator + end)
        is_64 = kind_64 == b"PK\6\6" and is_before
        offset = offset_64 if is_64 and offset in (offset_64, 0xFFFFFFFF) else -1
    if kind != b"PK\5\6" or comment or offset != start:
        raise ValueError("the directory of the archive is not where its end says")


def _parts(end: bytes) -> tuple[bytes, bytes, bytes]:
    """Split the last bytes of an archive: end record in 64 bits, its locator, end record."""
    end = end.rjust(_END_64.size + _LOCATOR.size + _END.size, b"\0")
    first, second = _END_64.size, _END_64.size + _LOCATOR.size
    return end[:first], end[first:second], end[second:]


@contextmanager
def naming(path: Path, remedy: str = _REMEDY) -> Iterator[None]:
    """Put the path of a checkpoint before a ValueError about an entry of it, and a remedy behind.

    Raises:
        RunDirectoryError: instead of the ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise RunDirectoryError(f"{path}: {error}; {remedy}") from error


def check_fits(module: nn.Module, path: Path) -> dict[str, Any]:
    """Read the checkpoint at `path`, and check that its weights fit `module`.

    Raises:
        ConfigError: a weight differs in name or shape; the message names the first one.
        RunDirectoryError: see `read`; or a weight is of another kind, such as integers.
    """
    here = module.state_dict()
    size = sum(w.nbytes for w in here.values())
    # averages, optimizers with many moments, and a callback's own are less than this
    most = 2**30 + 256 * size if path.suffix != Path(EXPORTED).suffix else _STRUCTURE + 2 * size
    content = read(path, at_most=most)
    together = [
        [f"{prefix}.{name}".lstrip(".") for name in names]
        for prefix, part in module.named_modules()
        if (names := getattr(part, "resized_by_checkpoint", ()))
    ]
    there = content["state_dict"]
    check_weights(path, "state_dict", there, here, {name for names in together for name in names})
    for names in together:
        if len({there[name].shape for name in names}) > 1:
            with naming(path):
                raise ValueError(f"state_dict: {' and '.join(names)} differ in shape")
    return content


def check_weights(
    path: Path,
    entry: str,
    there: Mapping[Any, Any],
    here: Mapping[str, Tensor],
    resized: Container[str] = (),
) -> None:
    """Check that the weights under an entry of a checkpoint fit those of a module.

    Args:
        resized: names of those whose length is that of the checkpoint.

    Raises:
        ConfigError: a weight differs in name or shape; the message names the first one.
        RunDirectoryError: a weight is no dense tensor, or of another kind, such as integers.
    """
    for name in sorted({*there, *here}, key=str):
        if name not in there or name not in here:
            where = "the model" if name in here else "the checkpoint"
            raise ConfigError(
                f"{path} is of another architecture: {schema.under('', name)} is in {where} alone; "
                "use the config that it was trained with"
            )
        found, needed = there[name], here[name]
        with naming(path):
            schema.check_dense(found, f"{entry}.{name}")
            if schema.kind_of(found) != schema.kind_of(needed):
                raise ValueError(
                    f"{entry}.{name} has {schema.kind_of(found)} elements, the model needs "
                    f"{schema.kind_of(needed)} ones"
                )
        fits = found.ndim == needed.ndim if name in resized else found.shape == needed.shape
        if not fits:
            raise ConfigError(
                f"{path} is of another architecture: {name} has shape {tuple(found.shape)}, the "
                f"model needs {tuple(needed.shape)}; use the config that it was trained with"
            )


def checkpoint_of(run: str | PathLike[str], name: str | None = None) -> Path:
    """Return the path of a run's checkpoint, which need not exist.

    A run that ended before its first validation has no best one: then it is the last, with a
    warning. An export has one alone.

    Args:
        name: `best` or `last`; None for that of the run's test, which `evaluate` in its config
            names.

    Raises:
        ConfigError: `evaluate` names another.
        RunDirectoryError: the config cannot be read.
    """
    if (exported := Path(run) / EXPORTED).exists():
        return exported
    path = Path(run) / "checkpoints" / f"{name or _of_test(Run(run))}.ckpt"
    last = path.with_name("last.ckpt")
    if path.exists() or not last.exists():
        return path
    told = "%s has no %s, since nothing was validated: last.ckpt is used"
    log.warning(told, printable(str(run)), path.name)
    return last


def _of_test(run: Run) -> str:
    text = run.config_text
    config = {} if text is None else from_yaml(text, str(run.config_path))
    asked = coerce(config.get("evaluate", "best"), Checkpoint, f"{run.config_path}: evaluate")
    return str(asked)


def load_into(module: nn.Module, path: Path, key: str = "") -> None:
    """Load the weights of a checkpoint, or of a run directory (`checkpoint_of`), into `module`.

    If weights were averaged, these are the averages.

    Args:
        key: named with the path in error messages.

    Raises:
        ConfigError, RunDirectoryError: see `check_fits`; or a link leads out of the run directory.
    """
    try:
        if path.is_dir():
            refuse_links(path, ["checkpoints"])
            path = checkpoint_of(path)
        weights = check_fits(module, path)["state_dict"]
    except GenlabError as error:
        raise type(error)(f"{key}={path}: {error}" if key else str(error)) from error
    here = module.state_dict()
    module.load_state_dict({n: sharded_like(w, here[n]) for n, w in weights.items()})
