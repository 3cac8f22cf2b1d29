"""Parse the study that a command line such as `sweep=kl_weight seed=0,1` requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from genlab.config import compose as composition
from genlab.errors import ConfigError
from genlab.runs.points import without_seed
from genlab.sweeps.study import Study, value_as_override

_ABSENT = object()
#: Keys of `sweep.py` itself, which go to its sweeper.
_OWN = ("dry", "trials")


class Request(NamedTuple):
    """A study with the changes of the command line, and the overrides of all its jobs.

    `first` is the request for the runs that the jobs start from, if they do.
    """

    study: Study
    overrides: list[str]
    first: Request | None = None

    @property
    def swept(self) -> list[str]:
        """The keys that differ between all runs, the seed last; the model first if it is one."""
        if self.first is None:
            return self.study.swept
        keys = dict.fromkeys(["model", *self.first.study.swept, *self.study.swept])
        return [*without_seed(keys), *(["seed"] if "seed" in keys else [])]


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
    group = [] if "group" in mine else [f"group={title(name)}"]
    own = [f"hydra.sweeper.{text}" for text in overrides if _key(text) in _OWN]
    rest = [text for text in overrides if _key(text) not in ("sweep", *_OWN)]
    base = [text for text in study.base if _key(text) not in mine]
    if study.first is not None:
        of_first = [text for text in study.first.base if _key(text) not in mine]
        in_first, rest = _divided([*study.first.base, *search], [*study.base, *search], rest)
        jobs = value_as_override([*group, *of_first, *in_first])
        own.append(f"hydra.sweeper.first={jobs}")
    return [f"sweep={name}", *group, *base, *rest, *own]


def _divided(
    of_first: Sequence[str], of_jobs: Sequence[str], given: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Divide a command line between the runs that come first and the jobs after them.

    An override of the model goes to those that have its key, or else to the jobs, which refuse it;
    any other goes to both.
    """
    first, jobs = map(_Model.of, (of_first, of_jobs))
    common = [text for text in given if not text.startswith("hydra.")]
    return (
        [text for text in common if first.takes(text)],
        [text for text in given if jobs.takes(text) or not first.takes(text)],
    )


class _Model(NamedTuple):
    """The config of a model, and the chosen files of its parts."""

    config: dict[str, Any]
    choices: dict[str, Any]

    @classmethod
    def of(cls, overrides: Sequence[str]) -> _Model:
        cfg = composition.compose(overrides, "sweep", with_hydra=True)
        config = OmegaConf.to_container(cfg.model)
        assert isinstance(config, dict)
        return cls({str(key): value for key, value in config.items()}, cfg.hydra.runtime.choices)

    def takes(self, text: str) -> bool:
        """Return whether an override fits a job with this model."""
        key = _key(text)
        if re.match(r"model[./]", key) is None or "/" in key:
            return "/" not in key or key in self.choices
        names = key.split(".")[1 : -1 if text.startswith("+") else None]
        node: Any = self.config
        for name in names:
            node = node.get(name, _ABSENT) if isinstance(node, dict) else _ABSENT
        return node is not _ABSENT


def title(name: str) -> str:
    """Return the name of a study's directory."""
    return name.replace("/", "-")


def request(
    name: str, content: dict[str, Any], overrides: Sequence[str], of_first: Sequence[str] = ()
) -> Request:
    """Apply the overrides of a command line to a study; return it with those for all of its jobs.

    A key with several values replaces that axis of the study, or adds one; a key with one value
    removes the axis. One or several seeds replace the study's.

    Args:
        name: the study's.
        content: of its file.
        overrides: for its jobs.
        of_first: for the runs that these start from.

    Raises:
        ConfigError: an override does not fit the study.
    """
    study = Study.of(name, content)
    asked = _applied(study, overrides)
    if study.first is None:
        return asked
    return asked._replace(first=_applied(study.first.study(name, study.seeds), of_first))


def _applied(study: Study, overrides: Sequence[str]) -> Request:
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
