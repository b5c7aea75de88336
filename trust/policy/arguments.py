"""A tool's arguments as Cedar sees them: from its JSON Schema to a Cedar type, and from values to that type.

Policies speak about ``context.args``, so every argument must either be visible to Cedar exactly as the tool
will read it, or not be visible at all. Three rules follow. What the schema does not declare is refused,
unless the schema says in so many words that it is open. A number becomes Cedar's ``decimal`` and is refused
when that cannot hold it exactly. What Cedar has no type for (mixed unions, recursion, free-form objects) is
left out of the type, so that a policy which names it fails validation instead of silently never matching.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, NoReturn, assert_never

from trust.canonical import JsonObject, JsonValue
from trust.reasons import Reason, Unverifiable, visible

MAX_SCHEMA_DEPTH: Final = 12
"""Deeper schemas exist only by recursion, which Cedar's types cannot express."""

_DECIMAL_PLACES: Final = 4
_DECIMAL_LIMIT: Final = Decimal("922337203685477.5807")


@dataclass(frozen=True, slots=True)
class Opaque:
    """Cedar has no type for it: accepted as it is, invisible to policies."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """``String``, ``Long``, ``Bool`` or ``decimal``; *enum* empty means any value."""

    cedar: str
    enum: tuple[JsonValue, ...] = ()


@dataclass(frozen=True, slots=True)
class SetOf:
    item: Shape


@dataclass(frozen=True, slots=True)
class Field:
    shape: Shape
    required: bool
    nullable: bool


@dataclass(frozen=True, slots=True)
class RecordOf:
    """*is_open*: the schema says explicitly that more properties may come."""

    fields: Mapping[str, Field] = field(default_factory=dict)
    is_open: bool = False


Shape = Opaque | Scalar | SetOf | RecordOf

PLAIN_WORDS: Final = {"String": "a string", "Bool": "true or false", "Long": "an integer", "decimal": "a number"}
_SCALARS: Final = {"string": "String", "integer": "Long", "boolean": "Bool", "number": "decimal"}


def shape_of(schema: JsonObject) -> RecordOf:
    """The shape of a tool's ``inputSchema``, which MCP requires to be of type object."""
    shape, _ = _shape(schema, schema, 0)
    if isinstance(shape, RecordOf):
        return shape
    # A schema without properties accepts anything; nothing of it can be judged, so nothing is accepted.
    return RecordOf()


def _shape(schema: JsonValue, root: JsonObject, depth: int) -> tuple[Shape, bool]:
    """(shape, whether null is allowed too)."""
    if not isinstance(schema, dict) or depth > MAX_SCHEMA_DEPTH:
        return Opaque(), True
    if "$ref" in schema:
        # Recursion has no Cedar type, and following it would cost its fan-out to the power of the depth.
        target = _resolve(schema["$ref"], root)
        return (Opaque(), True) if _refers(target) else _shape(target, root, depth + 1)
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return _union(schema[union], root, depth)
    if "allOf" in schema or "not" in schema or "if" in schema:
        return Opaque(), True
    kind = schema.get("type")
    if isinstance(kind, list):
        return _union([{**schema, "type": one} for one in kind], root, depth)
    if kind == "object" or (depth == 0 and "properties" in schema):
        return _record(schema, root, depth), False
    if kind == "array":
        item, nullable = _shape(schema.get("items"), root, depth + 1)
        return (Opaque() if isinstance(item, Opaque) or nullable else SetOf(item)), False
    if isinstance(kind, str) and kind in _SCALARS:
        return Scalar(_SCALARS[kind], _enum(schema)), False
    return Opaque(), True


def _enum(schema: JsonObject) -> tuple[JsonValue, ...]:
    allowed = [schema["const"]] if "const" in schema else schema.get("enum")
    return tuple(allowed) if isinstance(allowed, list) else ()


def _union(members: JsonValue, root: JsonObject, depth: int) -> tuple[Shape, bool]:
    """Only ``X or null`` has a Cedar type: an optional X."""
    if not isinstance(members, list):
        return Opaque(), True
    rest = [m for m in members if not (isinstance(m, dict) and m.get("type") == "null")]
    if len(rest) != 1:
        return Opaque(), True
    shape, nullable = _shape(rest[0], root, depth + 1)
    return shape, nullable or len(rest) < len(members)


def _record(schema: JsonObject, root: JsonObject, depth: int) -> Shape:
    properties, required = schema.get("properties"), schema.get("required")
    is_open = schema.get("additionalProperties", False) is not False
    if not isinstance(properties, dict):
        return Opaque() if depth else RecordOf(is_open=is_open)
    names = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    fields = {}
    for name, inner in properties.items():
        shape, nullable = _shape(inner, root, depth + 1)
        fields[name] = Field(shape, name in names, nullable)
    return RecordOf(fields, is_open)


