"""Checks of values that come from a checkpoint, before anything uses them."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: Limits of numbers, and of containers within containers.
LARGEST, DEEPEST = 2**53, 40


def check_plain(content: Any, size: int) -> None:
    """Check that a value holds dense tensors and plain containers alone, and is not too large.

    Args:
        size: of the file in bytes. A value that holds more, since it holds the same parts many
            times, is refused.

    Raises:
        ValueError: the message begins with the entry, such as `callbacks.x`.
    """
    left = 2 * size
    for entry, value in _entries(content):
        left -= 1
        if isinstance(value, Tensor):
            check_dense(value, entry)
            if not entry.startswith("state_dict."):  # a layer may be there by several names
                left -= value.nbytes
        elif isinstance(value, str | bytes):
            left -= len(value)
        if left < 0:
            raise ValueError(f"{entry}: until here are more values than a file of its size holds")


def _entries(value: Any, entry: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield all values within a value, with their places."""
    if depth > DEEPEST:
        raise ValueError(f"{reprlib.repr(entry)}: more than {DEEPEST} containers in each other")
    yield entry or "the content", value
    kind = type(value)
    if issubclass(kind, dict):
        for key, part in value.items():
            yield from _entries(key, f"a key of {entry}" if entry else "a key", depth + 1)
            yield from _entries(part, under(entry, key), depth + 1)
    elif issubclass(kind, list | tuple | set):
        for number, part in enumerate(value):
            yield from _entries(part, under(entry, number), depth + 1)
    elif not (
        value is None
        or kind in (bool, float, str, bytes, torch.dtype, torch.device)
        or (kind is int and abs(value) < 2**64)
        or isinstance(value, Tensor)
    ):
        raise ValueError(f"{entry}: {reprlib.repr(value)} is neither a tensor nor a plain value")


def under(entry: str, key: object) -> str:
    """Append a key to the place of its container."""
    name = key if isinstance(key, str) and key.isprintable() and len(key) < 80 else None
    return f"{entry}.{name or reprlib.repr(key)}".lstrip(".")


def check_dense(value: Any, entry: str) -> None:
    """Check that a value is a tensor on the CPU whose elements are all in the file.

    Raises:
        ValueError: the message begins with `entry`.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{entry}: a tensor is needed, not {reprlib.repr(value)}")
    is_dense = (
        type(value) in (Tensor, nn.Parameter)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_nested)
        and not vars(value)
    )
    if not is_dense:
        layout = str(value.layout).removeprefix("torch.")
        raise ValueError(
            f"{entry}: a dense tensor is needed, not a {layout} {type(value).__name__} on "
            f"{value.device}"
        )
    if value.nbytes > value.untyped_storage().nbytes():
        raise ValueError(
            f"{entry}: a tensor of shape {tuple(value.shape)} needs {value.nbytes:,} bytes, and "
            f"the file holds {value.untyped_storage().nbytes():,}"
        )


def kind_of(tensor: Tensor) -> str:
    """Return the kind of a tensor's elements: bool, integer, floating or complex."""
    if tensor.dtype is torch.bool:
        return "bool"
    if tensor.is_complex():
        return "complex"
    return "floating" if tensor.is_floating_point() else "integer"


def check_like(value: Any, like: Any, entry: str) -> None:
    """Check that a value has the structure of another, which the object that takes it made itself.

    Dicts need the same keys, lists the same length, tensors the same shape and kind; an empty
    container admits any container of its type, and None any plain value.

    Raises:
        ValueError: the message begins with the entry.
    """
    if isinstance(like, Tensor):
        check_dense(value, entry)
        is_like = value.shape == like.shape and kind_of(value) == kind_of(like)
        wanted = f"a {kind_of(like)} tensor of shape {tuple(like.shape)}"
    elif isinstance(like, Mapping):
        is_like, wanted = isinstance(value, dict), "a mapping"
    elif isinstance(like, list | tuple):
        is_like = isinstance(value, list | tuple) and (not like or len(value) == len(like))
        wanted = f"a list of {len(like)} values" if like else "a list"
    elif like is None:
        is_like = value is None or isinstance(value, bool | int | float | str)
        wanted = "a plain value"
    elif isinstance(like, int | float) and not isinstance(like, bool):
        is_like, wanted = _is_number(value), "a number"
    else:
        is_like, wanted = type(value) is type(like), f"a value like {reprlib.repr(like)}"
    if not is_like:
        raise ValueError(f"{entry}: {wanted} is needed, not {_shown(value)}")
    if isinstance(like, Mapping) and like:
        _check_keys(value, like, entry)
        for key, part in like.items():
            check_like(value[key], part, under(entry, key))
    elif isinstance(like, list | tuple):
        for number, part in enumerate(like):
            check_like(value[number], part, under(entry, number))


def check_counters(value: Any, like: Any, entry: str) -> None:
    """Check that a value has the structure of nested counters, and that each is a whole number.

    Raises:
        ValueError: the message begins with the entry.
    """
    check_like(value, like, entry)
    if isinstance(like, Mapping):
        for key, part in like.items():
            check_counters(value[key], part, under(entry, key))
    elif type(like) is int and not (type(value) is int and 0 <= value < LARGEST):
        raise ValueError(f"{entry}={reprlib.repr(value)}: a whole number of 0 or more is needed")


def check_optimizer(value: Any, like: Any, entry: str) -> None:
    """Check the state of an optimizer against that of another one, which has taken a step.

    Settings that are no numbers, such as `fused`, need the same value. Tensors need the same shape
    and an own place in memory, since fused kernels do not check them. Which entries of a parameter
    there are, and how many elements a list has, may depend on the past.

    Raises:
        ValueError: the message begins with the entry.
    """
    if isinstance(like, Mapping) and "param_groups" in like:
        check_like(value, {**like, "state": {}}, entry)
        check_optimizer(value["state"], like["state"], under(entry, "state"))
        groups = zip(value["param_groups"], like["param_groups"], strict=True)
        for number, (group, own) in enumerate(groups):
            for key in own:
                if isinstance(own[key], bool | str | None) and group[key] != own[key]:
                    place = under(f"{entry}.param_groups.{number}", key)
                    raise ValueError(f"{place}={_shown(group[key])}: {own[key]} is needed")
    elif isinstance(like, Mapping) and isinstance(value, dict):
        for key in like.keys() & value.keys():
            check_optimizer(value[key], like[key], under(entry, key))
    elif isinstance(like, list | tuple) and isinstance(value, list | tuple):
        for number, (part, own) in enumerate(zip(value, like, strict=False)):
            check_optimizer(part, own, under(entry, number))
    elif isinstance(like, Tensor) and isinstance(value, Tensor):
        check_like(value, like, entry)
        if not _is_packed(value):
            raise ValueError(f"{entry}: its elements overlap, or leave gaps in memory")


def _is_packed(tensor: Tensor) -> bool:
    """Return whether the elements lie side by side in memory, in any order of the axes."""
    expected = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if tensor.numel() and length > 1 and stride != expected:
            return False
        expected *= length
    return True


def _is_number(value: Any) -> bool:
    """Return whether a value is a number, not NaN, and no larger than a number of steps can be."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return abs(value) < LARGEST
    return isinstance(value, float) and not math.isnan(value)


def _check_keys(value: Mapping[Any, Any], like: Mapping[Any, Any], entry: str) -> None:
    for key in like:
        if key not in value:
            raise ValueError(f"{under(entry, key)} is missing")
    for key in value:
        if key not in like:
            raise ValueError(f"{under(entry, key)} is not known")


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {kind_of(value)} tensor of shape {tuple(value.shape)}"
    return reprlib.repr(value)
