"""A tool's arguments as Cedar saw them, by the tool's JSON Schema, as docs/policies.md says."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Tuple

from .cedar import Set, Unsupported, from_json

Shape = Tuple[Any, ...]
_SCALARS = {"string": "String", "integer": "Long", "boolean": "Bool", "number": "decimal"}
_DEPTH = 12
OPAQUE: Shape = ("opaque",)


def shape_of(schema: Any) -> Shape:
    """A tree of ("record", fields), ("set", item), ("scalar", type) and :data:`OPAQUE`; a field is (shape, nullable).

    What is opaque never reaches a policy.
    """
    shape, _ = _shape(schema, schema, 0)
    return shape if shape[0] == "record" else ("record", {}, set(), False)


def _shape(schema: Any, root: Any, depth: int) -> tuple[Shape, bool]:
    if not isinstance(schema, dict) or depth > _DEPTH:
        return OPAQUE, True
    if "$ref" in schema:
        target = _target(schema["$ref"], root)
        return (OPAQUE, True) if _refers(target) else _shape(target, root, depth + 1)
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return _union(schema[union], root, depth)
    if "allOf" in schema or "not" in schema or "if" in schema:
        return OPAQUE, True
    kind = schema.get("type")
    if isinstance(kind, list):
        return _union([dict(schema, type=one) for one in kind], root, depth)
    if kind == "object" or (depth == 0 and "properties" in schema):
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            is_open = schema.get("additionalProperties", False) is not False
            return (OPAQUE if depth else ("record", {}, set(), is_open)), False
        required = schema.get("required")
        needed = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
        fields = {name: _shape(inner, root, depth + 1) for name, inner in properties.items()}
        return ("record", fields, needed, schema.get("additionalProperties", False) is not False), False
    if kind == "array":
        item, nullable = _shape(schema.get("items"), root, depth + 1)
        return (OPAQUE if item == OPAQUE or nullable else ("set", item)), False
    if isinstance(kind, str) and kind in _SCALARS:
        allowed = [schema["const"]] if "const" in schema else schema.get("enum")
        return ("scalar", _SCALARS[kind], allowed if isinstance(allowed, list) else []), False
    return OPAQUE, True


def _union(members: Any, root: Any, depth: int) -> tuple[Shape, bool]:
    if not isinstance(members, list):
        return OPAQUE, True
    rest = [m for m in members if not (isinstance(m, dict) and m.get("type") == "null")]
    if len(rest) != 1:
        return OPAQUE, True
    shape, nullable = _shape(rest[0], root, depth + 1)
    return shape, nullable or len(rest) < len(members)


def _refers(part: Any) -> bool:
    if isinstance(part, dict):
        return "$ref" in part or any(_refers(inner) for inner in part.values())
    return isinstance(part, list) and any(_refers(inner) for inner in part)


def _target(reference: Any, root: Any) -> Any:
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    for part in reference[2:].split("/"):
        if not isinstance(root, dict):
            return None
        root = root.get(part.replace("~1", "/").replace("~0", "~"))
    return root


def projected(shape: Shape, value: Any) -> Any:
    """*value* as a Cedar value of *shape*; :class:`Unsupported` if Licet would have refused it before any policy."""
    if shape == OPAQUE:
        return value
    if shape[0] == "record":
        return _record(shape, value)
    if shape[0] == "set":
        if not isinstance(value, list):
            raise _other()
        return Set([projected(shape[1], one) for one in value])
    return _scalar(shape[1], shape[2], value)


def _record(shape: Shape, value: Any) -> Any:
    _, fields, needed, is_open = shape
    if not isinstance(value, dict) or not needed <= set(value):
        raise _other()
    found = {}
    for name, inner in value.items():
        if name not in fields:
            if is_open:
                continue
            raise _other()
        declared, nullable = fields[name]
        if inner is None and nullable:
            continue
        made = projected(declared, inner)
        if declared != OPAQUE:
            found[name] = made
    return found


def _scalar(kind: str, allowed: list[Any], value: Any) -> Any:
    if allowed and value not in allowed:
        raise _other()
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if (kind == "Bool" and isinstance(value, bool)) or (kind == "String" and isinstance(value, str)):
        return value
    if kind == "Long" and number and float(value).is_integer() and (isinstance(value, int) or abs(value) < 2**53):
        return int(value)
    if kind == "decimal" and number:
        exact = Decimal(repr(value))
        places = max(1, -int(exact.as_tuple().exponent))
        if places > 4:
            raise _other()
        return from_json({"__extn": {"fn": "decimal", "arg": f"{exact:.{places}f}"}})
    raise _other()


def _other() -> Unsupported:
    return Unsupported("its arguments are not what the tool's schema says, and so never reached a policy")
