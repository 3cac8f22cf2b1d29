"""Build HTML from elements that escape their content, so that no name can become markup."""

from __future__ import annotations

import html
import json
from typing import Any

_VOID = ("img", "input", "meta", "link", "br")


class Markup(str):
    """Text that is already HTML; an element escapes every other text."""

    __slots__ = ()


def element(name: str, *children: object, **attributes: object) -> Markup:
    """Build `<name ...>children</name>`, with content escaped unless it is `Markup`.

    The name of an attribute loses a trailing underscore and has hyphens for the others (`class_`,
    `data_run`). Of an attribute that is True only the name is written; one that is None or False is
    left out, and so is a child that is None.
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.removesuffix("_").replace("_", "-")
        written.append(f" {key}" if value is True else f' {key}="{html.escape(str(value))}"')
    start = f"<{name}{''.join(written)}>"
    return Markup(start if name in _VOID else f"{start}{join(*children)}</{name}>")


def join(*children: object) -> Markup:
    """Concatenate children, each escaped unless it is `Markup`."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else html.escape(str(child))
            for child in children
            if child is not None
        )
    )


def script_json(content: Any) -> Markup:
    """Encode JSON for a script element: no text in it ends the element or opens a comment."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def script_code(code: str) -> Markup:
    """Escape a program for a script element."""
    return Markup(code.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def plotly_text(text: str) -> str:
    """Escape a text for Plotly, which would read tags, entities and, between dollars, formulas."""
    for mark, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("$", "&#36;")):
        text = text.replace(mark, entity)
    return text
