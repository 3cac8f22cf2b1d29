"""Draw images of a model: the ways to sample, and the devices.

An image depends on (seed, number, class) alone, so that any device can draw any part.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from genlab.cli import trained
from genlab.cli.choices import whole_numbers
from genlab.config.build import build, takes
from genlab.config.check import Config, check, from_yaml, need
from genlab.config.compose import directory, options, suggestion
from genlab.diffusion.samplers import Sampler
from genlab.errors import ConfigError
from genlab.protocols import CanSampleClasses, HasSampler, HasTrajectory
from genlab.tensors import to_pixels
from genlab.training.load import read_received

Pixels = npt.NDArray[np.uint8]

#: Images that are drawn at once at least. Kernels round batches of 1 to 3 images otherwise than
#: larger ones, by 1e-6, which Fourier features and a sampler's steps make tens of grey levels.
_LEAST = 4

#: Batches that are asked of each device before the first is taken, so that no more are in memory.
_AHEAD = 3

#: Keeps Python from looking for modules in the working directory.
_SAFE_PATH = "PYTHONSAFEPATH"

_GROUP, _KEY = "model/sampler", "model.sampler"


@dataclass(frozen=True)
class Way:
    """One way to sample a model.

    Attributes:
        name: sampler and steps, in words; empty for a model without samplers.
        tag: the same as a part of a file name.
        steps: per image; 1 for a model that samples in one pass.
        classes: of the images, in turn; none for an unconditional model.
        arguments: of the model's `sample`.
        settings: the values that the images depend on, by name.
    """

    name: str = ""
    tag: str = ""
    steps: int = 1
    classes: tuple[int, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def labels(self, n: int) -> npt.NDArray[np.int64]:
        """Return the classes of the first n images, -1 for an unconditional model."""
        return np.resize(np.array(self.classes or (-1,)), n)


def sampler_configs(
    own: Config,
    samplers: Sequence[str] | None,
    steps: str | None,
    grid: str | None,
    eta: float | None,
) -> list[tuple[str, Config]]:
    """Choose samplers by --sampler, --steps, --grid and --eta: their names and configs.

    Args:
        own: the config of the model's own sampler, used where none is named.

    Raises:
        ConfigError: an option that none of the samplers has, or an unknown sampler.
    """
    named = [(own["_target_"].rpartition(".")[2], own)]
    if samplers is not None:
        names = dict.fromkeys(name for given in samplers for name in given.split(","))
        # clipping of x0_hat depends on the data, not on the sampler
        clip = {"clip": own["clip"]} if "clip" in own else {}
        named = [(Path(name).stem, {**_read(name), **clip}) for name in names]
        if len({name for name, _ in named}) < len(named):
            raise ConfigError(f"--sampler {','.join(names)}: give files of different names")
    given = {key: value for key, value in (("grid", grid), ("eta", eta)) if value is not None}
    if eta is not None and not any(takes(node, "eta") for _, node in named):
        raise ConfigError(f"--eta {eta:g}: this sampler has no such choice; give --sampler ddim")
    counts = (
        [{}]
        if steps is None
        else [{"steps": count} for count in whole_numbers(steps, f"--steps {steps}")]
    )
    return [
        (name, {**node, **{k: v for k, v in given.items() if takes(node, k)}, **count})
        for (name, node), count in itertools.product(named, counts)
    ]


def _read(name: str) -> Config:
    """Read the config of a sampler by its name in conf/, or from a file."""
    file = Path(name)
    if file.suffix != ".yaml":
        file = directory() / _GROUP / f"{name}.yaml"
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        known = suggestion(name, options(_GROUP))
        raise ConfigError(f"--sampler {name}: there is no such sampler; {known}") from error
    return need(check(from_yaml(text, str(file)), _KEY), Sampler, _KEY)


def ways_of(
    model: HasSampler,
    samplers: Sequence[tuple[str, Config]],
    classes: str | None,
    guidance: float | None,
    interval: Sequence[float] | None = None,
) -> list[Way]:
    """Combine the samplers with the classes and the guidance; None is the model's guidance.

    Args:
        interval: log-SNRs between which there is guidance; None is the model's interval.

    Raises:
        ConfigError, ValueError: a sampler, classes or a guidance that does not fit the model.
    """
    guidance = model.guidance if guidance is None else guidance
    numbers = classes_of(model, classes)
    model.check_request(numbers, guidance, interval)
    ways = []
    for name, node in samplers:
        checked = check(node, _KEY)
        sampler = build(checked, _KEY)
        steps = model.sampling_steps(sampler)
        settings = {key: value for key, value in checked.items() if key != "_target_"}
        settings |= {"sampler": type(sampler).__name__, "steps": steps, "guidance": guidance}
        arguments = {"sampler": sampler, "classes": numbers, "guidance": guidance}
        if interval is not None:
            arguments["guidance_interval"] = interval
            settings["guidance_interval"] = ",".join(f"{end:g}" for end in interval)
        words = f"{name}, {steps} step{'' if steps == 1 else 's'}"
        ways.append(Way(words, f"{name.lower()}-{steps}", steps, numbers, arguments, settings))
    return ways


def ways_asked(
    run: Path,
    model: Any,
    trust: Sequence[str],
    *,
    sampler: Sequence[str] | None = None,
    steps: str | None = None,
    grid: str | None = None,
    eta: float | None = None,
    classes: str | None = None,
    guidance: float | None = None,
    guidance_interval: Sequence[float] | None = None,
) -> list[Way]:
    """Return the ways to sample a model of a run that the options of a command ask for.

    Raises:
        ConfigError: the model has no such choice, or does not admit the value.
    """
    if isinstance(model, HasSampler):
        nodes = sampler_configs(
            read_received(run, trust).model["sampler"], sampler, steps, grid, eta
        )
        with trained.naming_flags("model.sampler", run):
            return ways_of(model, nodes, classes, guidance, guidance_interval)
    options: dict[str, Any] = {"sampler": sampler, "steps": steps, "grid": grid, "eta": eta}
    options |= {"guidance": guidance, "guidance-interval": guidance_interval}
    if isinstance(model, CanSampleClasses):
        refuse_options(run, model, options)
        return [way_of(model, classes)]
    refuse_options(run, model, options | {"class": classes})
    return [Way()]


def refuse_options(run: Path, model: Any, options: Mapping[str, Any]) -> None:
    """Refuse options, by their names, that are given although the model has no such choice.

    Raises:
        ConfigError: one is not None.
    """
    for name, value in options.items():
        if value is not None:
            raise ConfigError(
                f"--{name}: {run} is a {type(model).__name__}, which has no such choice; leave the "
                "option out"
            )


def way_of(model: CanSampleClasses, classes: str | None) -> Way:
    """Return the way to sample a model that draws in one pass, with these classes.

    Raises:
        ConfigError: classes that do not fit the model.
    """
    numbers = classes_of(model, classes)
    return Way(classes=numbers, arguments={"classes": numbers or None})


def classes_of(model: CanSampleClasses, names: str | None) -> tuple[int, ...]:
    """Return the numbers of the named classes; of all for None, of none without classes.

    Raises:
        ConfigError: the model has no such class, or none at all.
    """
    known = model.spec.classes
    if names is None:
        return tuple(range(len(known))) if model.conditional else ()
    if not model.conditional:
        raise ConfigError(
            f"--class {names}: this model was trained without classes; leave the option out, or "
            "train one with model.conditional=true"
        )
    return tuple(class_number(word.strip(), known) for word in names.split(","))


def class_number(word: str, known: Sequence[str]) -> int:
    """Return the number of a class, given its name or its number.

    Raises:
        ConfigError: it is neither.
    """
    if word in known:
        return known.index(word)
    if word.isdecimal() and int(word) < len(known):
        return int(word)
    raise ConfigError(
        f"--class {word}: there is no such class; {suggestion(word, known)}, or a number from 0 "
        f"to {len(known) - 1}"
    )


#: Function that draws batches in one way, in order, and reports every completed image-step.
Draw = Callable[[Way, Sequence[range], Callable[[int], None]], Iterator[Pixels]]


def devices(names: str) -> list[torch.device]:
    """Parse comma-separated devices; `auto` is all GPUs, or else the CPU.

    Raises:
        ConfigError: a device does not exist.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if names == "auto":
        return [torch.device("cuda", i) for i in range(gpus)] or [torch.device("cpu")]
    found = []
    for name in names.split(","):
        try:
            device = torch.device(name.strip())
        except RuntimeError:
            device = torch.device("meta")
        if device.type != "cpu" and (device.type != "cuda" or (device.index or 0) >= gpus):
            raise ConfigError(
                f"--device {names}: there is no such device here, where torch sees {gpus} GPUs; "
                "give auto, cpu, cuda, cuda:N, or several with commas between them"
            )
        found.append(device)
    return found


