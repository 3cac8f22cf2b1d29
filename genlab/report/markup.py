"""HTML that is built from elements, so that nothing that somebody named can become markup."""

from __future__ import annotations

import html
import json
from typing import Any

_VOID = ("img", "input", "meta", "link", "br")


class Markup(str):
    """Text that is HTML already; every other text is escaped where it enters an element."""

    __slots__ = ()


def element(name: str, *children: object, **attributes: object) -> Markup:
    """`<name ...>children</name>`, children and attributes escaped unless they are `Markup`.

    An attribute loses its last underscore and has hyphens for the others (`class_`, `data_run`); of
    one that is True only the name is written, and one that is None or False is left out. A child
    that is None is left out as well.
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
    """Children one after the other, each escaped unless it is `Markup`."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else html.escape(str(child))
            for child in children
            if child is not None
        )
    )


def script_json(content: Any) -> Markup:
    """JSON that can stand in a script element: no text in it ends that or opens a comment."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def script_code(code: str) -> Markup:
    """A program that can stand in a script element."""
    return Markup(code.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def plotly_text(text: str) -> str:
    """Text as itself, where Plotly would read tags, entities and, between dollars, formulas."""
    for mark, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("$", "&#36;")):
        text = text.replace(mark, entity)
    return text
