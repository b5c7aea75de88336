"""A directory of policies as files, and as the request that hands it to a gateway."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from trust.policy.bundle import sources_from_files

SUFFIXES: Final = (".cedar", ".cedarschema", ".json", ".yaml")


def read_directory(directory: Path) -> dict[str, str]:
    """Relative path → text of everything that belongs into a bundle."""
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a directory with policies")
    return {
        str(path.relative_to(directory)): path.read_text("utf-8")
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.suffix in SUFFIXES
    }


def to_request(files: Mapping[str, str]) -> dict[str, Any]:
    """The body of ``POST /v1/bundles``."""
    return {"sources": msgspec.to_builtins(sources_from_files(files))}
