"""Secrets are no settings: a config is printed, logged, and kept in the run directory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from genlab.errors import ConfigError

_NAMES = r"(?:\w*[_-])?(?:(?:api|access|private)[_-]?key|token|password|passwd|secret|credentials?)"
_IS_SECRET = re.compile(_NAMES, re.IGNORECASE)
# In an override, a key stands at its beginning or within the braces of its value; of an option, the
# value may be the next word.
_TYPED = re.compile(
    rf"(?:^|[.{{,+~@/'\"]\s*)({_NAMES})['\"]?\s*[:=](?!\s*(?:null|true|false)?\s*(?:[,}}\]]|$))",
    re.IGNORECASE,
)
_OPTION = re.compile(rf"--?({_NAMES})(?:=.*)?", re.IGNORECASE | re.DOTALL)


def refuse_typed(arguments: Iterable[str]) -> None:
    """Refuse an override or an option that gives a secret, before anything can print or keep it.

    Raises:
        ConfigError: naming the key, without the value.
    """
    for argument in arguments:
        if found := _OPTION.fullmatch(argument) or _TYPED.search(argument):
            key = argument.partition("=")[0].lstrip("+~-")
            name = found[1]
            raise _refusal(key if key.endswith(name) else f"{key}: {name}")


def refuse_secrets(node: Any, key: str = "") -> None:
    """Refuse a text under the name of a secret anywhere in a config.

    Raises:
        ConfigError: naming the key, without the value.
    """
    if isinstance(node, Mapping):
        for name, value in node.items():
            below = f"{key}.{name}" if key else str(name)
            if isinstance(value, str) and value and _IS_SECRET.fullmatch(str(name)):
                raise _refusal(below)
            refuse_secrets(value, below)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            refuse_secrets(value, f"{key}[{index}]")


def _refusal(key: str) -> ConfigError:
    return ConfigError(
        f"{key}: a secret is no setting, since settings are printed and kept with the run; give it "
        "in an environment variable that its library reads, as WANDB_API_KEY, or by `wandb login`"
    )
