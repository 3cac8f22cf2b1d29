"""Resolved configs: what may be built from them, checked against the signatures that they feed.

Hydra composes; this module refuses. A `_target_` must name an allowed class, its keys must be
parameters of that class, and its values must have the annotated types (an integer where a float is
annotated becomes one, so that `kl_weight=30` and `kl_weight=30.0` are the same run).
Nothing is imported or built from a config that has not passed `check`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import json
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genlab.errors import ConfigError, GenlabError

Config = dict[str, Any]

#: Classes of other libraries that a config may name. Everything else must be a class of genlab, or
#: of a package that the person at this machine has named in the variable GENLAB_PLUGINS.
EXTERNAL_TARGETS = frozenset(
    {
        "lightning.pytorch.Trainer",
        "lightning.pytorch.callbacks.EarlyStopping",
        "lightning.pytorch.callbacks.DeviceStatsMonitor",
        "lightning.pytorch.profilers.AdvancedProfiler",
        "lightning.pytorch.profilers.PyTorchProfiler",
        "lightning.pytorch.profilers.SimpleProfiler",
    }
)

#: Keys that say where and on what a run happens, not what it computes: they are left out of its
#: identity, so that the same experiment is the same run on another machine or disk.
NOT_IDENTITY = (
    "runs_dir",
    "group",
    "overwrite",
    "traceback",
    "experiment",
    "notes",
    "tags",
    "logger",
    "launcher",
    "data.data_dir",
    "data.num_workers",
    "data.source.cache_dir",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.log_every_n_steps",
    "trainer.profiler",
)


def directory() -> Path:
    """The folder of YAML files: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def compose(overrides: Sequence[str], config_name: str = "train") -> DictConfig:
    """What `train.py` would be given with these overrides.

    Raises:
        ConfigError: if they do not compose.
    """
    try:
        with initialize_config_dir(str(directory()), version_base="1.3"):
            return hydra_compose(config_name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        cause = f" | {error.__cause__}" if error.__cause__ else ""
        raise ConfigError(" ".join(f"{error}{cause}".split())) from error


def resolve(cfg: DictConfig) -> Config:
    """A composed config to plain containers, interpolations resolved, every value checked.

    Raises:
        ConfigError: listing all missing values at once, or naming the first key that does not fit.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"no value for {', '.join(missing)}: give one on the command line")
    try:
        config = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    if not isinstance(config, dict):
        raise ConfigError(f"the configuration is a {type(config).__name__}: a mapping is needed")
    return typing.cast(Config, {key: check(value, str(key)) for key, value in config.items()})


def check(node: Any, key: str) -> Any:
    """`node` with every `_target_` below it allowed, its keys known and its values typed.

    Raises:
        ConfigError: naming the key, the value and what would be right.
    """
    if isinstance(node, dict):
        if "_target_" in node:
            return _check_target(node, key)
        return {name: check(value, f"{key}.{name}") for name, value in node.items()}
    if isinstance(node, list):
        return [check(value, f"{key}[{i}]") for i, value in enumerate(node)]
    return node


def _check_target(node: Config, key: str) -> Config:
    cls = target(node["_target_"], key)
    parameters = inspect.signature(cls).parameters
    hints = _hints(cls)
    checked: Config = {}
    for name, value in node.items():
        place = f"{key}.{name}"
        if name in ("_target_", "_partial_"):
            checked[name] = value
        elif name in parameters:
            checked[name] = coerce(check(value, place), hints.get(name, Any), place)
        elif not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            raise ConfigError(f"{place}={value!r}: {unknown(name, parameters)}")
    return checked


def unknown(name: str, known: typing.Iterable[str]) -> str:
    """The part of a message that says which key was probably meant."""
    known = [k for k in known if k != "self"]
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
    return f"there is no such key; {guess}"


def target(name: object, key: str) -> type:
    """The class that a `_target_` names.

    The class must itself be defined in an allowed package, so that nothing can be reached through
    what an allowed module imports.

    Raises:
        ConfigError: if it is not allowed, cannot be imported, or is no class.
    """
    refused = ConfigError(
        f"{key}._target_={name!r} is refused: only classes of genlab, or of packages that the "
        "environment variable GENLAB_PLUGINS names, may be built from a config"
    )
    if not isinstance(name, str) or "." not in name:
        raise refused
    module_name, _, class_name = name.rpartition(".")
    plugins = [p for p in os.environ.get("GENLAB_PLUGINS", "").split(",") if p]
    external = name in EXTERNAL_TARGETS
    if not external and module_name.split(".")[0] not in ["genlab", *plugins]:
        raise refused
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}._target_={name!r}: {error}") from error
    home = getattr(found, "__module__", "").split(".")[0]
    if not inspect.isclass(found) or (not external and home not in ["genlab", *plugins]):
        raise refused
    return found


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    except NameError:  # an annotation that exists for type checkers alone
        return {}


def coerce(value: Any, hint: Any, key: str) -> Any:
    """`value` as the annotated type, where that loses nothing.

    Raises:
        ConfigError: naming the key, the value and the type that would be right.
    """
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        members = typing.get_args(hint)
        if value is None and type(None) in members:
            return None
        members = tuple(m for m in members if m is not type(None))
        for member in members:
            if member in (bool, str, int, float) and type(value) is member:
                return value
        for member in members:
            try:
                return coerce(value, member, key)
            except ConfigError:
                if member is members[-1]:
                    raise
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ConfigError(f"{key}={value!r}: choose one of {', '.join(map(str, choices))}")
        return value
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key}={value!r}: a list is needed")
        member = next(iter(typing.get_args(hint)), Any)
        return [coerce(item, member, f"{key}[{i}]") for i, item in enumerate(value)]
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{key}={value!r}: a number is needed")
        return float(value)
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise ConfigError(f"{key}={value!r}: a whole number is needed")
        return int(value)
    if hint is bool and not isinstance(value, bool):
        raise ConfigError(f"{key}={value!r}: true or false is needed")
    if hint is str and not isinstance(value, str):
        raise ConfigError(f"{key}={value!r}: a string is needed")
    if isinstance(value, dict) and "_target_" not in value and _is_own_class(hint):
        return _check_target({"_target_": f"{hint.__module__}.{hint.__qualname__}", **value}, key)
    if value is None and inspect.isclass(hint) and hint is not type(None):
        raise ConfigError(f"{key} is null: a {hint.__name__} is needed")
    return value


def _is_own_class(hint: Any) -> bool:
    return inspect.isclass(hint) and hint.__module__.split(".")[0] == "genlab"


def build(node: Any, **given: Any) -> Any:
    """The object that a checked config describes; `given` goes to the outermost one.

    `_partial_: true` gives a function that still needs the rest of the arguments.

    Raises:
        ConfigError: naming the class, if an argument is missing.
    """
    if isinstance(node, list):
        return [build(item) for item in node]
    if not isinstance(node, dict):
        return node
    arguments = {k: build(v) for k, v in node.items() if k not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return arguments
    cls = target(node["_target_"], "config")
    make = _maker(cls, {**arguments, **given})
    return make if node.get("_partial_") else make()


def _maker(cls: type, arguments: Config) -> Callable[..., Any]:
    def make(**late: Any) -> Any:
        everything = {**arguments, **late}
        try:
            inspect.signature(cls).bind(**everything)
        except TypeError as error:
            raise ConfigError(f"{cls.__module__}.{cls.__qualname__}: {error}") from error
        try:
            return cls(**everything)
        except GenlabError:
            raise
        except Exception as error:
            if cls.__module__.startswith("genlab"):
                raise
            message = " ".join(str(error).split())
            raise ConfigError(f"{cls.__module__}.{cls.__qualname__}: {message}") from error

    return make


def flatten(config: Mapping[str, Any], prefix: str = "") -> Config:
    """Nested mappings to one, with dotted keys; lists are values."""
    flat: Config = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def identity(config: Config) -> str:
    """8 hex digits that name what a run computes, whatever the machine, the disk and the logger."""
    kept = {
        key: value
        for key, value in flatten(config).items()
        if not any(key == left_out or key.startswith(f"{left_out}.") for left_out in NOT_IDENTITY)
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def to_yaml(config: Config) -> str:
    """YAML from which `from_yaml` gives the same config again."""
    return OmegaConf.to_yaml(OmegaConf.create(config))


def from_yaml(text: str, name: str) -> Config:
    """The checked config of a run directory, which may come from a stranger.

    Raises:
        ConfigError: if it does not parse or names something that may not be built.
    """
    try:
        cfg = OmegaConf.create(text)
    except Exception as error:
        raise ConfigError(f"{name} is no readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(cfg, DictConfig):
        raise ConfigError(f"{name} holds no mapping")
    return resolve(cfg)
