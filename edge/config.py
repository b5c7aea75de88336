"""Configuration: one TOML file, every key also from the environment, errors that say where and what.

``licet.toml`` has a section per process. The variable ``LICET_GATEWAY__PORT`` overrides ``port`` of
``[gateway]``. Only the ``__main__`` of a process reads file and environment; everything else gets a frozen
model.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic

Model = TypeVar("Model", bound=pydantic.BaseModel)


class BadConfig(Exception):
    """The configuration cannot be used; the text names file, line, what was found and what was expected."""


class Section(pydantic.BaseModel):
    """Base of every configuration section: strict, frozen, no unknown keys."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Source:
    """A configuration file with the environment laid over it."""

    def __init__(self, path: Path | None, environ: Mapping[str, str]) -> None:
        self._path = path
        self._text = path.read_text("utf-8") if path is not None and path.exists() else ""
        self._environ = environ
        try:
            self._tree: dict[str, Any] = tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as bad:
            raise BadConfig(f"{path}: {bad}") from None

    def section(self, name: str, model: type[Model]) -> Model:
        """The section *name* as *model*, or :class:`BadConfig`."""
        values = dict(self._tree.get(name, {}))
        prefix = f"LICET_{name.upper()}__"
        overridden = {
            key.removeprefix(prefix).lower(): _value(text)
            for key, text in self._environ.items()
            if key.startswith(prefix)
        }
        try:
            return model.model_validate({**values, **overridden})
        except pydantic.ValidationError as bad:
            raise BadConfig("\n".join(self._explain(name, problem, overridden) for problem in bad.errors())) from None

    def sections(self) -> list[str]:
        return list(self._tree)

    def require_known(self, known: set[str]) -> None:
        """Refuse sections that no process reads; they are usually misspelt."""
        for name in self._tree:
            if name not in known:
                line = self._line(name, "")
                raise BadConfig(
                    f"{self._path}:{line}: found section [{name}], expected one of {', '.join(sorted(known))}"
                )

    def _explain(self, section: str, problem: Any, overridden: Mapping[str, Any]) -> str:
        where = ".".join(str(part) for part in problem["loc"])
        key = str(problem["loc"][0]) if problem["loc"] else ""
        found = problem["input"]
        if key in overridden:
            place = f"LICET_{section.upper()}__{key.upper()}"
        else:
            place = f"{self._path}:{self._line(section, key)}"
        shown = "nothing" if problem["type"] == "missing" else repr(found)
        return f"{place}: [{section}] {where}: found {shown}, expected: {problem['msg']}"

    def _line(self, section: str, key: str) -> int:
        """Where *key* stands, as well as text can tell; 1 if it does not."""
        inside = False
        start = 1
        for number, line in enumerate(self._text.splitlines(), 1):
            if re.match(rf"\s*\[+\s*{re.escape(section)}\b", line):
                inside, start = True, number
                if not key:
                    return number
            elif re.match(r"\s*\[", line):
                inside = False
            elif inside and re.match(rf"\s*{re.escape(key)}\s*=", line):
                return number
        return start


def _value(text: str) -> Any:
    """A variable's text as TOML would have it: numbers, true and lists; anything else is a string."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