@contextmanager
def drawing(model: Any, seed: int, places: Sequence[torch.device]) -> Iterator[Draw]:
    """Yield a function that draws images of a model on these devices, a batch on each in turn."""
    _use_exact_kernels()
    if len(places) == 1:
        model.to(places[0])
        yield lambda way, batches, advance: (
            _images(model, seed, way, indices, advance) for indices in batches
        )
        return

    spawn = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // len(places))
    with ExitStack() as stack:
        with _starting():
            pools = [
                ProcessPoolExecutor(1, spawn, _begin, (model, seed, str(place), threads))
                for place in places
            ]
            for pool in pools:
                stack.callback(pool.shutdown, cancel_futures=True)
                pool.submit(_use_exact_kernels)  # its process starts with its first task

        def draw(
            way: Way, batches: Sequence[range], advance: Callable[[int], None]
        ) -> Iterator[Pixels]:
            asked: deque[Future[Pixels]] = deque()
            for i, indices in enumerate(batches):
                while len(asked) < _AHEAD * len(pools) and i + len(asked) < len(batches):
                    number = i + len(asked)
                    pool = pools[number % len(pools)]
                    asked.append(pool.submit(_images_of_process, way, batches[number]))
                yield asked.popleft().result()
                advance(len(indices) * way.steps)

        yield draw


