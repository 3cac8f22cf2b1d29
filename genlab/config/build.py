"""Construction of objects from checked configs; error messages begin with the config key."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Mapping
from typing import Any

from genlab.config.check import Config, import_class
from genlab.errors import ConfigError, GenlabError, under


class Partial(functools.partial[Any]):
    """A class with some of its arguments (`_partial_: true`); the caller adds the others.

    Attributes:
        key: its key in the config, with which error messages begin.
    """

    key: str

    def __call__(self, /, *args: Any, **late: Any) -> Any:
        cls, keywords = self.func, {**self.keywords, **late}
        try:
            inspect.signature(cls).bind(*args, **keywords)
        except TypeError as error:
            raise ConfigError(f"{self.key} ({cls.__qualname__}): {error}") from error
        try:
            return cls(*args, **keywords)
        except GenlabError:
            raise
        except Exception as error:
            is_own = cls.__module__.partition(".")[0] == "genlab"
            if is_own and not isinstance(error, ValueError):
                raise
            raise ConfigError(_explained(self.key, cls, keywords, error)) from error


def build(node: Any, key: str = "config", /, **given: Any) -> Any:
    """Build the object that the checked config at `key` describes.

    `given` are more arguments of the outermost object. `_partial_: true` gives a `Partial`.

    Raises:
        ConfigError: if an argument is missing or the class refuses one; the message names the key.
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
    make = Partial(import_class(node["_target_"], key), **{**arguments, **given})
    make.key = key
    return make if node.get("_partial_") else make()


def takes(node: Config, name: str) -> bool:
    """Return True if the class that a node describes has a parameter of this name."""
    return name in inspect.signature(import_class(node["_target_"], name)).parameters


def _explained(key: str, cls: Any, arguments: Mapping[str, Any], error: Exception) -> str:
    """Return the message of an error of a class, with the key of the argument that it is about."""
    message = " ".join(str(error).split()) or type(error).__name__
    parameters = set(inspect.signature(cls).parameters)
    sentence = under(key, message, parameters)
    if sentence.startswith(f"{key}."):
        return sentence
    # classes of other packages often name the value, but not the parameter
    words = set(re.findall(r"[^\s,:;()\[\]'\"]+", message))
    about = [
        name
        for name, value in arguments.items()
        if any(str(part) in words for part in (value if isinstance(value, list) else [value]))
    ]
    if len(about) == 1:
        return f"{key}.{about[0]}={arguments[about[0]]}: {message}"
    return (
        sentence if cls.__module__.startswith("genlab.") else f"{key} ({cls.__name__}): {message}"
    )
