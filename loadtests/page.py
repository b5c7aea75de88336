"""What a measurement writes into a page of the documentation: its own part, between two marks."""

from __future__ import annotations

from pathlib import Path


def put(page: Path, begin: str, text: str, end: str) -> None:
    """*text*, which begins and ends with the marks, in the place of what stands between them."""
    now = page.read_text()
    page.write_text(now[: now.index(begin)] + text + now[now.index(end) + len(end) :])
