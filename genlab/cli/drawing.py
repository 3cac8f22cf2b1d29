"""Where images are drawn: in this process, or in one for each of several devices.

An image is a function of (seed, number, class) alone, so that parts can be drawn anywhere.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager

import torch

from genlab.cli.sources import Pixels, Source
from genlab.errors import ConfigError

#: Draws the batches of a source and tells of every image-step that is done; in order.
Draw = Callable[[Source, Sequence[range], Callable[[int], None]], Iterator[Pixels]]


def devices(said: str) -> list[torch.device]:
    """What `--device` says: all GPUs or the CPU for `auto`, else the devices between commas.

    Raises:
        ConfigError: for one that is not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if said == "auto":
        return [torch.device("cuda", i) for i in range(gpus)] or [torch.device("cpu")]
    found = []
    for name in said.split(","):
        try:
            device = torch.device(name.strip())
        except RuntimeError:
            device = torch.device("meta")
        if device.type != "cpu" and (device.type != "cuda" or (device.index or 0) >= gpus):
            raise ConfigError(
                f"--device {said}: there is no such device here, where torch sees {gpus} GPUs; "
                "give auto, cpu, cuda, cuda:N, or several with commas between them"
            )
        found.append(device)
    return found


@contextmanager
def drawing(chosen: Sequence[Source], places: Sequence[torch.device]) -> Iterator[Draw]:
    """A way to draw images of the chosen sources on these devices, each in turn a batch."""
    _use_exact_kernels()
    if len(places) == 1:
        here = _Worker(chosen, places[0])
        yield lambda source, batches, advance: (
            here.images(chosen.index(source), indices, advance) for indices in batches
        )
        return

    spawn = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // len(places))
    with ExitStack() as stack:
        pools = [
            ProcessPoolExecutor(1, spawn, _begin, (list(chosen), str(place), threads))
            for place in places
        ]
        for pool in pools:
            stack.callback(pool.shutdown, cancel_futures=True)

        def draw(
            source: Source, batches: Sequence[range], advance: Callable[[int], None]
        ) -> Iterator[Pixels]:
            number = chosen.index(source)
            futures = [
                pools[i % len(pools)].submit(_images, number, indices)
                for i, indices in enumerate(batches)
            ]
            for indices, future in zip(batches, futures, strict=True):
                yield future.result()
                advance(len(indices) * source.steps)

        yield draw


class _Worker:
    """Draws on one device, where one model lies at a time."""

    def __init__(self, chosen: Sequence[Source], device: torch.device) -> None:
        self.chosen, self.device = chosen, device
        self.there: Source | None = None

    def images(
        self, number: int, indices: range, advance: Callable[[int], None] = lambda amount: None
    ) -> Pixels:
        source = self.chosen[number]
        if self.there is not source:
            if self.there is not None:
                self.there.module.cpu()
            source.module.to(self.device)
            self.there = source
        if source.sampler is None:
            images = source.images(indices)
            advance(len(indices))
            return images
        return source.images(indices, lambda *_: advance(len(indices)))


_worker: _Worker


def _begin(chosen: Sequence[Source], device: str, threads: int) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that was started hears it
    torch.set_num_threads(threads)
    _use_exact_kernels()
    _worker = _Worker(chosen, torch.device(device))


def _images(number: int, indices: range) -> Pixels:
    return _worker.images(number, indices)


def _use_exact_kernels() -> None:
    # With its 10 bits an image would show which kernel was chosen, and so the batch size.
    torch.backends.cudnn.allow_tf32 = False
