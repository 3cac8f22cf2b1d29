"""A refused value is refused by the key that was set, for every value of every YAML."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conf_files import CONF, LACKING, PARTNERS, model_of, name
from omegaconf import DictConfig, OmegaConf

from genlab.config.build import build, takes
from genlab.config.check import resolve
from genlab.config.compose import compose
from genlab.errors import ConfigError, DataError
from genlab.runs.identity import flatten
from genlab.training.planning import Plan, assemble
from genlab.training.run_config import RunConfig

GROUPS = ("callbacks", "data", "logger", "metrics", "model", "trainer")
FILES = [CONF / "train.yaml"] + [
    path
    for group in GROUPS
    for path in sorted((CONF / group).rglob("[!_]*.yaml"))
    if name(path) not in LACKING
]
# Components inside components, which are in no file of their own.
BENT = ["model=ddpm", "model/noise_schedule=zero_terminal_snr", "model/parameterization=v"]
INNER = "model/noise_schedule@model.noise_schedule.schedule"
NESTED = {
    "a wrapped schedule": BENT,
    "a wrapped table": [*BENT, f"{INNER}=scaled_linear_betas"],
    "a cut schedule": ["model=ddpm", "model.log_snr_max=10", "model.log_snr_min=-5"],
    "a cut of a cut": ["model=ddpm", "model/noise_schedule=sigmoid", "model.log_snr_max=10"],
}


def choice(path: Path) -> list[str]:
    """The overrides that bring a file into `train.yaml`."""
    if path.parent == CONF:
        return []
    group, _, chosen = name(path).rpartition("/")
    model = model_of(path) if group.startswith("model/") else "vae"
    return [
        *([f"model={model}"] if model != "vae" else []),
        f"{group}={chosen}",
        *PARTNERS.get(name(path), []),
    ]


@cache
def composed(*overrides: str) -> DictConfig:
    apart = [f"{group}=none" for group in ("callbacks", "logger")]
    chosen = {override.partition("=")[0] for override in overrides}
    return compose([*(o for o in apart if o.partition("=")[0] not in chosen), *overrides])


def leaves(path: Path, config: DictConfig) -> Iterator[str]:
    """The full keys of the values of a file, which the composed config holds."""
    node = OmegaConf.load(path)
    place = "" if path.parent == CONF else name(path.parent).replace("/", ".") + "."
    for key in flatten(OmegaConf.to_container(node)):
        if key.split(".")[0] in ("defaults", "hydra") or "_target_" in key or "_partial_" in key:
            continue
        if path.parent != CONF or key in config:
            yield f"{place}{key}"


def mutations(value: Any) -> list[Any]:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return ["nonsense"]
    if isinstance(value, int | float):
        return [-1, 0, math.nan, "nonsense"]
    return [[], [-1]]


def make(config: RunConfig, key: str, folder: Path) -> None:
    """Build the part of a run that a key is in, without data."""
    group = key.split(".")[0]
    if group == "trainer":
        build(config.trainer, "trainer", logger=False)
    elif group == "callbacks":
        for name_, node in config.callbacks.items():
            given = {key: folder for key in ("videos", "directory") if takes(node, key)}
            build(node, f"callbacks.{name_}", **given)
    elif key.startswith("model.net."):
        spec = build(config.data, "data").spec
        net = build(config.model["net"], "model.net")
        with torch.device("meta"):
            if "encoder" in config.model["net"]:
                size = config.model["latent_dim"]
                net.encoder(spec=spec, latent_dim=size)
                net.decoder(spec=spec, latent_dim=size, out_channels=1)
            elif "generator" in config.model["net"]:
                net.generator(spec=spec, latent_dim=3)
                net.discriminator(spec=spec)
            else:
                net(spec=spec, out_channels=1)
    elif group in ("data", "model"):
        fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        assemble(Plan(fields, config, folder))


def names(message: str, key: str, sources: set[str]) -> bool:
    """Return whether a message names a key, alone or as one of two keys of the same parent."""
    for candidate in {key, *sources}:
        parent, _, leaf = candidate.rpartition(".")
        said = re.escape(candidate)
        if re.search(rf"(?<![\w.]){said}(?![\w.]*\w)", message):
            return True
        if parent and message.startswith(parent) and re.search(rf"\b{leaf}\b", message):
            return True
    return False


def refusals(config: DictConfig, keys: list[str], folder: Path) -> Iterator[str]:
    """List the faults in the error messages for each wrong value of each key."""
    make(RunConfig.of(config), keys[0], folder)
    raw = flatten(OmegaConf.to_container(config))
    for key in keys:
        sources = {k for k, v in raw.items() if v == f"${{{key}}}"}
        for value in mutations(OmegaConf.select(config, key)):
            wrong = config.copy()
            OmegaConf.update(wrong, key, value, merge=False)
            try:
                make(RunConfig.of(wrong), key, folder)
            except (ConfigError, DataError) as error:
                if not names(str(error), key, sources):
                    yield f"{key}={value!r}: {error}"
            except Exception as error:
                yield f"{key}={value!r}: {type(error).__name__}: {error}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_refused_value_of_a_file_is_named_by_its_key(path: Path, tmp_path: Path) -> None:
    config = composed(*choice(path))
    keys = list(leaves(path, config))
    if keys:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert list(refusals(config, keys, tmp_path)) == []


@pytest.mark.parametrize("overrides", NESTED.values(), ids=NESTED)
def test_a_refused_value_of_a_nested_component_is_named_by_its_key(
    overrides: list[str], tmp_path: Path
) -> None:
    config = composed(*overrides)
    keys = [
        key
        for key in flatten(resolve(config))
        if key.startswith(("model.noise_schedule.", "model.log_snr_")) and "_target_" not in key
    ]
    assert list(refusals(config, keys, tmp_path)) == []
