"""The errors that genlab raises on purpose, their exit codes, and two checks of numbers.

Every message is one sentence that names the key, the value and what is expected, since it is
printed alone, without a traceback. A component does not know its key: it raises a ValueError that
begins with the name of its own parameter, and `genlab.config.build` puts the key before it.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

DONE, TRAINING_FAILED, REFUSED, INTERRUPTED, PREEMPTED = 0, 1, 2, 130, 143


#: Errors of the system that mean a lack of room.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class GenlabError(Exception):
    """Base class of every error that genlab raises on purpose."""

    exit_code = TRAINING_FAILED


class ConfigError(GenlabError):
    """The configuration was refused before any work was done."""

    exit_code = REFUSED


class DataError(GenlabError):
    """The data is missing, altered, or does not fit the configuration."""

    exit_code = REFUSED


class RunDirectoryError(GenlabError):
    """A run directory cannot be written, is in use, or lacks a requested file."""

    exit_code = REFUSED


class TrainingError(GenlabError):
    """Training itself failed, for instance by a loss that is not finite."""

    exit_code = TRAINING_FAILED


def is_full(error: OSError) -> bool:
    """Return whether a write failed for lack of room, and not of permission."""
    return error.errno in _NO_ROOM


def number(
    name: str,
    value: Any,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
) -> float:
    """Return `value` as a float.

    Raises:
        ValueError: if it is not a finite number in the range; the message begins with `name=value`.
    """
    fits = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and at_least <= value <= at_most
        and value > above
    )
    if not fits:
        bounds = [
            f"{word} {limit:g}"
            for word, limit in (("at least", at_least), ("above", above), ("at most", at_most))
            if math.isfinite(limit)
        ]
        wanted = ", ".join(["a finite number", *bounds])
        raise ValueError(f"{name}={value!r}: give {wanted}")
    return float(value)


def whole(name: str, value: Any, at_least: int, at_most: float = math.inf) -> int:
    """Return `value`.

    Raises:
        ValueError: if it is not a whole number in the range.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not at_least <= value <= at_most:
        end = f" and at most {at_most}" if math.isfinite(at_most) else ""
        raise ValueError(f"{name}={value!r}: give a whole number of at least {at_least}{end}")
    return int(value)


@contextmanager
def naming(parameter: str) -> Iterator[None]:
    """Put the name of a parameter before the message of a ValueError that its object raises.

    A parent uses it when it calls the `check` of a component, so that the builder finds the key.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(under(parameter, str(error))) from error


@contextmanager
def at_key(key: str) -> Iterator[None]:
    """Convert a ValueError of the component at `key` to a ConfigError that begins with the key.

    Raises:
        ConfigError: instead of the ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise ConfigError(under(key, str(error))) from error


def under(key: str, message: str, parameters: Container[str] | None = None) -> str:
    """Put a key before the message of a component, which does not know its key.

    A message that begins with `name=value`, or with a name that is one of the `parameters`, is
    about a key below this one: `under("model", "steps=0: ...")` is "model.steps=0: ...".
    """
    found = re.match(r"([A-Za-z_]\w*)([=.:\[]| is | of )", message)
    if found and (found[2] == "=" or (parameters is not None and found[1] in parameters)):
        return f"{key}.{message}"
    return f"{key}: {message}"
