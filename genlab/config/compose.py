"""Composition of a config from YAML files and overrides by Hydra; errors become one sentence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genlab.config.folder import directory as directory
from genlab.errors import ConfigError

#: The extra of genlab that installs a launcher which is not part of Hydra.
_EXTRAS = {
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/ray": "ray",
    "hydra/launcher/submitit_local": "slurm",
    "hydra/launcher/submitit_slurm": "slurm",
}


def compose(
    overrides: Sequence[str], config_name: str = "train", with_hydra: bool = False
) -> DictConfig:
    """Compose the config that `train.py` gets with these overrides, optionally with Hydra's part.

    Raises:
        ConfigError: if the overrides cannot be composed.
    """
    try:
        return _compose(overrides, config_name, with_hydra)
    except Exception as error:
        sentence = refusal(error, overrides)
        if sentence is None:
            raise
        raise ConfigError(sentence) from error


def _compose(
    overrides: Sequence[str], config_name: str = "train", with_hydra: bool = False
) -> DictConfig:
    with initialize_config_dir(str(directory()), version_base="1.3"):
        return hydra_compose(config_name, overrides=list(overrides), return_hydra_config=with_hydra)


def options(group: str) -> list[str]:
    """List the files of a config group as on the command line; empty if it is not a group."""
    folder = directory() / group
    files = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml"))
    # A group inside a group, such as model/likelihood in model, is a separate group.
    depth = 2 if group in ("experiment", "sweep") else 1
    return sorted(
        file.as_posix()
        for file in files
        if len(file.parts) <= depth and not file.name.startswith("_")
    )


def refusal(error: Exception, overrides: Sequence[str]) -> str | None:
    """Explain an error of Hydra with key, value and remedy; None if it is another error."""
    values = {key.strip("+~"): value for key, _, value in (o.partition("=") for o in overrides)}
    if isinstance(error, OverrideParseException):
        reason = _line(error.message).partition(" See https:")[0]
        key, sign, value = error.override.partition("=")
        if not sign:
            return f"{error.override}: this is not key=value"
        return (
            f"{error.override}: this is not key=value as Hydra reads it ({reason}); a value with "
            f"signs such as = , : ( [ needs quotes of its own: '{key}=\"{value}\"'"
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        file = error.missing_cfg_file
        if extra := _EXTRAS.get(file):
            launcher = file.rpartition("/")[2]
            return f"hydra/launcher={launcher} is not installed: pip install genlab[{extra}]"
        if "/" not in file and file not in values:
            names = ", ".join(sorted(path.stem for path in directory().glob("*.yaml")))
            return (
                f"--config-name {file}: there is no {file}.yaml in genlab's configs or in "
                f"--config-dir; leave it out, or choose one of {names}"
            )
        groups = [key for key in values if file.startswith(f"{key}/")]
        group = max(groups, key=len) if groups else file.rpartition("/")[0]
        choice = file.removeprefix(f"{group}/")
        known = {*options(group), *(o for o in error.options or () if not o.startswith("_"))}
        return f"{group}={choice}: there is no such file; {suggestion(choice, sorted(known))}"
    if isinstance(error, ValueError) and "Config group override" in str(error):
        group = next((k for k, v in values.items() if options(k) and v in ("null", "")), "a group")
        return f"{group}=null: a choice is needed; {suggestion('', options(group))}"
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else ""
    message = _line(f"{error} {cause}")
    if found := re.search(r"Could not override '([^']+)'", message):
        inner = re.search(r"full_key: (\S+)", message)
        key = inner[1] if inner and inner[1].startswith(f"{found[1]}.") else found[1]
        given = f"{key}={values[key]}" if key in values else key
        for group, text in values.items():
            choices = [choice for choice in text.split(",") if choice in options(group)]
            if len(choices) < 2:
                continue
            lacking = [choice for choice in choices if not _has(key, f"{group}={choice}")]
            if 0 < len(lacking) < len(choices):
                told = " and ".join(f"{group}={choice}" for choice in lacking)
                return f"{given}: there is no such key with {told}; leave out one of the two"
        return f"{given}: there is no such key; {_meant(key, values)}"
    return message


def suggestion(name: str, known: Sequence[str]) -> str:
    """Return the part of a message that suggests a similar name, or lists all names."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"choose one of {', '.join(sorted(known))}"


def _is_choice(group: str, value: str) -> bool:
    """Return whether a value names a file of a group, or in brackets several."""
    is_list = value.startswith("[") and value.endswith("]")
    names = value[1:-1].split(",") if is_list else [value]
    return {name.strip() for name in names} <= set(options(group))


def _meant(key: str, values: Mapping[str, str]) -> str:
    if "/" in key:
        groups = _groups()
        return "the chosen files have no such part" if key in groups else suggestion(key, groups)
    chosen = [f"{k}={v}" for k, v in values.items() if _is_choice(k, v) and k != "sweep"]
    try:
        config = OmegaConf.to_container(_compose(chosen))
    except Exception:  # then another override is wrong too, and is reported next
        config = {}
    known = sorted(_keys(config))
    parent, _, name = key.rpartition(".")
    elsewhere = [k for k in known if k.rpartition(".")[2] == name]
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    beside = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == parent]
    close = difflib.get_close_matches(name, beside, n=1) if beside else []
    if close:
        return f"did you mean {'.'.join([*([parent] if parent else []), close[0]])}?"
    if not beside:
        return suggestion(key, known) if difflib.get_close_matches(key, known) else "see --help"
    beside = [k for k in beside if not k.startswith("_")]
    listed = ", ".join(beside) or "none"
    return f"known there are {listed}; +{key}=... adds one that the class takes"


def _has(key: str, choice: str) -> bool:
    return key in _keys(OmegaConf.to_container(_compose([choice])))


def _groups() -> list[str]:
    folders = (path for path in directory().rglob("*") if path.is_dir())
    return [folder.relative_to(directory()).as_posix() for folder in folders]


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


def _line(text: str) -> str:
    return " ".join(text.split())
