"""From a command line such as `sweep=kl_weight seed=0,1` to the study that it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from genlab.config import compose as composition
from genlab.errors import ConfigError
from genlab.sweeps.study import Study

#: What is asked of `sweep.py` itself, and goes to its sweeper.
_OWN = ("dry", "trials")


class Request(NamedTuple):
    """A study as somebody wants it, and the overrides of all its jobs."""

    study: Study
    overrides: list[str]


def command_line(arguments: Sequence[str]) -> list[str]:
    """The arguments of `sweep.py` with what the named study sets put before them.

    Hydra then composes all of it at once, so that a key of the study's model is known to it.

    Raises:
        ConfigError: no study is named, there is none of that name, or its file is wrong.
    """
    if any(a in ("-h", "--help", "--hydra-help", "--version", "--info") for a in arguments):
        return list(arguments)
    given = [a for a in arguments if _is_override(a)]
    flags = [a for a in arguments if not _is_override(a)]
    name = next((a.partition("=")[2] for a in given if a.startswith("sweep=")), "")
    if name in ("", "null"):
        known = composition.options("sweep")
        raise ConfigError(f"sweep=null: name a study; {composition.suggestion('', known)}")
    search = [a for a in given if a.startswith("hydra.searchpath=")]
    study = Study.of(name, _content(name, search))
    mine = {_key(a) for a in given}
    base = [text for text in study.base if _key(text) not in mine]
    group = [] if "group" in mine else [f"group={title(name)}"]
    own = [f"hydra.sweeper.{text}" for text in given if _key(text) in _OWN]
    rest = [text for text in given if _key(text) not in ("sweep", *_OWN)]
    # Hydra would find hydra.mode in a config that composes alone, and mistake another's lists.
    mode = [] if {"-m", "--multirun"} & set(flags) else ["--multirun"]
    return [*flags, *mode, f"sweep={name}", *group, *base, *rest, *own]


def title(name: str) -> str:
    """What a study is called as a directory."""
    return name.replace("/", "-")


def request(name: str, content: dict[str, Any], overrides: Sequence[str]) -> Request:
    """The study with what the command line turns or fixes, and what is left for all of its jobs.

    A knob with several values replaces that axis of the study, or is one more; with one value it is
    no axis any more. Several seeds, or one, replace the study's.

    Raises:
        ConfigError: the study does not have it so.
    """
    study = Study.of(name, content)
    rest = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element()
        if key == "sweep":
            continue
        if override.is_sweep_override():
            study = study.turned(key, _values(override))
        elif key == "seed":
            study = study.turned(key, [override.value()])
        else:
            study = study.fixed(key) if key in study.swept else study
            rest.append(str(override.input_line))
    return Request(study, rest)


def _values(override: Override) -> list[Any]:
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{override.input_line}: a study takes lists of values; a search has its intervals in "
            "search.space of its file"
        )
    parse = OverridesParser.create().parse_override
    key = override.get_key_element()
    return [parse(f"{key}={text}").value() for text in override.sweep_string_iterator()]


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


def _is_override(argument: str) -> bool:
    if argument.startswith("-") or ("=" not in argument and not argument.startswith("~")):
        return False
    try:
        OverridesParser.create().parse_override(argument)
    except OverrideParseException:
        return "=" in argument  # Hydra will say what is wrong with it
    return True


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+~")
