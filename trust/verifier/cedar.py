"""Cedar policies, evaluated: the semantics of the Cedar Policy Language, version 4, one small step after another.

What this evaluator does not know it says (:class:`Unsupported`); it never guesses.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Iterable
from typing import Any, NamedTuple, Union

from . import text
from .text import Policy, Tree

_MIN, _MAX = -(2**63), 2**63 - 1
_DECIMAL = re.compile(r"(-?)(\d+)\.(\d{1,4})", re.ASCII)
_DURATION = re.compile(r"(-?)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?", re.ASCII)
_DATETIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:T(\d\d):(\d\d):(\d\d)(?:\.(\d{3}))?(?:Z|([+-])(\d\d)(\d\d)))?", re.ASCII
)
_UNITS = (86_400_000, 3_600_000, 60_000, 1_000, 1)


class Uid(NamedTuple):
    """The name of an entity."""

    type: str
    id: str


class Decimal(NamedTuple):
    """In ten-thousandths."""

    units: int


class Datetime(NamedTuple):
    """In milliseconds since 1970."""

    ms: int


class Duration(NamedTuple):
    """In milliseconds."""

    ms: int


class Ip(NamedTuple):
    """An address, or a range of them."""

    text: str
    network: Union[ipaddress.IPv4Interface, ipaddress.IPv6Interface]


class Failed(Exception):
    """Cedar's own evaluation error: the policy counts as failed, and Licet then refuses."""


class Unsupported(Exception):
    """A part of the language that this evaluator does not know."""


class Set:
    """A Cedar set: no order, nothing twice."""

    def __init__(self, values: list[Any]) -> None:
        self.by_key = {key(value): value for value in values}


