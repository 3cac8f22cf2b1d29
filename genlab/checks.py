"""Refusal of numbers that make no sense, by the object that they configure."""

from __future__ import annotations

import math
from typing import Any

from genlab.errors import ConfigError


def number(
    key: str,
    value: Any,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
) -> float:
    """`value` as a float; ConfigError unless it is a finite number in the range."""
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
        raise ConfigError(f"{key}={value!r}: give {wanted}")
    return float(value)


def whole(key: str, value: Any, at_least: int) -> int:
    """`value` itself; ConfigError unless it is a whole number of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"{key}={value!r}: give a whole number of at least {at_least}")
    return value