def _refers(schema: JsonValue) -> bool:
    """Whether *schema*, the target of a reference, refers further: one step is followed, chains are not."""
    stack: list[JsonValue] = [schema]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            if "$ref" in part:
                return True
            stack.extend(part.values())
        elif isinstance(part, list):
            stack.extend(part)
    return False


def _resolve(reference: JsonValue, root: JsonObject) -> JsonValue:
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    found: JsonValue = root
    for part in reference[2:].split("/"):
        if not isinstance(found, dict):
            return None
        found = found.get(part.replace("~1", "/").replace("~0", "~"))
    return found


def cedar_type(shape: Shape) -> str:
    """Cedar schema text."""
    match shape:
        case Scalar(cedar):
            return cedar
        case SetOf(item):
            return f"Set<{cedar_type(item)}>"
        case RecordOf(fields):
            inside = ", ".join(
                f"{quote(name)}{'' if f.required and not f.nullable else '?'}: {cedar_type(f.shape)}"
                for name, f in fields.items()
                if not isinstance(f.shape, Opaque)
            )
            return f"{{ {inside} }}" if inside else "{}"
        case Opaque():
            raise ValueError("an opaque shape has no Cedar type")
        case _:
            assert_never(shape)


def quote(text: str) -> str:
    """A Cedar string literal."""
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\u{{{ord(c):x}}}" for c in text)
    return f'"{escaped}"'


def project(shape: Shape, value: JsonValue, path: str = "args") -> JsonValue:
    """*value* as Cedar JSON of *shape*'s type, or :class:`Unverifiable` (``arguments_invalid``)."""
    match shape:
        case RecordOf():
            return _project_record(shape, value, path)
        case SetOf(item):
            if not isinstance(value, list):
                _refuse(path, "an array", value)
            return [project(item, one, f"{path}[{i}]") for i, one in enumerate(value)]
        case Scalar():
            return _project_scalar(shape, value, path)
        case Opaque():
            return value
        case _:
            assert_never(shape)


def _project_record(shape: RecordOf, value: JsonValue, path: str) -> JsonValue:
    if not isinstance(value, dict):
        _refuse(path, "an object", value)
    made: JsonObject = {}
    for name, inner in value.items():
        declared = shape.fields.get(name)
        if declared is None:
            if shape.is_open:
                continue
            known = ", ".join(shape.fields) or "none"
            raise Unverifiable(
                Reason.ARGUMENTS_INVALID, f'{path}: unknown argument "{visible(name)}"; declared: {known}'
            )
        if inner is None and declared.nullable:
            continue
        projected = project(declared.shape, inner, f"{path}.{name}")
        if not isinstance(declared.shape, Opaque):
            made[name] = projected
    for name, declared in shape.fields.items():
        if declared.required and name not in value:
            raise Unverifiable(Reason.ARGUMENTS_INVALID, f'{path}: the argument "{name}" is missing')
    return made


def _project_scalar(shape: Scalar, value: JsonValue, path: str) -> JsonValue:
    if shape.enum and value not in shape.enum:
        _refuse(path, "one of " + ", ".join(str(one) for one in shape.enum), value)
    match shape.cedar, value:
        case ("Bool", bool()) | ("String", str()):
            return value
        case (("Long" | "decimal"), bool()):
            pass  # Python's True is an int, JSON's true is not
        case "Long", int():
            return value
        case "Long", float() if value.is_integer() and abs(value) < 2**53:
            return int(value)
        case "decimal", int() | float():
            return _decimal(value, path)
    return _refuse(path, PLAIN_WORDS[shape.cedar], value)


def _decimal(value: float, path: str) -> JsonValue:
    exact = Decimal(repr(value))
    places = -int(exact.as_tuple().exponent)
    if places > _DECIMAL_PLACES or abs(exact) > _DECIMAL_LIMIT:
        raise Unverifiable(
            Reason.ARGUMENTS_INVALID,
            f"{path}: {value} cannot be judged exactly; numbers carry at most {_DECIMAL_PLACES} decimal places here",
        )
    return {"__extn": {"fn": "decimal", "arg": f"{exact:.{max(places, 1)}f}"}}


def _refuse(path: str, expected: str, found: JsonValue) -> NoReturn:
    shown = visible(repr(found), 60)
    raise Unverifiable(Reason.ARGUMENTS_INVALID, f"{path}: expected {expected}, found {shown}")