def key(value: Any) -> tuple[Any, ...]:
    """Something hashable that is equal exactly for values that Cedar holds equal."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, int):
        return ("long", value)
    if isinstance(value, str):
        return ("string", value)
    if isinstance(value, Set):
        return ("set", frozenset(value.by_key))
    if isinstance(value, dict):
        return ("record", frozenset((name, key(inner)) for name, inner in value.items()))
    if isinstance(value, Ip):
        return ("ip", str(value.network))
    return (type(value).__name__, tuple(value))


def from_json(value: Any) -> Any:
    """Cedar's JSON form of a value: ``__entity`` and ``__extn`` are what they say."""
    if isinstance(value, dict):
        if set(value) == {"__entity"}:
            return Uid(value["__entity"]["type"], value["__entity"]["id"])
        if set(value) == {"__extn"}:
            return extension(value["__extn"]["fn"], [value["__extn"]["arg"]])
        return {name: from_json(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return Set([from_json(inner) for inner in value])
    if value is None or isinstance(value, float):
        raise Unsupported(f"a value that Cedar has no type for: {value!r}")
    return value


class Entity:
    """Attributes by name, and the :class:`Uid` of each parent."""

    def __init__(self, attributes: dict[str, Any] | None = None, parents: Iterable[Uid] = ()) -> None:
        self.attributes = attributes or {}
        self.parents = tuple(parents)


class Request:
    """What is asked, and the entities that there are, by :class:`Uid`."""

    def __init__(self, principal: Uid, action: Uid, resource: Uid, context: Any, entities: Any) -> None:
        self.variables = {"principal": principal, "action": action, "resource": resource, "context": context}
        self.entities = entities

    def is_in(self, one: Uid, other: Uid) -> bool:
        """Whether *one* is *other* or lies below it."""
        seen, left = set(), [one]
        while left:
            uid = left.pop()
            if uid == other:
                return True
            if uid not in seen:
                seen.add(uid)
                if uid in self.entities:
                    left.extend(self.entities[uid].parents)
        return False


def answer(policies: dict[str, Policy], request: Request) -> tuple[bool, list[str], list[str]]:
    """(allowed, ids that decided, ids that failed) of *policies*, by id (Cedar's authorization algorithm)."""
    satisfied: dict[str, list[str]] = {"permit": [], "forbid": []}
    failed: list[str] = []
    for name, policy in policies.items():
        try:
            if _applies(policy, request):
                satisfied[policy.effect].append(name)
        except Failed:
            failed.append(name)
    decided = satisfied["forbid"] or satisfied["permit"]
    return bool(satisfied["permit"] and not satisfied["forbid"]), sorted(decided), sorted(failed)


def _applies(policy: Policy, request: Request) -> bool:
    if not all(_truth(part, request) for part in policy.scope):
        return False
    return all(_truth(tree, request) == (kind == "when") for kind, tree in policy.conditions)


def in_scope(policy: Policy, request: Request) -> bool:
    """Whether principal, action and resource are those that *policy* speaks of."""
    return all(_truth(part, request) for part in policy.scope)


def _truth(tree: Tree, request: Request) -> bool:
    return bool(_need(evaluate(tree, request), bool, "a boolean"))


def _need(value: Any, kind: Any, name: str) -> Any:
    if (kind is int and isinstance(value, bool)) or not isinstance(value, kind):
        raise Failed(f"expected {name}")
    return value


def evaluate(tree: Tree, request: Request) -> Any:
    """The value of an expression; :class:`Failed` where Cedar has an error."""
    return _RULES[tree[0]](tree, request)


def _set(tree: Tree, request: Request) -> Set:
    return Set([evaluate(one, request) for one in tree[1]])


def _record(tree: Tree, request: Request) -> dict[str, Any]:
    return {name: evaluate(one, request) for name, one in tree[1]}


def _and(tree: Tree, request: Request) -> bool:
    return _truth(tree[1], request) and _truth(tree[2], request)


def _or(tree: Tree, request: Request) -> bool:
    return _truth(tree[1], request) or _truth(tree[2], request)


def _if(tree: Tree, request: Request) -> Any:
    return evaluate(tree[2] if _truth(tree[1], request) else tree[3], request)


def _equal(tree: Tree, request: Request) -> bool:
    same = key(evaluate(tree[1], request)) == key(evaluate(tree[2], request))
    return same if tree[0] == "==" else not same


def _compare(tree: Tree, request: Request) -> bool:
    left, right = evaluate(tree[1], request), evaluate(tree[2], request)
    for kind in (Datetime, Duration):
        if isinstance(left, kind) and isinstance(right, kind):
            left, right = left.ms, right.ms
            break
    else:
        _need(left, int, "a long")
        _need(right, int, "a long")
    return bool({"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[tree[0]])


def _arithmetic(tree: Tree, request: Request) -> int:
    left = _need(evaluate(tree[1], request), int, "a long")
    right = _need(evaluate(tree[2], request), int, "a long")
    return _fits({"+": left + right, "-": left - right, "*": left * right}[tree[0]])


def _fits(number: int) -> int:
    if not _MIN <= number <= _MAX:
        raise Failed("integer overflow")
    return number


def _in(tree: Tree, request: Request) -> bool:
    one = _need(evaluate(tree[1], request), Uid, "an entity")
    other = evaluate(tree[2], request)
    if isinstance(other, Set):
        members = [_need(member, Uid, "an entity") for member in other.by_key.values()]
        return any(request.is_in(one, member) for member in members)
    return request.is_in(one, _need(other, Uid, "an entity"))


def _is(tree: Tree, request: Request) -> bool:
    one = _need(evaluate(tree[1], request), Uid, "an entity")
    if one.type != tree[2]:
        return False
    return True if tree[3] is None else _in(("in", tree[1], tree[3]), request)


def _attributes(value: Any, request: Request) -> dict[str, Any] | None:
    if isinstance(value, dict):
        return value
    _need(value, Uid, "an entity or a record")
    found = request.entities.get(value)
    return found.attributes if found is not None else None


def _has(tree: Tree, request: Request) -> bool:
    value = evaluate(tree[1], request)
    for name in tree[2]:
        attributes = _attributes(value, request)
        if attributes is None or name not in attributes:
            return False
        value = attributes[name]
    return True


def _get(tree: Tree, request: Request) -> Any:
    attributes = _attributes(evaluate(tree[1], request), request)
    if attributes is None or tree[2] not in attributes:
        raise Failed(f"there is no attribute {tree[2]}")
    return attributes[tree[2]]


def _like(tree: Tree, request: Request) -> bool:
    value = _need(evaluate(tree[1], request), str, "a string")
    pattern = "".join(".*" if one is text.STAR else re.escape(one) for one in tree[2])
    return re.fullmatch(pattern, value, re.DOTALL) is not None


def _extension(tree: Tree, request: Request) -> Any:
    return extension(tree[1], [evaluate(one, request) for one in tree[2]])


def extension(name: str, arguments: list[Any]) -> Any:
    """The value that a constructor makes of its one string."""
    if len(arguments) != 1:
        raise Failed(f"{name} takes one argument")
    if name not in _CONSTRUCTORS:
        raise Unsupported(f"the function {name}")
    return _CONSTRUCTORS[name](_need(arguments[0], str, "a string"))


def _decimal(written: str) -> Decimal:
    match = _DECIMAL.fullmatch(written)
    if match is None:
        raise Failed("not a decimal")
    units = int(match.group(2)) * 10_000 + int(match.group(3).ljust(4, "0"))
    return Decimal(_fits(-units if match.group(1) else units))


def _duration(written: str) -> Duration:
    match = _DURATION.fullmatch(written)
    if match is None or not any(match.groups()[1:]):
        raise Failed("not a duration")
    sign = -1 if match.group(1) else 1
    return Duration(_fits(sum(sign * int(n) * unit for n, unit in zip(match.groups()[1:], _UNITS) if n)))


def _datetime(written: str) -> Datetime:
    match = _DATETIME.fullmatch(written)
    if match is None:
        raise Failed("not a datetime")
    year, month, day, hour, minute, second, ms, sign, hours, minutes = match.groups()
    if year == "0000":
        raise Unsupported("the year 0")
    if hours and (int(hours) > 23 or int(minutes) > 59):
        raise Failed("not an offset")
    try:
        moment = datetime.datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0))
    except ValueError:
        raise Failed("not a datetime") from None
    since = moment - datetime.datetime(1970, 1, 1)
    total = (since.days * 86_400 + since.seconds) * 1000 + int(ms or 0)
    if sign:
        apart = (int(hours) * 60 + int(minutes)) * 60_000
        total += -apart if sign == "+" else apart
    return Datetime(total)


def _ip(written: str) -> Ip:
    if not re.fullmatch(r"[0-9a-fA-F.:/]{1,43}", written) or (":" in written and "." in written):
        raise Failed("not an address")
    address, slash, bits = written.partition("/")
    if slash and (not bits.isdigit() or (len(bits) > 1 and bits[0] == "0")):
        raise Failed("not an address")
    try:
        return Ip(address, ipaddress.ip_interface(written))
    except ValueError:
        raise Failed("not an address") from None


_CONSTRUCTORS = {"decimal": _decimal, "duration": _duration, "datetime": _datetime, "ip": _ip}


def _call(tree: Tree, request: Request) -> Any:
    receiver = evaluate(tree[1], request)
    arguments = [evaluate(one, request) for one in tree[3]]
    if tree[2] not in _METHODS:
        raise Unsupported(f"the method {tree[2]}")
    kinds, method = _METHODS[tree[2]]
    if len(arguments) != len(kinds) - 1:
        raise Failed(f"{tree[2]} takes {len(kinds) - 1} arguments")
    for value, kind in zip([receiver, *arguments], kinds):
        if kind is not object:
            _need(value, kind, kind.__name__)
    return method(receiver, *arguments)


def _quotient(number: int, unit: int) -> int:
    """Towards zero."""
    return number // unit if number >= 0 else -(-number // unit)


def _to_time(moment: Datetime) -> Duration:
    return Duration(moment.ms % 86_400_000)


def _to_date(moment: Datetime) -> Datetime:
    return Datetime(_fits(moment.ms - moment.ms % 86_400_000))


def _in_range(one: Ip, other: Ip) -> bool:
    first, second = one.network.network, other.network.network
    return first.version == second.version and _within(first, second)


def _within(first: Any, second: Any) -> bool:
    return bool(first.subnet_of(second))


def _multicast(one: Ip) -> bool:
    return one.network.network.network_address.is_multicast and one.network.network.broadcast_address.is_multicast


def _loopback(one: Ip) -> bool:
    return one.network.network.network_address.is_loopback and one.network.network.broadcast_address.is_loopback


_METHODS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "contains": ((Set, object), lambda s, v: key(v) in s.by_key),
    "containsAll": ((Set, Set), lambda s, o: set(o.by_key) <= set(s.by_key)),
    "containsAny": ((Set, Set), lambda s, o: bool(set(o.by_key) & set(s.by_key))),
    "isEmpty": ((Set,), lambda s: not s.by_key),
    "lessThan": ((Decimal, Decimal), lambda a, b: a.units < b.units),
    "lessThanOrEqual": ((Decimal, Decimal), lambda a, b: a.units <= b.units),
    "greaterThan": ((Decimal, Decimal), lambda a, b: a.units > b.units),
    "greaterThanOrEqual": ((Decimal, Decimal), lambda a, b: a.units >= b.units),
    "offset": ((Datetime, Duration), lambda m, d: Datetime(_fits(m.ms + d.ms))),
    "durationSince": ((Datetime, Datetime), lambda m, o: Duration(_fits(m.ms - o.ms))),
    "toDate": ((Datetime,), _to_date),
    "toTime": ((Datetime,), _to_time),
    "toMilliseconds": ((Duration,), lambda d: d.ms),
    "toSeconds": ((Duration,), lambda d: _quotient(d.ms, 1_000)),
    "toMinutes": ((Duration,), lambda d: _quotient(d.ms, 60_000)),
    "toHours": ((Duration,), lambda d: _quotient(d.ms, 3_600_000)),
    "toDays": ((Duration,), lambda d: _quotient(d.ms, 86_400_000)),
    "isIpv4": ((Ip,), lambda a: a.network.version == 4),
    "isIpv6": ((Ip,), lambda a: a.network.version == 6),
    "isLoopback": ((Ip,), _loopback),
    "isMulticast": ((Ip,), _multicast),
    "isInRange": ((Ip, Ip), _in_range),
}
_RULES = {
    "lit": lambda tree, request: tree[1],
    "var": lambda tree, request: request.variables[tree[1]],
    "ent": lambda tree, request: Uid(tree[1], tree[2]),
    "set": _set,
    "rec": _record,
    "ext": _extension,
    "call": _call,
    "get": _get,
    "has": _has,
    "like": _like,
    "is": _is,
    "in": _in,
    "&&": _and,
    "||": _or,
    "if": _if,
    "not": lambda tree, request: not _truth(tree[1], request),
    "neg": lambda tree, request: _fits(-_need(evaluate(tree[1], request), int, "a long")),
    "==": _equal,
    "!=": _equal,
    "<": _compare,
    "<=": _compare,
    ">": _compare,
    ">=": _compare,
    "+": _arithmetic,
    "-": _arithmetic,
    "*": _arithmetic,
}
