"""Where in a ``.cedar`` text something stands: statements with their lines, and tokens inside them.

cedarpy gives no source positions, so the text is cut into statements (strings and comments respected), each
of which the engine can then be asked about alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_NO_CODE: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*')
_TOKEN: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|;|[^";/]+|.', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Place:
    """1-based line and column."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Statement:
    """One policy as it is written, from its first annotation to its semicolon."""

    text: str
    offset: int
    source: str

    def holds(self, needle: str) -> bool:
        """Whether *needle*, a word or an operator, stands in it."""
        return self._find(needle) is not None

    def place(self, needle: str = "") -> Place:
        """Where *needle* first stands, or where the statement begins."""
        return self._place(self.offset + (self._find(needle) or 0 if needle else 0))

    def end(self) -> Place:
        """Behind its last character."""
        return self._place(self.offset + len(self.text.rstrip()))

    def second_head(self) -> Place | None:
        """Where another policy seems to begin inside this one, because nothing ended the first."""
        code = _NO_CODE.sub(lambda found: " " * len(found[0]), self.text)
        body = re.search(r"\b(?:permit|forbid)\b", code)
        found = re.search(r"^[ \t]*(?:@|permit\b|forbid\b)", code[body.end() :], re.MULTILINE) if body else None
        return self._place(self.offset + body.end() + found.start()) if body and found else None

    def _find(self, needle: str) -> int | None:
        """In the code if it is there, else in strings and comments."""
        around = r"\w" if needle[:1].isalnum() or needle[:1] in "_@" else r"=!<>&|+*\-"
        pattern = rf"(?<![{around}]){re.escape(needle)}(?![{around}])"
        code = _NO_CODE.sub(lambda found: " " * len(found[0]), self.text)
        found = re.search(pattern, code) or re.search(pattern, self.text)
        return found.start() if found else None

    def _place(self, at: int) -> Place:
        line = self.source.count("\n", 0, at) + 1
        return Place(line, at - (self.source.rfind("\n", 0, at) + 1) + 1)


def statements(source: str) -> Iterator[Statement]:
    """The policies of *source*, in order; what follows the last semicolon too, if it is not only comments."""
    start, has_code = 0, False
    for match in _TOKEN.finditer(source):
        piece = match[0]
        if piece == ";":
            yield _statement(source, start, match.end())
            start, has_code = match.end(), False
        elif piece.strip() and not piece.startswith("//"):
            has_code = True
    if has_code:
        yield _statement(source, start, len(source))


def _statement(source: str, start: int, end: int) -> Statement:
    """Without the comments and blank lines before it."""
    text = source[start:end]
    leading = re.match(r"(?:\s+|//[^\n]*(?:\n|$))*", text)
    skip = leading.end() if leading else 0
    return Statement(text[skip:], start + skip, source)
