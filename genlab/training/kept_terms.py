"""Keep the terms of a long test in the run directory, so that it goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from genlab.callbacks.base import generative
from genlab.data.batches import Batch
from genlab.errors import GenlabError
from genlab.modules.base import GenerativeModule
from genlab.protocols import EvaluatesInTerms
from genlab.runs.files import write_atomically
from genlab.training import weights
from genlab.training.environment import versions

log = logging.getLogger(__name__)

_NAMES = "test.{rank}.{batch}.safetensors"


class KeptTerms(pl.Callback):
    """Writes the terms of each batch of a test into a folder, and reads those that are there.

    The exact test of a diffusion model takes T predictions for every image. Files are written from
    time to time and when the test is stopped, so a short test writes none. A file is used where
    weights, settings, images and versions are those of now; then the result is that of a test that
    was not stopped, to the last bit. Any other file is ignored.

    Args:
        folder: of the checkpoints; where it is absent, nothing is kept.
        settings: plain values on which the terms depend, beside weights and images.
        every_seconds: time between two writes.
    """

    def __init__(self, folder: Path, settings: Any, every_seconds: float = 60.0) -> None:
        self.folder, self.settings, self.every_seconds = folder, settings, every_seconds
        self.known = 0  # number of terms that were read
        self._values = self._total = self._batches = self._started = 0
        self._rank, self._origin, self._digest = 0, b"", b""
        self._smallest: Callable[[int], int] = int
        self._rows: list[Tensor] = []
        self._unwritten: dict[int, tuple[bytes, list[Tensor]]] = {}
        self._written = 0.0

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = generative(pl_module)
        if not isinstance(module.model, EvaluatesInTerms):
            return
        self._total = module.model.evaluation_terms(full=True)
        self._values = module.model.values_per_term()
        self._rank, self._origin = trainer.global_rank, self._digest_of(trainer, module)
        self._smallest = lambda number: smallest(trainer, number)
        self._batches = smallest(trainer, int(sum(trainer.num_test_batches)))
        self.known = self._started = 0
        self._written = time.monotonic()
        module.known_terms = self._start
        module.on_term.insert(0, self._add)  # before one that stops the test

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._write()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._unwritten.clear()

    def _start(self, batch: Batch) -> Sequence[Tensor]:
        """Begin with the next batch; return its terms that are known."""
        number, self._started = self._started, self._started + 1
        digest = hashlib.sha256(self._origin)
        for name in sorted(batch):
            _add(digest, name, batch[name])
        self._digest = digest.digest()
        shape = (self._total, self._values, len(batch["image"]))
        self._rows = read_terms(self._path(number), self._digest, shape)
        if number < self._batches:  # in which all processes predict together
            self._rows = self._rows[: self._smallest(len(self._rows))]
        self.known += len(self._rows)
        return list(self._rows)

    def _add(self, rows: Tensor | None) -> None:
        if rows is not None:
            self._rows.append(rows.detach().double().cpu())
            self._unwritten[self._started - 1] = self._digest, self._rows
            if time.monotonic() - self._written >= self.every_seconds:
                self._write()

    def _write(self) -> None:
        """Write what was added to the batches; those that are done are written once."""
        if not self.folder.is_dir():
            return
        for number, (digest, rows) in self._unwritten.items():
            identity = torch.tensor(list(digest), dtype=torch.uint8)
            content = weights.to_safetensors({"identity": identity, "terms": torch.stack(rows)})
            try:
                write_atomically(self._path(number), content)
            except OSError as error:
                log.warning("the terms of the test are not kept (%s)", error.strerror)
                break
        self._unwritten.clear()
        self._written = time.monotonic()

    def _path(self, batch: int) -> Path:
        return self.folder / _NAMES.format(rank=self._rank, batch=batch)

    def _digest_of(self, trainer: pl.Trainer, module: GenerativeModule) -> bytes:
        """Return a digest of all on which the terms depend, but for the batch."""
        device = trainer.strategy.root_device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        place = [trainer.global_rank, trainer.world_size, name, versions()]
        plain = [self.settings, module.seed, self._total, *place]
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode())
        for entry, weight in module.model.state_dict().items():
            _add(digest, entry, weight.to_local() if isinstance(weight, DTensor) else weight)
        return digest.digest()


def read_terms(path: Path, digest: bytes, shape: tuple[int, int, int]) -> list[Tensor]:
    """Read the first terms of a batch, each (k, B); none where there is no file, or another test's.

    Args:
        digest: of all on which the terms depend.
        shape: (number of terms, k, B) of the whole batch.
    """
    try:
        found = weights.read_safetensors(path, 2**16 + 8 * math.prod(shape))
    except FileNotFoundError:
        return []
    except (OSError, GenlabError) as error:
        log.warning("the test begins anew where %s", error)
        return []
    terms, identity = found.get("terms"), found.get("identity")
    if terms is None or identity is None or identity.dtype is not torch.uint8:
        return []
    if bytes(identity.flatten().tolist()) != digest:
        return []
    fits = terms.dtype is torch.float64 and terms.ndim == 3 and terms.shape[1:] == shape[1:]
    return list(terms) if fits and len(terms) <= shape[0] else []


def forget(folder: Path) -> None:
    """Remove the terms of a test that is done."""
    for path in folder.glob(_NAMES.format(rank="*", batch="*")):
        path.unlink(missing_ok=True)


def smallest(trainer: pl.Trainer, number: int) -> int:
    """Return the smallest of the numbers of all processes, which must all call this."""
    if trainer.world_size == 1:
        return number
    mine = torch.tensor(number, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(mine, reduce_op="min"))


def _add(digest: Any, name: str, value: Tensor) -> None:
    digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
    digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
