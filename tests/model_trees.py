"""Configs of models as a run directory holds them, mutated ones, and all names of classes."""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from conf_files import PARTNERS

import genlab
from genlab.config.check import resolve
from genlab.config.compose import compose
from genlab.training.run_config import check_model

#: Models that have each part at least once.
MODELS = [
    [],
    ["model/likelihood=continuous_bernoulli", "model/prior=vamp", "model/kl_schedule=cyclical"],
    ["model/likelihood=gaussian", "model/kl_convention=mean_squared_error", "model/net=conv"],
    ["model/likelihood=discretized_logistic_mixture", "model/kl_schedule=capacity"],
    ["model=ddpm"],
    ["model=ddpm", "model/noise_schedule=cosine", "model/reverse_variance=learned"],
    ["model=ddpm", "model/noise_schedule=linear_betas", "model/time_sampler=importance"],
    ["model=ddpm", "model/noise_schedule=sigmoid", "model/sampler=heun", "model/weighting=p2"],
    ["model=ddpm", "model/codec=vae", *PARTNERS["model/codec/vae"]],
    ["model=gan", "model/augmentation=differentiable"],
    ["model=gan", "model/adversarial_loss=wasserstein", "model/penalty=one_centred"],
]
#: Classes of other packages that do something when they are made.
OTHERS = [
    *("os.system", "subprocess.Popen", "pathlib.Path", "builtins.open", "builtins.exec"),
    *("socket.socket", "shutil.rmtree", "logging.FileHandler", "tempfile.TemporaryDirectory"),
    *("torch.load", "torch.hub.load", "torch.nn.Linear", "torch.Tensor", "wandb.Settings"),
    *("lightning.pytorch.Trainer", "lightning.pytorch.loggers.CSVLogger"),
    *("lightning.pytorch.callbacks.ModelCheckpoint", "hydra.utils.instantiate"),
]


@cache
def names() -> list[str]:
    """Return every class that an attribute of a module of genlab is, by this name."""
    found = []
    for module in pkgutil.walk_packages(genlab.__path__, "genlab."):
        if module.name.endswith("__main__"):
            continue
        content = vars(importlib.import_module(module.name))
        found += [f"{module.name}.{name}" for name, x in content.items() if inspect.isclass(x)]
    return sorted(found)


@cache
def _trees() -> list[dict[str, Any]]:
    trees = [resolve(compose(overrides))["model"] for overrides in MODELS]
    return [check_model(tree) for tree in trees]


def trees() -> list[dict[str, Any]]:
    """Return the configs of `MODELS`, without the keys about their training."""
    return copy.deepcopy(_trees())


def planted(name: str, path: Path) -> dict[str, Any]:
    """Return the config of a class that is to write to a path, under whatever name it takes it."""
    keys = ("filename", "path", "directory", "save_dir", "root", "dirpath", "args", "name", "file")
    return {
        "_target_": name,
        **dict.fromkeys(keys, str(path)),
        **{"mode": "w", "project": "p", "entity": "e", "command": f"touch {path}"},
    }


def mutated(chance: random.Random, path: Path) -> dict[str, Any]:
    """Return a model's config with one to three changes, which may write to a path.

    Half of the classes that it exchanges are those of other models, so that many can be built.
    """
    tree, all_names = chance.choice(trees()), [*names(), *OTHERS]
    of_models = [n["_target_"] for t in trees() for n in _nodes(t) if "_target_" in n]
    for _ in range(chance.randint(1, 3)):
        nodes = list(_nodes(tree))
        node, other = chance.choice(nodes), chance.choice(nodes)
        key = chance.choice([*node, "x", "args", "kwargs", "self", "spec", "_args_"])
        name = chance.choice(chance.choice([all_names, of_models]))
        match chance.randrange(10):
            case 0:
                node["_target_"] = name
            case 1:
                node[key] = planted(name, path)
            case 2:
                node[key] = [planted(name, path)]
            case 3:
                node[key] = copy.deepcopy(other)
            case 4:
                node["_target_"] = other.get("_target_", name)
            case 5:
                node[key] = copy.deepcopy(other.get(chance.choice([*other])))
            case 6:
                node.pop(key, None)
            case 7 | 8:
                key = chance.choice([*node])
                if isinstance(node[key], bool | int | float):
                    node[key] = chance.choice([0, 1, 2, 0.5, 3.0, True, node[key] * 2])
            case _:
                node[key] = chance.choice(_values(path))
    return tree


def _values(path: Path) -> list[Any]:
    whole = [0, 1, -1, 10**12, 10**400, 1 << 20000, 1 << 62]
    real = [0.0, -1.0, 1e308, float("inf"), float("nan"), 0.5]
    text = ["", str(path), "relu", "a" * 10**5, "${oc.env:HOME}", "\ud800", "genlab.vae"]
    other = [None, True, False, [], {}, [10**6] * 4, [[1]], {1: 2}, b"x", path]
    return [*whole, *real, *text, *other]


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        if tree:
            yield tree
        for part in tree.values():
            yield from _nodes(part)
    elif isinstance(tree, list):
        for part in tree:
            yield from _nodes(part)
