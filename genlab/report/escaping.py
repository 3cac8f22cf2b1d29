"""Escape text for where it goes: Markdown and spreadsheets (for HTML see `markup`)."""

from __future__ import annotations

import sys
from typing import Any

from genlab.report.collect import one_line


def markdown(text: str) -> str:
    """Escape a text for Markdown, as one line."""
    text = one_line(text, sys.maxsize)
    for mark in ("\\", "|", "*", "`", "[", "]", "#", "~"):
        text = text.replace(mark, "\\" + mark)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def spreadsheet_cell(value: Any) -> Any:
    """Put an apostrophe before a text that a spreadsheet would take for a formula."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    return value if _is_number(value) else f"'{value}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