@torch.inference_mode()
def _images(
    model: Any, seed: int, way: Way, indices: range, advance: Callable[[int], None]
) -> Pixels:
    """Draw the images of these numbers, (n, H, W, C)."""
    arguments = dict(way.arguments)
    tells_steps = isinstance(model, HasTrajectory)
    if tells_steps:
        arguments["on_step"] = lambda *_: advance(len(indices))
    images = model.sample(max(len(indices), _LEAST), seed, indices.start, **arguments)
    images = images[: len(indices)]
    if not tells_steps:
        advance(len(indices))
    pixels = to_pixels(images.float().cpu())
    return np.asarray(pixels.permute(0, 2, 3, 1).contiguous().numpy())


@contextmanager
def _starting() -> Iterator[None]:
    """Start Python processes that import nothing from the working directory, whoever filled it.

    No Ctrl-C reaches them: the process that starts them handles it.
    """
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        resource_tracker.ensure_running()  # which unblocks the signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        os.environ.pop(_SAFE_PATH)
        os.environ |= {} if before is None else {_SAFE_PATH: before}
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


#: The model and the seed of a worker process.
_of_process: tuple[Any, int]


def _begin(model: Any, seed: int, device: str, threads: int) -> None:
    global _of_process
    torch.set_num_threads(threads)
    _use_exact_kernels()
    _of_process = (model.to(device), seed)


def _images_of_process(way: Way, indices: range) -> Pixels:
    return _images(*_of_process, way, indices, lambda amount: None)


def _use_exact_kernels() -> None:
    # TF32 has 10 bits of mantissa: images would depend on the kernel, and so on the batch size.
    torch.backends.cudnn.allow_tf32 = False
