"""Limits on the classes that a config may name.

A config that the user writes, on the command line or in a YAML file, may name any class of the
required kind, also from a package in the working directory. A config from a run directory may be
from another person: it may only name classes of genlab, and of packages that the user trusts.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from genlab.errors import ConfigError


@dataclass(frozen=True)
class Trust:
    """The packages whose classes a config may name.

    Attributes:
        packages: the top-level packages; None for any package.
    """

    packages: frozenset[str] | None = None

    @property
    def is_open(self) -> bool:
        """True if a config may name classes of any package."""
        return self.packages is None

    def admits(self, module: str) -> bool:
        """Return True if a module is in one of the packages."""
        return self.packages is None or module.partition(".")[0] in self.packages


#: Trust in a config that the user wrote.
OWN = Trust()


def received(packages: Iterable[str] = ()) -> Trust:
    """Return the trust in a config from a run directory: genlab and the given packages."""
    return Trust(frozenset({"genlab", *packages}))


def import_class(name: object, key: str, trust: Trust = OWN) -> type[Any]:
    """Import the class that a `_target_` names.

    The class must be defined in a trusted package, so that a name which a trusted module imports
    from elsewhere is refused too.

    Raises:
        ConfigError: if it is not trusted, cannot be imported, or is not a class.
    """
    given = f"{key}._target_={name!r}"
    if not isinstance(name, str) or "." not in name:
        raise ConfigError(f"{given}: give a class with its module, such as torch.optim.SGD")
    refused = ConfigError(
        f"{given} is refused: a run directory may only name classes of genlab, and of packages "
        "that are trusted with --trust PACKAGE"
    )
    module_name, _, class_name = name.rpartition(".")
    if not trust.admits(module_name):
        raise refused
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{given}: {error}") from error
    if not inspect.isclass(found):
        raise ConfigError(f"{given}: this is no class but a {type(found).__name__}")
    if not trust.admits(found.__module__):
        raise refused
    return found
