"""Configuration: one TOML file, every key also from the environment, errors that say where and what.

``licet.toml`` has a section per process. The variable ``LICET_GATEWAY__PORT`` overrides ``port`` of
``[gateway]``. Only the ``__main__`` of a process reads file and environment; everything else gets a frozen
model.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import pydantic
from pydantic import AfterValidator, Field

Model = TypeVar("Model", bound=pydantic.BaseModel)


class BadConfig(Exception):
    """The configuration cannot be used; the text names file, line, what was found and what was expected."""


class Section(pydantic.BaseModel):
    """Base of every configuration section: strict, frozen, no unknown keys."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


# What values may be. The texts of the errors follow "expected".


def _base_url(text: str) -> str:
    if re.fullmatch(r"https?://[A-Za-z0-9.\-\[\]:]+/?", text) is None:
        raise ValueError('an address such as "http://127.0.0.1:7400", without path')
    return text.rstrip("/")


def _url(text: str) -> str:
    if re.fullmatch(r"https?://[^\s/?#@]+(?:[/?][^\s#]*)?", text) is None:
        raise ValueError('an address such as "http://127.0.0.1:9000/mcp"')
    return text


def _file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError("a file that exists")
    return path


def _directory(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError("a directory that exists")
    return path


def _keep_days(days: int) -> int:
    if days == 1:
        raise ValueError("0, for all, or 2 and more: what was done within a day is counted again after a restart")
    return days


def _name(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text) is None:
        raise ValueError('1 to 64 letters, digits and "._-"')
    return text


Port = Annotated[int, Field(ge=0, le=65535)]
"""0: any free one."""
Seconds = Annotated[float, Field(gt=0, le=366 * 86_400)]
Days = Annotated[int, Field(ge=0, le=36_500)]
KeepDays = Annotated[Days, AfterValidator(_keep_days)]
"""0: all of them."""
Patience = Annotated[float, Field(ge=0, le=3600)]
WholeSeconds = Annotated[int, Field(gt=0, le=366 * 86_400)]
SegmentBytes = Annotated[int, Field(ge=1 << 16, le=1 << 34)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
Url = Annotated[str, AfterValidator(_url)]
ExistingFile = Annotated[Path, AfterValidator(_file)]
ExistingDirectory = Annotated[Path, AfterValidator(_directory)]
Name = Annotated[str, AfterValidator(_name)]

_EXPECTED: Final = {
    "missing": "a value",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "path_type": "a path",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}


class Source:
    """A configuration file with the environment laid over it."""

    def __init__(self, path: Path | None, environ: Mapping[str, str]) -> None:
        self._path = path
        self._environ = environ
        try:
            self._text = path.read_text("utf-8") if path is not None and path.exists() else ""
            self._tree: dict[str, Any] = tomllib.loads(self._text)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as bad:
            raise BadConfig(f"{path}: not TOML: {bad}") from None

    def sections(self, models: Mapping[str, type[Model]]) -> dict[str, Model]:
        """Every section of *models*, or :class:`BadConfig` with all that is wrong."""
        complaints = self._unknown(models)
        made: dict[str, Model] = {}
        for name, model in models.items():
            given = self._tree.get(name, {})
            overridden = self._overridden(name)
            if not isinstance(given, dict):
                complaints.append(f"{self._path}: found {name} = {_short(given)}, expected a section [{name}]")
                continue
            try:
                made[name] = model.model_validate({**given, **overridden})
            except pydantic.ValidationError as bad:
                complaints += [self._explain(name, model, problem, overridden) for problem in bad.errors()]
        if complaints:
            raise BadConfig("\n".join(complaints))
        return made

    def mentions(self, section: str) -> bool:
        """Whether anything is set for *section*."""
        return section in self._tree or bool(self._overridden(section))

    def _overridden(self, section: str) -> dict[str, Any]:
        """What the environment says of *section*; one more ``__`` leads into a table inside it."""
        prefix = f"LICET_{section.upper()}__"
        found: dict[str, Any] = {}
        for key, text in sorted(self._environ.items()):
            if key.startswith(prefix):
                name, inside, inner = key.removeprefix(prefix).lower().partition("__")
                if inside:
                    given = found.get(name, self._tree.get(section, {}).get(name, {}))
                    found[name] = {**(given if isinstance(given, dict) else {}), inner: _value(text)}
                else:
                    found[name] = _value(text)
        return found

    def _unknown(self, known: Mapping[str, object]) -> list[str]:
        """Sections that no process reads; they are usually misspelt."""
        return [
            f"{self._path}:{self._line(name, ())}: found section [{name}], expected one of "
            f"{', '.join(sorted(known))}{_did_you_mean(name, known)}"
            for name in self._tree
            if name not in known
        ]

    def _explain(self, section: str, model: type[Model], problem: Any, overridden: Mapping[str, Any]) -> str:
        loc: tuple[str | int, ...] = problem["loc"]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
        top = str(loc[0]) if loc else ""
        if top in overridden:
            place = f"LICET_{section.upper()}__{top.upper()}"
        elif self._path is None:
            place = "(nothing set)"
        else:
            place = f"{self._path}:{self._line(section, loc)}"
        if problem["type"] == "extra_forbidden":
            known = _keys(model, loc[:-1])
            return f'{place}: [{section}] found the key "{where}", expected one of {", ".join(known)}' + (
                _did_you_mean(str(loc[-1]), known)
            )
        if not loc:
            # About several keys at once: what was found would be all of them, tokens included.
            place = ", ".join(f"LICET_{section.upper()}__{key.upper()}" for key in sorted(overridden)) or place
            return f"{place}: [{section}] expected {_expected(problem)}"
        found = "nothing" if problem["type"] == "missing" else _short(problem["input"])
        return f"{place}: [{section}] {where}: found {found}, expected {_expected(problem)}"

    def _line(self, section: str, loc: Sequence[str | int]) -> int:
        """Where the value at *loc* stands, as well as text can tell; 1 if it does not."""
        tables = [section]
        wanted = 0
        key = ""
        for part in loc:
            if isinstance(part, int):
                tables, wanted, key = [".".join([*tables, key])], part, ""
            elif not key:
                key = part
        return self._find(tables[0], wanted, key) or self._find(section, 0, str(loc[0]) if loc else "") or 1

    def _find(self, table: str, nth: int, key: str) -> int:
        """The line of *key* in the *nth* table of this name, or of that table's head; 0 if there is none."""
        seen, head = -1, 0
        for number, line in enumerate(self._text.splitlines(), 1):
            opened = re.match(r"\s*\[+\s*([\w.\"-]+)\s*\]", line)
            if opened:
                seen += opened[1] == table
                inside = opened[1] == table and seen == nth
                head = number if inside else head
            elif head and inside and key and re.match(rf"\s*\"?{re.escape(key)}\"?\s*=", line):
                return number
        return head


def _expected(problem: Any) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    bounds = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
    if kind in bounds:
        words = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
        return f"{words[bounds[kind]]} {context[bounds[kind]]:g}"
    if kind == "string_pattern_mismatch":
        return f"text like {context['pattern']}"
    return _EXPECTED.get(kind, str(problem["msg"]))


def _keys(model: Any, loc: Sequence[str | int]) -> list[str]:
    """The keys of the (nested) section at *loc*."""
    for part in loc:
        if isinstance(part, str):
            inner = [a for a in getattr(model.model_fields[part].annotation, "__args__", ()) if isinstance(a, type)]
            model = next((a for a in inner if issubclass(a, pydantic.BaseModel)), model)
    return sorted(model.model_fields)


def _did_you_mean(word: str, known: Mapping[str, object] | Sequence[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:79] + "…"


def _value(text: str) -> Any:
    """A variable's text as TOML would have it: numbers, true and lists; anything else is a string."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
