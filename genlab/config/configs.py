"""Resolved configs: what may be built from them, checked against the signatures that they feed.

Hydra composes; this module refuses. A `_target_` must name an allowed class, its keys must be
parameters of that class, and its values must have the annotated types (an integer where a float is
annotated becomes one, so that `kl_weight=30` and `kl_weight=30.0` are the same run).
Nothing is imported or built from a config that has not passed `check`.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import inspect
import json
import math
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, Union

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genlab.config.compose import compose as compose
from genlab.config.compose import directory as directory
from genlab.config.compose import options
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
    "checkpoint_every_n_steps",
    "checkpoint_every_n_minutes",
    "data.data_dir",
    "data.num_workers",
    "data.source.cache_dir",
    "trainer.accelerator",
    "trainer.benchmark",
    "trainer.deterministic",
    "trainer.devices",
    "trainer.inference_mode",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.log_every_n_steps",
    "trainer.profiler",
)


def resolve(cfg: DictConfig, hints: Mapping[str, Any] | None = None) -> Config:
    """A composed config to plain containers, interpolations resolved, every value checked.

    Args:
        hints: types of the keys at the top.

    Raises:
        ConfigError: listing all missing values at once, or naming the first key that does not fit.
    """
    try:
        if missing := sorted(OmegaConf.missing_keys(cfg)):
            raise ConfigError(f"no value for {', '.join(missing)}: give one on the command line")
        config = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    if not isinstance(config, dict):
        raise ConfigError(f"the configuration is a {type(config).__name__}: a mapping is needed")
    hints = hints or {}
    return {
        str(key): coerce(check(value, str(key)), hints.get(str(key), Any), str(key))
        for key, value in config.items()
    }


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
        if name == "_target_":
            checked[name] = value
        elif name == "_partial_":
            checked[name] = coerce(value, bool, place)
        elif name in parameters:
            checked[name] = coerce(check(value, place), hints.get(name, Any), place)
        elif any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            checked[name] = check(value, place)
        else:
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
    external = name in EXTERNAL_TARGETS
    if not external and module_name.split(".")[0] not in _homes():
        raise refused
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}._target_={name!r}: {error}") from error
    home = getattr(found, "__module__", "").split(".")[0]
    if not inspect.isclass(found) or (not external and home not in _homes()):
        raise refused
    return found


def _homes() -> list[str]:
    """The packages whose classes a config may name."""
    plugins = os.environ.get("GENLAB_PLUGINS", "").split(",")
    return ["genlab", *(plugin.strip() for plugin in plugins if plugin.strip())]


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    except NameError:  # an annotation that exists for type checkers alone
        return {}


def coerce(value: Any, hint: Any, key: str) -> Any:
    """`value` as the annotated type, where that loses nothing.

    Where a class of genlab, or a function that makes one, is annotated, only a node with a fitting
    `_target_` will do; of a plain class the `_target_` may be left out.

    Raises:
        ConfigError: naming the key, the value and the type that would be right.
    """
    if hint is Any:
        return value
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return _coerce_to_one_of(value, typing.get_args(hint), key)
    if origin is Literal:
        choices = typing.get_args(hint)
        if isinstance(value, bool) or value not in choices:
            known = ", ".join(dict.fromkeys(map(str, choices)))
            raise ConfigError(f"{key}={_said(value)}: choose one of {known}")
        return value
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key}={_said(value)}: a list is needed")
        member = next(iter(typing.get_args(hint)), Any)
        return [coerce(item, member, f"{key}[{i}]") for i, item in enumerate(value)]
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{key}={_said(value)}: a number is needed")
        return float(value)
    if hint is int:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value != int(value):
            raise ConfigError(f"{key}={_said(value)}: a whole number is needed")
        return int(value)
    if hint is bool and not isinstance(value, bool):
        raise ConfigError(f"{key}={_said(value)}: true or false is needed")
    if hint is str and not isinstance(value, str):
        raise ConfigError(f"{key}={_said(value)}: a string is needed")
    if origin is Callable:
        made = typing.get_args(hint)[-1]
        return need(value, made if inspect.isclass(made) else object, key, partial=True)
    if inspect.isclass(hint) and hint.__module__.split(".")[0] in _homes():
        if isinstance(value, dict) and "_target_" not in value and not inspect.isabstract(hint):
            name = f"{hint.__module__}.{hint.__qualname__}"
            return _check_target({"_target_": name, **value}, key)
        return need(value, hint, key)
    if value is None and inspect.isclass(hint) and hint is not type(None):
        raise ConfigError(f"{key} is null: a {hint.__name__} is needed")
    return value


def _coerce_to_one_of(value: Any, members: Sequence[Any], key: str) -> Any:
    if value is None and type(None) in members:
        return None
    members = [m for m in members if m is not type(None)]
    if all(typing.get_origin(member) is Literal for member in members):
        return coerce(value, Literal[tuple(c for m in members for c in typing.get_args(m))], key)
    for member in members:
        if member in (bool, str, int, float) and type(value) is member:
            return value
    for member in members[:-1]:
        with contextlib.suppress(ConfigError):
            return coerce(value, member, key)
    return coerce(value, members[-1], key)


def _said(value: Any) -> str:
    """A value as YAML has it; of a mapping the keys."""
    if isinstance(value, dict) and value:
        return "{" + ", ".join(f"{key}: ..." for key in value) + "}"
    plain = {None: "null", True: "true", False: "false"}
    return plain[value] if value is None or isinstance(value, bool) else repr(value)


def need(node: Any, kind: type, key: str, partial: bool = False) -> Any:
    """`node`, if it describes an object of this kind, or with `partial` a function that makes one.

    Raises:
        ConfigError: naming the key, the value and what would be right.
    """
    wanted = "component" if kind is object else kind.__name__
    if not isinstance(node, dict) or "_target_" not in node:
        parameters = ", ".join(inspect.signature(kind).parameters)
        remedy = f"give its keys, {parameters}" if is_dataclass(kind) else "give its _target_"
        raise ConfigError(
            f"{key}={_said(node)}: {wanted} is needed; {_choices(kind, key) or remedy}"
        )
    if not issubclass(target(node["_target_"], key), kind):
        known = _choices(kind, key)
        raise ConfigError(
            f"{key}._target_={node['_target_']!r}: {wanted} is needed" + (known and f"; {known}")
        )
    if bool(node.get("_partial_")) is not partial:
        raise ConfigError(f"{key}._partial_={_said(not partial)}: {_said(partial)} is needed here")
    return node


def _choices(kind: type, key: str) -> str:
    """The files at `key` that describe an object of this kind; empty if there are none."""
    group = key.replace(".", "/")
    fitting = []
    for name in options(group):
        node: Any = OmegaConf.load(directory() / group / f"{name}.yaml")
        # one that adds to another file leaves the _target_ to it
        is_open = is_dataclass(kind) or "defaults" in node
        fits = issubclass(target(node["_target_"], key), kind) if "_target_" in node else is_open
        fitting += [name] if fits else []
    return f"choose one as {group}=NAME, of {', '.join(fitting)}" if fitting else ""


def takes(node: Config, name: str) -> bool:
    """Whether the class that a node describes has a parameter of this name."""
    return name in inspect.signature(target(node["_target_"], name)).parameters


def build(node: Any, key: str = "config", /, **given: Any) -> Any:
    """The object that the checked config at `key` describes; `given` goes to the outermost one.

    `_partial_: true` gives a function that still needs the rest of the arguments.

    Raises:
        ConfigError: naming the key, if an argument is missing or the class refuses one.
    """
    if isinstance(node, list):
        return [build(item, f"{key}[{i}]") for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    arguments = {
        name: build(value, f"{key}.{name}")
        for name, value in node.items()
        if name not in ("_target_", "_partial_")
    }
    if "_target_" not in node:
        return arguments
    make = _maker(target(node["_target_"], key), key, {**arguments, **given})
    return make if node.get("_partial_") else make()


def _maker(cls: type, key: str, arguments: Config) -> Callable[..., Any]:
    def make(**late: Any) -> Any:
        everything = {**arguments, **late}
        try:
            inspect.signature(cls).bind(**everything)
        except TypeError as error:
            raise ConfigError(f"{key} ({cls.__qualname__}): {error}") from error
        try:
            return cls(**everything)
        except GenlabError:
            raise
        except Exception as error:
            if cls.__module__.split(".")[0] in _homes():
                raise
            message = " ".join(str(error).split())
            raise ConfigError(f"{key} ({cls.__qualname__}): {message}") from error

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

    It was written resolved: an interpolation in it is text, and is not looked up here.

    Raises:
        ConfigError: if it does not parse or names something that may not be built.
    """
    try:
        config = OmegaConf.to_container(OmegaConf.create(text))
    except Exception as error:
        raise ConfigError(f"{name} is no readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{name} holds no mapping")
    return {str(key): check(value, str(key)) for key, value in config.items()}
