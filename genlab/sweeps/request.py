"""Parse the study that a command line such as `sweep=kl_weight seed=0,1` requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from genlab.config import compose as composition
from genlab.errors import ConfigError
from genlab.sweeps.study import Study

#: Keys of `sweep.py` itself, which go to its sweeper.
_OWN = ("dry", "trials")


class Request(NamedTuple):
    """A study with the changes of the command line, and the overrides of all its jobs."""

    study: Study
    overrides: list[str]


def expand(overrides: Sequence[str]) -> list[str]:
    """Put the overrides of the named study before those of the command line of `sweep.py`.

    Hydra then composes all of them at once, so that it knows the keys of the study's model.

    Raises:
        ConfigError: no study is named, there is none of that name, or its file is wrong.
    """
    name = next((text.partition("=")[2] for text in overrides if _key(text) == "sweep"), "")
    if name in ("", "null"):
        known = composition.options("sweep")
        raise ConfigError(f"sweep=null: name a study; {composition.suggestion('', known)}")
    search = [text for text in overrides if _key(text) == "hydra.searchpath"]
    study = Study.of(name, _content(name, search))
    mine = {_key(text) for text in overrides}
    base = [text for text in study.base if _key(text) not in mine]
    group = [] if "group" in mine else [f"group={title(name)}"]
    own = [f"hydra.sweeper.{text}" for text in overrides if _key(text) in _OWN]
    rest = [text for text in overrides if _key(text) not in ("sweep", *_OWN)]
    return [f"sweep={name}", *group, *base, *rest, *own]


def title(name: str) -> str:
    """Return the name of a study's directory."""
    return name.replace("/", "-")


def request(name: str, content: dict[str, Any], overrides: Sequence[str]) -> Request:
    """Apply the overrides of a command line to a study; return it with those for all of its jobs.

    A key with several values replaces that axis of the study, or adds one; a key with one value
    removes the axis. One or several seeds replace the study's.

    Raises:
        ConfigError: an override does not fit the study.
    """
    study = Study.of(name, content)
    rest = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element()
        if key == "sweep":
            continue
        if override.is_sweep_override() or key == "seed":
            study = study.with_values(key, str(override.input_line).partition("=")[2])
        else:
            study = study.without(key) if key in study.swept else study
            rest.append(str(override.input_line))
    return Request(study, rest)


def _content(name: str, search: Sequence[str]) -> dict[str, Any]:
    known = composition.options("sweep")
    try:
        cfg = composition.compose([f"sweep={name}", *search], "sweep", with_hydra=True)
    except ConfigError as error:
        if name not in known and not search:
            told = composition.suggestion(name, known)
            raise ConfigError(f"sweep={name}: there is no such study; {told}") from error
        raise
    content = OmegaConf.to_container(cfg.hydra.sweeper.study)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+~")
