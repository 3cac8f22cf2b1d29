"""Text for people: durations, and what may come from a stranger made safe to show."""

from __future__ import annotations

import unicodedata


def printable(text: str, kept: str = "\n\t") -> str:
    r"""Replace every character that a terminal would obey by a visible escape, such as `\x1b`.

    These are control characters, marks that reverse the direction of writing, and halves of
    surrogate pairs, as which names that are not UTF-8 are read. Line ends and tabs stay, or
    whatever is `kept`.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c in kept or _is_shown(c) else c.encode("unicode_escape").decode() for c in text
    )


def in_words(seconds: float) -> str:
    """Return a duration in rounded words."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _is_shown(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"
