"""Constraints on one argument of a tool: what value satisfies one, and when one is at least as narrow as another.

The vocabulary is that of draft-niyikiza-oauth-attenuating-agent-tokens, section "constraints", with ``prefix`` for
``pattern`` and without ``regex``, ``cel`` and ``wildcard``: whether one of those contains another cannot be decided
simply, and what cannot be decided is refused. Values are compared as JSON values (RFC 8785 forms are equal).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, assert_never

import msgspec

from trust.canonical import jcs
from trust.reasons import visible

MAX_NESTING: Final = 4
"""``all`` and ``any`` inside one another: comparing two of them tries pairs, and pairs of pairs."""

MAX_VALUES: Final = 256
"""Of one constraint."""
MAX_PARTS: Final = 500
"""Of one token, values and constraints together. Comparing two tokens tries every constraint on an argument with every
other on it, so of those there are at most :data:`MAX_CONSTRAINTS`."""
MAX_CONSTRAINTS: Final = 32
MAX_SHOWN: Final = 10

_Values = Annotated[list[Any], msgspec.Meta(min_length=1, max_length=MAX_VALUES)]


class _Constraint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="constraint_type"):
    """Base of all; another ``constraint_type`` or another member is refused."""


class Exact(_Constraint, frozen=True, tag="exact"):
    value: Any


class Range(_Constraint, frozen=True, tag="range", omit_defaults=True):
    """Both ends belong to it; one may be open."""

    min: int | float | None = None
    max: int | float | None = None


class OneOf(_Constraint, frozen=True, tag="one_of"):
    values: _Values


class NotOneOf(_Constraint, frozen=True, tag="not_one_of"):
    excluded: _Values


class Contains(_Constraint, frozen=True, tag="contains"):
    """A list with all of these."""

    required: _Values


class Subset(_Constraint, frozen=True, tag="subset"):
    """A list with none but these."""

    allowed: _Values


class Prefix(_Constraint, frozen=True, tag="prefix"):
    """A text that begins so, without a segment ``..`` that would lead out of it again."""

    prefix: Annotated[str, msgspec.Meta(min_length=1)]


class All(_Constraint, frozen=True, tag="all"):
    constraints: Annotated[list[Constraint], msgspec.Meta(min_length=1, max_length=100)]


class AnyOf(_Constraint, frozen=True, tag="any"):
    constraints: Annotated[list[Constraint], msgspec.Meta(min_length=1, max_length=100)]


Constraint = Exact | Range | OneOf | NotOneOf | Contains | Subset | Prefix | All | AnyOf


def sound(constraint: Constraint, nesting: int = MAX_NESTING) -> bool:
    """Whether *constraint* says anything, and is not nested too deeply to be compared."""
    if nesting == MAX_NESTING and count(constraint) > MAX_CONSTRAINTS:
        return False
    match constraint:
        case All() | AnyOf():
            return nesting > 0 and all(sound(one, nesting - 1) for one in constraint.constraints)
        case Range():
            return constraint.min is not None or constraint.max is not None
        case Prefix():
            return _stays_inside(constraint.prefix)
    return True


def count(constraint: Constraint) -> int:
    """How many constraints there are, those inside included."""
    inner = constraint.constraints if isinstance(constraint, All | AnyOf) else []
    return 1 + sum(map(count, inner))


def parts(constraint: Constraint) -> int:
    """How much there is to compare."""
    match constraint:
        case OneOf(values=values) | NotOneOf(excluded=values) | Contains(required=values) | Subset(allowed=values):
            return 1 + len(values)
        case All(constraints=inner) | AnyOf(constraints=inner):
            return 1 + sum(map(parts, inner))
    return 1


def told(constraint: Constraint) -> str:
    """*constraint* in words, as it follows the name of an argument."""
    match constraint:
        case Exact(value=value):
            return f"= {_shown(value)}"
        case Range(min=low, max=high):
            return f"from {_end(low)} to {_end(high)}"
        case OneOf(values=values):
            return f"one of {_listed(values)}"
        case NotOneOf(excluded=values):
            return f"none of {_listed(values)}"
        case Contains(required=values):
            return f"with all of {_listed(values)}"
        case Subset(allowed=values):
            return f"with none but {_listed(values)}"
        case Prefix(prefix=prefix):
            return f"begins with {_shown(prefix)}"
        case All(constraints=inner):
            return "(" + " and ".join(map(told, inner)) + ")"
        case AnyOf(constraints=inner):
            return "(" + " or ".join(map(told, inner)) + ")"
        case _:
            assert_never(constraint)


def _end(number: float | None) -> str:
    return "any" if number is None else str(number)


def _listed(values: list[Any]) -> str:
    return ", ".join(map(_shown, values[:MAX_SHOWN])) + (
        f" and {len(values) - MAX_SHOWN} more" * (len(values) > MAX_SHOWN)
    )


def _shown(value: Any) -> str:
    return visible(jcs(value).decode(), 80)


def satisfies(constraint: Constraint, value: Any) -> bool:
    """Whether *value* (JSON) is one that *constraint* allows."""
    match constraint:
        case Exact():
            return _same(constraint.value, value)
        case Range():
            return _is_number(value) and _within(constraint, value, value)
        case OneOf():
            return _among(value, constraint.values)
        case NotOneOf():
            return not _among(value, constraint.excluded)
        case Contains():
            return isinstance(value, list) and _all_among(constraint.required, value)
        case Subset():
            return isinstance(value, list) and _all_among(value, constraint.allowed)
        case Prefix():
            return isinstance(value, str) and value.startswith(constraint.prefix) and _stays_inside(value)
        case All():
            return all(satisfies(one, value) for one in constraint.constraints)
        case AnyOf():
            return any(satisfies(one, value) for one in constraint.constraints)
        case _:
            assert_never(constraint)


def narrows(child: Constraint, parent: Constraint) -> bool:
    """Whether every value that *child* allows is known to be one that *parent* allows. In doubt: no."""
    match child, parent:
        case Exact(), _:
            return satisfies(parent, child.value)
        case OneOf(), OneOf():
            return _all_among(child.values, parent.values)
        case OneOf(), _:
            return all(satisfies(parent, value) for value in child.values)
        case AnyOf(), _:
            return all(narrows(one, parent) for one in child.constraints)
        case _, All():
            return all(narrows(child, one) for one in parent.constraints)
        case Range(), Range():
            return _within(parent, child.min, child.max)
        case NotOneOf(), NotOneOf():
            return _all_among(parent.excluded, child.excluded)
        case Contains(), Contains():
            return _all_among(parent.required, child.required)
        case Subset(), Subset():
            return _all_among(child.allowed, parent.allowed)
        case Prefix(), Prefix():
            return child.prefix.startswith(parent.prefix)
    alternatives = parent.constraints if isinstance(parent, AnyOf) else []
    parts = child.constraints if isinstance(child, All) else []
    return any(narrows(child, one) for one in alternatives) or any(narrows(one, parent) for one in parts)


def _within(outer: Range, low: float | None, high: float | None) -> bool:
    """Whether everything from *low* to *high* (None: without end) lies inside *outer*."""
    return (outer.min is None or (low is not None and low >= outer.min)) and (
        outer.max is None or (high is not None and high <= outer.max)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(one: Any, other: Any) -> bool:
    return jcs(one) == jcs(other)


def _among(value: Any, values: list[Any]) -> bool:
    return _all_among([value], values)


def _all_among(some: list[Any], values: list[Any]) -> bool:
    """Whether each of *some* is one of *values*; each is brought into its canonical form once."""
    known = {jcs(value) for value in values}
    return all(jcs(value) in known for value in some)


def _stays_inside(text: str) -> bool:
    """No segment of *text* leads upwards, in whatever way a path may be spelled."""
    return ".." not in text.replace("\\", "/").split("/")
