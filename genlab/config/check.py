"""Checks of resolved configs against class signatures, before any object is built.

A `_target_` must name a class of the required kind, its keys must be parameters of that class, and
its values must have the annotated types (an integer is converted to float if a float is annotated,
so that `kl_weight=30` and `kl_weight=30.0` are the same run).
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, Union

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genlab.config.compose import directory, options
from genlab.config.trust import OWN, Trust, import_class
from genlab.errors import ConfigError

Config = dict[str, Any]

_SCALARS = (bool, int, float, str)
_UNIONS = (Union, types.UnionType)


def resolve(cfg: DictConfig) -> Config:
    """Convert a composed config to plain containers, with all interpolations resolved.

    Raises:
        ConfigError: if values are missing, all of which the message lists, or an interpolation
            cannot be resolved.
    """
    try:
        config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        with contextlib.suppress(OmegaConfBaseException):  # another reference may be wrong as well
            if missing := sorted(OmegaConf.missing_keys(cfg)):
                told = f"no value for {', '.join(missing)}: give one on the command line"
                raise ConfigError(told) from error
        raise ConfigError(" ".join(str(error).split())) from error
    if not isinstance(config, dict):
        raise ConfigError(f"the configuration is a {type(config).__name__}: a mapping is needed")
    return {str(key): value for key, value in config.items()}


def check(node: Any, key: str, trust: Trust = OWN) -> Any:
    """Check every `_target_`, key and value below `node`; return it with values of the right type.

    Raises:
        ConfigError: with a message that names the key, the value and what is expected.
    """
    if isinstance(node, dict):
        if "_target_" in node:
            return _check_target(node, key, trust)
        return {name: check(value, f"{key}.{name}", trust) for name, value in node.items()}
    if isinstance(node, list):
        return [check(value, f"{key}[{i}]", trust) for i, value in enumerate(node)]
    return node


def _check_target(node: Config, key: str, trust: Trust) -> Config:
    cls = import_class(node["_target_"], key, trust)
    parameters = inspect.signature(cls).parameters
    hints = _hints(cls)
    checked: Config = {}
    for name, value in node.items():
        place = f"{key}.{name}"
        if name == "_target_":
            checked[name] = value
        elif name == "_partial_":
            checked[name] = coerce(value, bool, place, trust)
        elif name in parameters:
            hint = hints.get(name, Any)
            if not trust.is_open:
                _refuse_open_place(value, hint, place)
            checked[name] = coerce(check(value, place, trust), hint, place, trust)
        elif trust.is_open and any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            checked[name] = check(value, place, trust)
        else:
            raise ConfigError(f"{place}={value!r}: {unknown(name, parameters)}")
    return checked


def _refuse_open_place(value: Any, hint: Any, key: str) -> None:
    """Refuse a class in a received config where the annotation does not say of which kind it is.

    Raises:
        ConfigError: naming the key.
    """
    members = typing.get_args(hint) if typing.get_origin(hint) in _UNIONS else (hint,)
    kinds = [typing.get_args(m)[-1] if typing.get_origin(m) is Callable else m for m in members]
    if any(inspect.isclass(kind) and kind not in (Any, object, dict, list) for kind in kinds):
        return  # `coerce` holds it against this kind
    if isinstance(value, dict) and "_target_" in value:
        raise ConfigError(
            f"{key}._target_={value['_target_']!r} is refused: a run directory may name a class "
            "only where one of a certain kind is needed"
        )
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in parts:
            _refuse_open_place(part, Any, f"{key}.{name}")


def unknown(name: str, known: Iterable[str]) -> str:
    """Return the part of a message that suggests a key for an unknown one."""
    known = [k for k in known if k != "self"]
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
    return f"there is no such key; {guess}"


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    except (NameError, TypeError):  # an annotation that only type checkers can resolve
        return {}


def coerce(value: Any, hint: Any, key: str, trust: Trust = OWN) -> Any:
    """Convert `value` to the annotated type, if no information is lost.

    If a class of genlab, or a function that returns one, is annotated, the value must be a node
    with a fitting `_target_`; for a class that is not abstract, the `_target_` may be left out.

    Raises:
        ConfigError: with a message that names the key, the value and the expected type.
    """
    if hint is Any:
        return value
    origin = typing.get_origin(hint)
    if origin in _UNIONS:
        return _coerce_to_one_of(value, typing.get_args(hint), key, trust)
    if origin is Literal:
        choices = typing.get_args(hint)
        if isinstance(value, bool) or value not in choices:
            known = ", ".join(dict.fromkeys(map(str, choices)))
            raise ConfigError(f"{key}={shown(value)}: choose one of {known}")
        return value
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key}={shown(value)}: a list is needed")
        kinds = typing.get_args(hint) or (Any,)
        if origin is not tuple or Ellipsis in kinds:
            kinds = kinds[:1] * len(value)
        if len(value) != len(kinds):
            raise ConfigError(f"{key}={shown(value)}: a list of {len(kinds)} is needed")
        return [
            coerce(item, kind, f"{key}[{i}]", trust)
            for i, (item, kind) in enumerate(zip(value, kinds, strict=True))
        ]
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{key}={shown(value)}: a number is needed")
        return float(value)
    if hint is int:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value != int(value):
            raise ConfigError(f"{key}={shown(value)}: a whole number is needed")
        return int(value)
    if hint is bool and not isinstance(value, bool):
        raise ConfigError(f"{key}={shown(value)}: true or false is needed")
    if hint is str and not isinstance(value, str):
        raise ConfigError(f"{key}={shown(value)}: a string is needed")
    if origin is Callable:
        made = (typing.get_args(hint) or (Any,))[-1]
        kind = made if inspect.isclass(made) and made is not Any else object
        return need(value, kind, key, True, trust)
    if inspect.isclass(hint) and hint.__module__.partition(".")[0] == "genlab":
        if isinstance(value, dict) and "_target_" not in value and not inspect.isabstract(hint):
            name = f"{hint.__module__}.{hint.__qualname__}"
            return _check_target({"_target_": name, **value}, key, trust)
        return need(value, hint, key, trust=trust)
    if isinstance(value, dict) and "_target_" in value and inspect.isclass(hint):
        return need(value, hint, key, trust=trust)
    if value is None and inspect.isclass(hint) and hint is not type(None):
        raise ConfigError(f"{key} is null: a {hint.__name__} is needed")
    return value


def _coerce_to_one_of(value: Any, members: Sequence[Any], key: str, trust: Trust) -> Any:
    if value is None and type(None) in members:
        return None
    members = [m for m in members if m is not type(None)]
    if all(typing.get_origin(member) is Literal for member in members):
        choices = tuple(choice for m in members for choice in typing.get_args(m))
        return coerce(value, Literal[choices], key, trust)
    if type(value) in members and type(value) in _SCALARS:
        return value
    # if a scalar type is allowed, a scalar must not be coerced to an object of a class
    if isinstance(value, _SCALARS) and any(member in _SCALARS for member in members):
        is_open = any(typing.get_origin(m) is Literal or not inspect.isclass(m) for m in members)
        members = members if is_open else [m for m in members if m in _SCALARS]
    for member in members[:-1]:
        with contextlib.suppress(ConfigError):
            return coerce(value, member, key, trust)
    return coerce(value, members[-1], key, trust)


def shown(value: Any) -> str:
    """Format a value as in YAML; for a mapping, only its keys."""
    if isinstance(value, dict) and value:
        return "{" + ", ".join(f"{key}: ..." for key in value) + "}"
    plain = {None: "null", True: "true", False: "false"}
    return plain[value] if value is None or isinstance(value, bool) else repr(value)


def need(node: Any, kind: type, key: str, partial: bool = False, trust: Trust = OWN) -> Config:
    """Return `node` if it describes an object of this kind, or with `partial` a `Partial` of it.

    Raises:
        ConfigError: with a message that names the key, the value and what is expected.
    """
    wanted = "component" if kind is object else kind.__name__
    if not isinstance(node, dict) or "_target_" not in node:
        parameters = ", ".join(inspect.signature(kind).parameters)
        remedy = f"give its keys, {parameters}" if is_dataclass(kind) else "give its _target_"
        raise ConfigError(
            f"{key}={shown(node)}: {wanted} is needed; {_choices(kind, key) or remedy}"
        )
    if not issubclass(import_class(node["_target_"], key, trust), kind):
        known = _choices(kind, key)
        raise ConfigError(
            f"{key}._target_={node['_target_']!r}: {wanted} is needed" + (known and f"; {known}")
        )
    if bool(node.get("_partial_")) is not partial:
        raise ConfigError(f"{key}._partial_={shown(not partial)}: {shown(partial)} is needed here")
    return node


def _choices(kind: type, key: str) -> str:
    """List the files at `key` that describe an object of this kind; empty if there are none."""
    group = key.replace(".", "/")
    fitting = []
    for name in options(group):
        node: Any = OmegaConf.load(directory() / group / f"{name}.yaml")
        # a file with defaults may get its _target_ from another file
        is_open = is_dataclass(kind) or "defaults" in node
        is_named = "_target_" in node
        fits = issubclass(import_class(node["_target_"], key), kind) if is_named else is_open
        fitting += [name] if fits else []
    return f"choose one as {group}=NAME, of {', '.join(fitting)}" if fitting else ""


def to_yaml(config: Mapping[str, Any]) -> str:
    """Convert a config to YAML, from which `from_yaml` makes the same config."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))


def from_yaml(text: str, name: str) -> Config:
    """Parse the config of a run directory, which may be from another person, without checking it.

    The file was written resolved, so an interpolation in it is text and is not resolved here.

    Raises:
        ConfigError: if it cannot be parsed.
    """
    try:
        config = OmegaConf.to_container(OmegaConf.create(text))
    except Exception as error:
        raise ConfigError(f"{name} is no readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{name} holds no mapping")
    return {str(key): value for key, value in config.items()}
