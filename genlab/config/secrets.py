"""Secrets are no settings: a config is printed, logged, and kept in the run directory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from genlab.errors import ConfigError

#: The words of a name, also of one such as `apiKey`, and those that make it a secret's.
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_SECRETS = {"secret", "password", "passphrase", "passwd", "pwd", "credential", "apikey"}
_OF_A_KEY = {"api", "access", "private", "secret", "wandb", "encryption", "auth"}
_OF_A_TOKEN = {"api", "auth", "access", "hf", "secret", "bearer", "session", "refresh", "wandb"}
# In an override, a key stands at its beginning or within the braces of its value; of an option, the
# value may be the next word.
_TYPED = re.compile(
    r"(?:^|[.{,+~@/'\"]\s*)([\w-]+)['\"]?\s*[:=](?!\s*(?:null|true|false)?\s*(?:[,}\]]|$))",
)
_OPTION = re.compile(r"--?([\w-]+)(?:[=\s].*)?", re.DOTALL)


def is_secret(name: str) -> bool:
    """Return whether a key is named like a secret, however it is spelled: `api_key`, `hfToken`."""
    words = [word.lower() for word in _WORDS.findall(name)]
    found = {*words, *(word.removesuffix("s") for word in words)}
    is_key = "key" in found and bool(found & _OF_A_KEY)
    is_token = words == ["token"] or ("token" in found and bool(found & _OF_A_TOKEN))
    return bool(found & _SECRETS) or is_key or is_token


def refuse_typed(arguments: Iterable[str]) -> None:
    """Refuse an override or an option that gives a secret, before anything can print or keep it.

    Raises:
        ConfigError: naming the key, without the value.
    """
    for argument in arguments:
        option = _OPTION.fullmatch(argument)
        names = [option[1]] if option else [found[1] for found in _TYPED.finditer(argument)]
        for name in filter(is_secret, names):
            key = re.split(r"[=:{\s]", argument.lstrip("+~-"))[0]
            raise _refusal(key if key.endswith(name) else f"{key}: {name}".removeprefix(": "))


def refuse_secrets(node: Any, key: str = "") -> None:
    """Refuse a text under the name of a secret anywhere in a config.

    Raises:
        ConfigError: naming the key, without the value.
    """
    if isinstance(node, Mapping):
        for name, value in node.items():
            below = f"{key}.{name}" if key else str(name)
            if isinstance(value, str) and value and is_secret(str(name)):
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
