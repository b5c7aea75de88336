"""A directory of policies: its files, what hands them to a gateway, and how they differ from what is active."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from trust.policy.bundle import BundleRejected, Sources, sources_from_files

SUFFIXES: Final = (".cedar", ".cedarschema", ".json", ".yaml")
SCHEMA: Final = "schema.cedarschema"
MAX_COMPARED: Final = 200_000
"""Characters of one file: comparing takes the square of its lines."""
MAX_LINES: Final = 400
"""Of the difference of one file."""


class Difference(msgspec.Struct, frozen=True):
    """One file that differs; ``lines`` as ``diff -u`` writes them, without its header."""

    file: str
    lines: list[str]


class Candidate(msgspec.Struct, frozen=True):
    """What the next activation would change; ``missing``: why that cannot be told."""

    directory: str
    differences: list[Difference] = []
    missing: str = ""


def read_directory(directory: Path) -> dict[str, str]:
    """Relative path → text of everything that belongs into a bundle."""
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a directory with policies")
    return {
        str(path.relative_to(directory)): path.read_text("utf-8")
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.suffix in SUFFIXES
    }


def to_request(files: Mapping[str, str], namespace: str = "") -> dict[str, Any]:
    """The body of ``POST /v1/bundles``. Policies of a *namespace* have the schema of the mesh."""
    if namespace:
        files = {SCHEMA: "", **files}
    return {"sources": msgspec.to_builtins(sources_from_files(files))}


def compared(directory: Path, active: Sources) -> Candidate:
    """The files in *directory* beside those that are active."""
    try:
        candidate = sources_from_files(read_directory(directory))
    except (OSError, UnicodeDecodeError, BundleRejected) as bad:
        return Candidate(str(directory), missing=str(bad))
    before, after = _texts(active), _texts(candidate)
    found = []
    for name in sorted({*before, *after}):
        texts = before.get(name, ""), after.get(name, "")
        if max(map(len, texts)) > MAX_COMPARED:
            found += [Difference(name, ["it is too large to be compared here"])] if texts[0] != texts[1] else []
            continue
        old, new = (text.splitlines() for text in texts)
        lines = list(difflib.unified_diff(old, new, lineterm="", n=2))[2:]
        if lines:
            found.append(Difference(name, lines[:MAX_LINES]))
    return Candidate(str(directory), found)


def _texts(sources: Sources) -> dict[str, str]:
    return {SCHEMA: sources.schema, **sources.policies, **sources.cases}
