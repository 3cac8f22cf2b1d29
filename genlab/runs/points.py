"""The point of a run in its sweep: its value of each swept key, the seed excepted.

Runs at the same point are replicates of each other.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple


def without_seed(swept: Iterable[str]) -> list[str]:
    """Return the swept keys but the seed, whose values make replicates of the same point."""
    return [key for key in swept if key != "seed"]


def point_of(
    config: Mapping[str, Any],
    choices: Mapping[str, str],
    swept: Iterable[str],
    kept_model: str | None = None,
) -> dict[str, Any]:
    """Return the value of each swept key, the seed excepted, in one run.

    Args:
        config: nested, resolved.
        choices: the chosen config files by group, such as `model/noise_schedule`.
        swept: dotted keys, and groups; the value of a group is the name of its file.
        kept_model: the key under which the run keeps the model of the run that it started from: a
            key of `model` has the value that it has there.
    """
    return {key: _value(config, choices, key, kept_model) for key in without_seed(swept)}


def _value(
    config: Mapping[str, Any], choices: Mapping[str, str], key: str, kept_model: str | None
) -> Any:
    path = key.replace("/", ".")
    if kept_model is not None and (kept := _kept(config, path, kept_model)) is not None:
        return _named(kept)
    return choices[key] if key in choices else _named(node_at(config, path))


def _kept(config: Mapping[str, Any], path: str, model: str) -> Any:
    if not path.startswith("model."):
        return None
    return node_at(config, model + path.removeprefix("model"))


def node_at(config: Mapping[str, Any], path: str) -> Any:
    """Return what a nested config has under a dotted key; None if it has nothing."""
    node: Any = config
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _named(node: Any) -> Any:
    """Return a value, or the name of its class if it is a component."""
    if isinstance(node, Mapping) and "_target_" in node:
        return str(node["_target_"]).rpartition(".")[2]
    return node


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Map each key to its shortest suffix that no other one shares, such as `kl_weight`."""
    parts = {key: key.removesuffix("._target_").replace("/", ".").split(".") for key in keys}
    shared = Counter(end for mine in parts.values() for end in _ends(mine))
    return {
        key: next((end for end in _ends(mine) if shared[end] == 1), key.replace("/", "."))
        for key, mine in parts.items()
    }


def _ends(parts: Sequence[str]) -> list[str]:
    return [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]


def point_text(point: Mapping[str, Any], keys: Iterable[str] = ()) -> str:
    """Name a point, such as `kl_weight=30, latent_dim=2`.

    Args:
        keys: other keys, from which its own are told apart.
    """
    named = short_names(list(dict.fromkeys((*point, *keys))))
    return ", ".join(f"{named[key]}={value_text(value)}" for key, value in point.items())


def value_text(value: Any) -> str:
    """Format a value as a person would type it: 30.0 is 30."""
    if isinstance(value, float):
        return f"{value:.12g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def announced() -> list[str] | None:
    """Return the keys that this job's sweep varies, the seed excepted; None outside a sweep."""
    keys = os.environ.get("GENLAB_SWEEP_KEYS")
    return None if keys is None else list(json.loads(keys))


class Start(NamedTuple):
    """The way in which jobs of a sweep start from other runs of it.

    Attributes:
        run: the key of a job that takes the directory of its run.
        model: the key under which a job's config keeps the model of that run, if it does.
        others: the keys that vary between those runs, and whose value there a job's config does
            not keep; in a job's point they are below `run`, as in `init_from.model.kl_weight`.
    """

    run: str
    model: str | None
    others: tuple[str, ...] = ()

    def named(self, key: str) -> str:
        """Return the name of a key of the run in the point of a job that starts from it."""
        return f"{self.run}.{key}" if key in self.others else key

    def keeps(self, config: Mapping[str, Any], key: str) -> bool:
        """Return whether the config of a job keeps the value that its run has for a key."""
        return (
            self.model is not None and _kept(config, key.replace("/", "."), self.model) is not None
        )


def announced_start() -> Start | None:
    """Return how jobs of this sweep start from its other runs; None if they do not."""
    text = os.environ.get("GENLAB_SWEEP_START")
    if text is None:
        return None
    run, model, others = json.loads(text)
    return Start(run, model, tuple(others))


def column_names(keys: Sequence[str]) -> dict[str, str]:
    """Map each swept key, the seed excepted, to its column in trackers."""
    named = short_names(without_seed(keys))
    return {key: f"sweep/{short.replace('.', '/')}" for key, short in named.items()}


def columns(name: str, point: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a run's sweep that a tracker shows beside its config.

    `sweep/point` groups runs over seeds; `sweep/kl_weight`, ... are the values with their types.
    """
    named = column_names(list(point))
    values = {named[key]: value for key, value in point.items()}
    return {**values, "sweep/name": name, "sweep/point": point_text(point)}
