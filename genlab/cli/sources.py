"""What `genlab sample` draws from: trained models, and how those that diffuse are sampled."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from genlab.config import compose as composition
from genlab.config import configs
from genlab.diffusion.samplers import OnStep, Sampler
from genlab.errors import ConfigError, RunDirectoryError
from genlab.modules.base import GenerativeModule
from genlab.modules.ddpm import DDPM
from genlab.protocols import CanSample
from genlab.report import collect, swept_keys
from genlab.report.naming import run_label
from genlab.runs.directory import Run
from genlab.training import weights as checkpoints

Pixels = npt.NDArray[np.uint8]

_GROUP, _KEY = "model/sampler", "model.sampler"
#: Options that only a diffusion model has a use for.
_OF_DIFFUSION = ("sampler", "steps", "grid", "eta", "class", "guidance", "trajectory")


def digest(facts: Any) -> str:
    """8 hex digits of plain values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Source:
    """One set of images that is asked for.

    Attributes:
        run_name: what tells the run from the others; empty if it is the only one.
        sampler: of a diffusion model.
        steps: of the sampler; 1 without one.
        classes: of the images, in turn; none where the model is not told any.
        facts: all that the images are a function of, by name, in plain values.
    """

    run: Path
    run_name: str
    module: GenerativeModule
    sampler: Sampler | None
    steps: int
    classes: tuple[int, ...]
    facts: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of the facts."""
        return digest(self.facts)

    @property
    def way(self) -> str:
        """How it is sampled, in words; empty where there is no choice."""
        plural = "" if self.steps == 1 else "s"
        return f"{self.facts['sampler']}, {self.steps} step{plural}" if self.sampler else ""

    @property
    def name(self) -> str:
        """In words, what tells it from the others."""
        return ", ".join(filter(None, [self.run_name, self.way])) or type(self.module).__name__

    @property
    def asked(self) -> list[str]:
        """What else was asked for, in words."""
        words = [f"class {self.facts['class']}"] if "class" in self.facts else []
        scale = self.facts.get("guidance", 1.0)
        words += [f"guidance {scale:g}"] if scale != 1 else []
        return [*words, f"seed {self.facts['seed']}"]

    @property
    def caption(self) -> str:
        """Model, way and what was asked for."""
        return ", ".join(filter(None, [self.module.label(), self.way, *self.asked]))

    @property
    def tag(self) -> str:
        """The facts as the name of a folder: some in words, all in the digits at the end."""
        facts = self.facts
        way = f"{facts['sampler'].lower()}-{self.steps}" if self.sampler else None
        asked = [f"n{facts['n']}", *(text.replace(" ", "") for text in self.asked)]
        last = "last" if facts["checkpoint"] == "last" else None
        words = "-".join(filter(None, [way, *asked, last]))
        # no character that the command line would want quoted
        return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', words)[:80]}-{self.digest}"

    @property
    def diffusion(self) -> DDPM:
        """The module, of which it is known that it is one."""
        assert isinstance(self.module, DDPM)
        return self.module

    def labels(self, indices: range) -> npt.NDArray[np.int64]:
        """The classes of these images, -1 where the model is not told any."""
        classes = np.array(self.classes or [-1])
        return classes[np.array(indices) % len(classes)]

    @torch.inference_mode()
    def images(self, indices: range, on_step: OnStep | None = None) -> Pixels:
        """The images of these numbers, (n, H, W, C)."""
        module: Any = self.module
        seed = self.facts["seed"]
        if self.sampler is not None:
            labels = torch.from_numpy(self.labels(indices)) if self.classes else None
            guidance = self.facts["guidance"]
            x = module.sample_with(indices, seed, self.sampler, labels, guidance, on_step)
        elif hasattr(module, "sample_with"):
            x = module.sample_with(indices, seed)
        else:
            x = module.sample(indices.stop, seed)[indices.start :]
        decoded = module.codec.decode(x.float().cpu())
        return np.asarray(decoded.permute(0, 2, 3, 1).contiguous().numpy())


def sources(options: argparse.Namespace) -> list[Source]:
    """All that the options ask for, in the order of rows: runs, then samplers, then steps.

    Raises:
        ConfigError, RunDirectoryError: for a run that cannot be read or an option that does not fit
            its model, before any image is drawn.
    """
    runs = list(dict.fromkeys(options.runs))
    modules = [_load(run, options.checkpoint) for run in runs]
    _check_sizes(runs, modules)
    found = [
        source
        for run, name, module in zip(runs, _names(runs), modules, strict=True)
        for source in _of_run(run, name, module, vars(options))
    ]
    return list({(source.run.resolve(), source.digest): source for source in found}.values())


def _load(run: Path, which: str) -> GenerativeModule:
    if not run.is_dir():
        raise RunDirectoryError(f"{run} is not a directory: give a run directory")
    there = [path.stem for path in sorted(run.glob("checkpoints/*.ckpt"))]
    if Run(run).config_text is not None and which not in there:
        other = f"give --checkpoint {there[0]}" if there else "train it first"
        raise RunDirectoryError(f"{run} has no checkpoints/{which}.ckpt: {other}")
    module, _ = checkpoints.load(run, which)
    if not isinstance(module, CanSample):
        raise ConfigError(f"{run}: {type(module).__name__} is a model that draws no images")
    if module.spec.levels is None:
        raise ConfigError(
            f"{run}: its data are real numbers, which no picture holds; give a run on 8-bit images"
        )
    return module


def _check_sizes(runs: Sequence[Path], modules: Sequence[GenerativeModule]) -> None:
    sizes = [f"{module.spec.height} x {module.spec.width}" for module in modules]
    for run, size in zip(runs, sizes, strict=True):
        if size != sizes[0]:
            raise ConfigError(
                f"{run}: its images of {size} do not fit side by side with those of {sizes[0]}; "
                "sample these runs one by one"
            )


def _names(runs: Sequence[Path]) -> list[str]:
    """What a report calls the runs; their directories where that does not tell them apart."""
    if len(runs) == 1:
        return [""]
    records = collect(runs)
    swept = swept_keys(records)
    names = [run_label(record, swept) for record in records]
    if len(set(names)) == len(runs):
        return names
    return [f"{record.path.parent.name}/{record.run_id}" for record in records]


def _of_run(
    run: Path, name: str, module: GenerativeModule, options: dict[str, Any]
) -> Iterator[Source]:
    checkpoint = run / "checkpoints" / f"{options['checkpoint']}.ckpt"
    with checkpoint.open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    facts = {"run": run.resolve().name, "model": type(module).__name__, "weights": weights}
    facts |= {key: options[key] for key in ("checkpoint", "n", "seed")}
    if not isinstance(module, DDPM):
        for key in _OF_DIFFUSION:
            if options[key] is not None and options[key] is not False:
                raise ConfigError(
                    f"--{key}: {run} is a {type(module).__name__}, which has no such choice; leave "
                    "the option out"
                )
        yield Source(run, name, module, None, 1, (), facts)
        return

    classes = _classes(run, module, options["class"])
    guidance = module.guidance if options["guidance"] is None else options["guidance"]
    for node in _nodes(run, options):
        try:
            checked = configs.check(node, _KEY)
            sampler: Sampler = configs.build(checked, _KEY)
            steps = sampler.path(module.process).steps
        except ConfigError as error:
            # said of the option that the person has typed, not of the key that it stands for
            raise ConfigError(f"{run}: {str(error).replace(f'{_KEY}.', '--')}") from error
        try:
            module.check_request(torch.tensor(classes) if classes else None, guidance)
        except ConfigError as error:
            raise ConfigError(f"{run}: --{error}") from error
        settings = {key: value for key, value in checked.items() if key != "_target_"}
        settings |= {"sampler": type(sampler).__name__, "steps": steps, "guidance": guidance}
        if options["class"] is not None:
            settings["class"] = options["class"]
        yield Source(run, name, module, sampler, steps, classes, facts | settings)


def _nodes(run: Path, options: dict[str, Any]) -> Iterator[configs.Config]:
    """The config of each sampler with each number of steps."""
    own = configs.from_yaml(Run(run).config_text or "", str(run))["model"]["sampler"]
    nodes = [own]
    if options["sampler"]:
        names = [name for said in options["sampler"] for name in said.split(",")]
        # whether x0_hat may be clipped is a matter of the data, not of the sampler
        clip = {"clip": own["clip"]} if "clip" in own else {}
        nodes = [{**_read(name), **clip} for name in dict.fromkeys(names)]
    given = {key: options[key] for key in ("grid", "eta") if options[key] is not None}
    if "eta" in given and not any(configs.takes(node, "eta") for node in nodes):
        raise ConfigError(
            f"--eta {given['eta']:g}: this sampler adds no noise; give --sampler ddim"
        )
    numbers = [{}] if options["steps"] is None else [{"steps": n} for n in _steps(options["steps"])]
    for node, number in itertools.product(nodes, numbers):
        fitting = {key: value for key, value in given.items() if configs.takes(node, key)}
        yield {**node, **fitting, **number}


def _read(name: str) -> configs.Config:
    """The config of a sampler by its name in conf/, or from a file."""
    file = Path(name)
    if file.suffix != ".yaml":
        file = composition.directory() / _GROUP / f"{name}.yaml"
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        known = composition.suggestion(name, composition.options(_GROUP))
        raise ConfigError(f"--sampler {name}: there is no such sampler; {known}") from error
    node = configs.check(configs.from_yaml(text, str(file)), _KEY)
    return dict(configs.need(node, Sampler, _KEY))


def _steps(said: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in said.split(",")))
    except ValueError as error:
        raise ConfigError(
            f"--steps {said}: whole numbers, separated by commas, are needed"
        ) from error


def _classes(run: Path, module: DDPM, said: str | None) -> tuple[int, ...]:
    known = module.spec.classes
    if said is None:
        return tuple(range(len(known))) if module.conditional else ()
    if not module.conditional:
        raise ConfigError(
            f"--class {said}: {run} was trained without classes; leave the option out, or train "
            "with model.conditional=true"
        )
    return tuple(class_number(word.strip(), known) for word in said.split(","))


def class_number(word: str, known: Sequence[str]) -> int:
    """A class by its name, or else by its number.

    Raises:
        ConfigError: if it is neither.
    """
    if word in known:
        return known.index(word)
    if word.isdecimal() and int(word) < len(known):
        return int(word)
    raise ConfigError(
        f"--class {word}: there is no such class; {composition.suggestion(word, known)}, or a "
        f"number from 0 to {len(known) - 1}"
    )
