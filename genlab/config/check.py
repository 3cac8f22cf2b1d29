"""Checks of resolved configs against class signatures, before any object is built.

A `_target_` must name a class of the required kind, its keys must be parameters of that class, and
its values must have the annotated types (an integer is converted to float if a float is annotated,
so that `kl_weight=30` and `kl_weight=30.0` are the same run).
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, Union

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genlab.config import received_yaml
from genlab.config.compose import directory, options
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


def import_class(name: object, key: str) -> type[Any]:
    """Import the class that a `_target_` names.

    Raises:
        ConfigError: if it cannot be imported, or is not a class.
    """
    given = f"{key}._target_={name!r}"
    if not isinstance(name, str) or "." not in name:
        raise ConfigError(f"{given}: give a class with its module, such as torch.optim.SGD")
    module_name, _, class_name = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{given}: {error}") from error
    if not inspect.isclass(found):
        raise ConfigError(f"{given}: this is no class but a {type(found).__name__}")
    return found


def check(node: Any, key: str) -> Any:
    """Check every `_target_`, key and value below `node`; return it with values of the right type.

    Raises:
        ConfigError: with a message that names the key, the value and what is expected.
    """
    if isinstance(node, dict):
        if "_target_" in node:
            return _check_target(node, key)
        return {name: check(value, f"{key}.{name}") for name, value in node.items()}
    if isinstance(node, list):
        return [check(value, f"{key}[{i}]") for i, value in enumerate(node)]
    return node


def _check_target(node: Config, key: str) -> Config:
    cls = import_class(node["_target_"], key)
    parameters = inspect.signature(cls).parameters
    annotated = hints(cls)
    checked: Config = {}
    for name, value in node.items():
        place = f"{key}.{name}"
        if name == "_target_":
            checked[name] = value
        elif name == "_partial_":
            checked[name] = coerce(value, bool, place)
        elif name in parameters:
            hint = annotated.get(name, Any)
            checked[name] = coerce(check(value, place), hint, place)
        elif any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            checked[name] = check(value, place)
        else:
            # what a partial lacks, such as the parameters of an optimizer, is not for a config
            known = [
                parameter
                for parameter, kind in parameters.items()
                if parameter in node or kind.default is not kind.empty or "_partial_" not in node
            ]
            raise ConfigError(f"{place}={value!r}: {unknown(name, known)}")
    return checked


def unknown(name: str, known: Iterable[str]) -> str:
    """Return the part of a message that suggests a key for an unknown one."""
    known = [k for k in known if k != "self"]
    close = difflib.get_close_matches(name, known, n=1)
    listed = f"known are {', '.join(sorted(known))}" if known else "none is known here"
    guess = f"did you mean {close[0]}?" if close else listed
    return f"there is no such key; {guess}"


def hints(cls: type) -> dict[str, Any]:
    """Return the annotations of the parameters of a class; none if they cannot be resolved."""
    # the __init__ of a dataclass is made in its own module, which lacks the names of its bases
    described: list[Any] = [cls.__init__]  # type: ignore[misc]
    described += [cls] if is_dataclass(cls) else []
    for one in described:
        with contextlib.suppress(NameError, TypeError):  # only type checkers can resolve it
            return _type_hints(one)
    return {}


@functools.cache
def _type_hints(described: Any) -> dict[str, Any]:
    return typing.get_type_hints(described)


def coerce(value: Any, hint: Any, key: str) -> Any:
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
        return _coerce_to_one_of(value, typing.get_args(hint), key)
    if origin is Literal:
        choices = typing.get_args(hint)
        # true equals 1
        if not any(c == value and isinstance(c, bool) == isinstance(value, bool) for c in choices):
            words = (c if isinstance(c, str) else shown(c) for c in choices)
            known = ", ".join(dict.fromkeys(words))
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
            coerce(item, kind, f"{key}[{i}]")
            for i, (item, kind) in enumerate(zip(value, kinds, strict=True))
        ]
    if hint is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or (isinstance(value, int) and abs(value) > sys.float_info.max):
            raise ConfigError(f"{key}={shown(value)}: a number is needed")
        return float(value)
    if hint is int:
        is_whole = value.is_integer() if isinstance(value, float) else type(value) is int
        if not is_whole:
            raise ConfigError(f"{key}={shown(value)}: a whole number is needed")
        return int(value)
    if hint is bool and not isinstance(value, bool):
        raise ConfigError(f"{key}={shown(value)}: true or false is needed")
    if hint is str and not isinstance(value, str):
        raise ConfigError(f"{key}={shown(value)}: a string is needed")
    if origin is Callable:
        return need(value, _kind(hint), key, True)
    if inspect.isclass(hint) and hint.__module__.partition(".")[0] == "genlab":
        if isinstance(value, dict) and "_target_" not in value and not inspect.isabstract(hint):
            name = f"{hint.__module__}.{hint.__qualname__}"
            return _check_target({"_target_": name, **value}, key)
        return need(value, hint, key)
    if isinstance(value, dict) and "_target_" in value and inspect.isclass(hint):
        return need(value, hint, key)
    if value is None and inspect.isclass(hint) and hint is not type(None):
        raise ConfigError(f"{key} is null: a {hint.__name__} is needed")
    return value


def _coerce_to_one_of(value: Any, members: Sequence[Any], key: str) -> Any:
    if value is None and type(None) in members:
        return None
    members = [m for m in members if m is not type(None)]
    if all(typing.get_origin(member) is Literal for member in members):
        choices = tuple(choice for m in members for choice in typing.get_args(m))
        return coerce(value, Literal[choices], key)
    if type(value) in members and type(value) in _SCALARS:
        return value
    # if a scalar type is allowed, a scalar must not be coerced to an object of a class
    if isinstance(value, _SCALARS) and any(member in _SCALARS for member in members):
        is_open = any(typing.get_origin(m) is Literal or not inspect.isclass(m) for m in members)
        members = members if is_open else [m for m in members if m in _SCALARS]
    for member in members[:-1]:
        with contextlib.suppress(ConfigError):
            return coerce(value, member, key)
    return coerce(value, members[-1], key)


def shown(value: Any) -> str:
    """Format a value as in YAML; for a mapping, only its keys; at most 200 characters."""
    plain = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return plain[value]
    try:
        text = (
            f"{{{', '.join(f'{key}: ...' for key in value)}}}"
            if value and isinstance(value, dict)
            else repr(value)
        )
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of more than 4,300 digits"
    return text if len(text) <= 200 else f"{text[:197]}..."


def need(node: Any, kind: type, key: str, partial: bool = False) -> Config:
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
    if not issubclass(import_class(node["_target_"], key), kind):
        known = _choices(kind, key)
        raise ConfigError(
            f"{key}._target_={node['_target_']!r}: {wanted} is needed" + (known and f"; {known}")
        )
    if bool(node.get("_partial_")) is not partial:
        raise ConfigError(f"{key}._partial_={shown(not partial)}: {shown(partial)} is needed here")
    return node


def _choices(kind: type, key: str) -> str:
    """List the files at `key` that describe an object of this kind; empty if there are none."""
    known = fitting(kind, key)
    return f"choose one as {key.replace('.', '/')}=NAME, of {', '.join(known)}" if known else ""


def fitting(hint: Any, key: str) -> list[str]:
    """Return the files at `key` that describe an object of the annotated type."""
    kind = _kind(hint)
    group = key.replace(".", "/")
    found = []
    for name in options(group):
        node: Any = OmegaConf.load(directory() / group / f"{name}.yaml")
        # a file with defaults may get its _target_ from another file; a dataclass needs none
        is_fields = is_dataclass(kind) and {*node} <= {*inspect.signature(kind).parameters}
        is_open = is_fields or "defaults" in node
        is_named = "_target_" in node
        fits = issubclass(import_class(node["_target_"], key), kind) if is_named else is_open
        found += [name] if fits else []
    return found


def _kind(hint: Any) -> type:
    """Return the class of an annotation: what a function returns, what an optional one may be."""
    if typing.get_origin(hint) in _UNIONS:
        return next((_kind(m) for m in typing.get_args(hint) if m is not type(None)), object)
    if typing.get_origin(hint) is Callable:
        return _kind((typing.get_args(hint) or (Any,))[-1])
    return hint if inspect.isclass(hint) and hint is not Any else object


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
        received_yaml.check(text)
        config = OmegaConf.to_container(OmegaConf.create(text))
        if not isinstance(config, dict):
            raise ValueError("it holds no mapping")
        return {str(key): value for key, value in config.items()}
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name} is no readable YAML: {reason}") from error
