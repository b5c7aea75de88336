"""Text from outside on a page: what cannot be seen, or turns what is around it, is shown as what it is."""

from __future__ import annotations

import unicodedata
from typing import Final

_BLANK: Final = frozenset("\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u2800\u3164\uffa0")
"""Printable by the book, and nothing to be seen."""
MAX_SHOWN: Final = 20_000
MAX_MARKS: Final = 3
"""Marks on one letter; more of them cover the lines above."""


def readable(text: str, limit: int = MAX_SHOWN) -> str:
    """*text* with control, bidi, invisible and stacked characters written as ``\\u{…}``; cut at *limit*."""
    if text.isascii() and text.isprintable():
        return text if len(text) <= limit else text[:limit] + "…"
    shown: list[str] = []
    marks = 0
    for c in text[:limit]:
        marks = marks + 1 if unicodedata.category(c) in ("Mn", "Me") else 0
        hidden = not c.isprintable() or c in _BLANK or _is_selector(c) or marks > MAX_MARKS
        shown.append(f"\\u{{{ord(c):x}}}" if hidden else c)
    return "".join(shown) if len(text) <= limit else "".join(shown) + "…"


def _is_selector(c: str) -> bool:
    return "\ufe00" <= c <= "\ufe0f" or "\U000e0100" <= c <= "\U000e01ef"
