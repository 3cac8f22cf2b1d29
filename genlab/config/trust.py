"""Check a config from a run directory, which may be from another person, before it is built.

A config that the user writes may name any importable class of the kind that its place needs (see
`genlab.config.check`). A received one is checked here first, by the annotations of the parameters
alone: in each place only a class of the annotated kind, of genlab's models or of a package that its
reader names; below it only annotated parameters, with plain values. Nothing is built meanwhile, and
no module of another package is imported.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, Union

from genlab.config.check import hints, import_class, shown, unknown
from genlab.errors import ConfigError

#: The packages of genlab whose classes a received config may name.
MODEL_PACKAGES = (
    "genlab.vae",
    "genlab.diffusion",
    "genlab.gan",
    "genlab.nets",
    "genlab.codecs",
)

_SCALARS = (bool, int, float, str, type(None))
_ITEMS = 10_000
_LISTS = (list, tuple, Sequence)
_UNIONS = (Union, types.UnionType)
_PUBLIC = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")
_MODULE = "torch.nn.modules.module.Module"


def check_received(value: Any, annotation: Any, key: str, packages: Collection[str] = ()) -> None:
    """Refuse what a received config may not say at `key`, whose parameter has this annotation.

    The types of plain values are left to `genlab.config.check.check`, which comes afterwards.

    Args:
        packages: those whose classes may be named beside those of genlab's models: top-level ones,
            or a package within genlab.

    Raises:
        ConfigError: naming the key, the value and what would be right.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if not _is_admitted(annotation, packages):
        raise ConfigError(
            f"{key}={shown(value)} is refused: a run directory may only give numbers, strings, "
            "booleans, lists of these and components, and this parameter takes something else"
        )
    if origin in _UNIONS:
        _check_one_of(value, arguments, key, packages)
    elif origin in _LISTS:
        if not isinstance(value, list) or len(value) > _ITEMS:
            raise ConfigError(f"{key}={shown(value)}: a list of at most {_ITEMS:,} is needed")
        kinds = [kind for kind in arguments if kind is not Ellipsis]
        for i, part in enumerate(value):
            _check_one_of(part, kinds, f"{key}[{i}]", packages)
    elif origin is Callable:
        _check_component(value, arguments[-1], key, packages, partial=True)
    elif not _is_scalar(annotation):
        _check_component(value, annotation, key, packages)
    elif type(value) not in _SCALARS:
        raise ConfigError(
            f"{key}={shown(value)}: a number, a string, true, false or null is needed"
        )
    elif isinstance(value, int) and abs(value) >= 1 << 63:
        raise ConfigError(f"{key}: a number of this size is no value; give one below 2^63")


def _is_scalar(annotation: Any) -> bool:
    return annotation in _SCALARS or typing.get_origin(annotation) is Literal


def _is_admitted(annotation: Any, packages: Collection[str]) -> bool:
    """Return whether an annotation says which plain values or which component it takes."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in _UNIONS or (origin in _LISTS and arguments):
        return all(a is Ellipsis or _is_admitted(a, packages) for a in arguments)
    if origin is Callable:
        return bool(arguments) and _is_kind(arguments[-1], packages)
    return _is_scalar(annotation) or _is_kind(annotation, packages)


def _is_kind(annotation: Any, packages: Collection[str]) -> bool:
    """Return whether this is a class of whose kind a received config may name another."""
    if not inspect.isclass(annotation):
        return False
    name = f"{annotation.__module__}.{annotation.__qualname__}"
    return name == _MODULE or _is_trusted(name, packages)


def _is_trusted(name: str, packages: Collection[str]) -> bool:
    if name.partition(".")[0] == "genlab":
        within = [package for package in packages if package.startswith("genlab.")]
        return name.startswith(tuple(f"{package}." for package in (*MODEL_PACKAGES, *within)))
    return name.partition(".")[0] in packages


def _check_one_of(value: Any, members: Sequence[Any], key: str, packages: Collection[str]) -> None:
    if isinstance(value, dict | list):  # else the error would be about a scalar
        members = [m for m in members if not _is_scalar(m)] or members
    refused: list[ConfigError] = []
    for member in members:
        try:
            return check_received(value, member, key, packages)
        except ConfigError as error:
            refused.append(error)
    raise refused[0]


def _check_component(
    node: Any, kind: type[Any], key: str, packages: Collection[str], partial: bool = False
) -> None:
    if not isinstance(node, dict):
        raise ConfigError(f"{key}={shown(node)}: {kind.__name__} is needed")
    if "_target_" not in node and not kind.__module__.startswith("genlab."):
        raise ConfigError(f"{key}={shown(node)}: {kind.__name__} is needed; give its _target_")
    cls = _import(node["_target_"], key, packages) if "_target_" in node else kind
    if kind not in inspect.getmro(cls):
        raise ConfigError(f"{key}._target_={node['_target_']!r}: {kind.__name__} is needed")
    if node.get("_partial_", False) is not partial:
        raise ConfigError(f"{key}._partial_={shown(not partial)}: {shown(partial)} is needed here")
    declared = _declared(cls)
    for name, value in node.items():
        if name in ("_target_", "_partial_"):
            continue
        if name not in declared:
            text = repr(name[:100])[1:-1] if isinstance(name, str) else shown(name)
            raise ConfigError(
                f"{key}.{text}={shown(value)}: {unknown(text, declared)}; a run directory may only "
                f"give the annotated parameters of {cls.__name__}"
            )
        check_received(value, declared[name], f"{key}.{name}", packages)


def _import(name: object, key: str, packages: Collection[str]) -> type[Any]:
    """Import the class that a received config names, once its module is known to be trusted.

    The class must be defined in a trusted package too, not imported there from elsewhere.
    """
    is_public = isinstance(name, str) and len(name) <= 200 and _PUBLIC.fullmatch(name)
    cls = import_class(name, key) if is_public and _is_trusted(str(name), packages) else None
    if cls is None or not _is_trusted(f"{cls.__module__}.{cls.__qualname__}", packages):
        raise ConfigError(
            f"{key}._target_={shown(name)} is refused: a run directory may only name classes of "
            "genlab's models, and of packages that are trusted with --trust PACKAGE"
        )
    return cls


def _declared(cls: type[Any]) -> dict[str, Any]:
    """Return the annotations of the parameters by name; `*args` and `**kwargs` are none."""
    annotations = hints(cls)
    return {
        parameter.name: annotations[parameter.name]
        for parameter in inspect.signature(cls.__init__).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name in annotations
    }
