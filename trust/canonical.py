"""JSON with one meaning: a reader that refuses ambiguity, a writer after RFC 8785.

Two parsers that disagree about the same bytes are how a policy check and a tool come to see different
arguments. So the reader refuses everything on which JSON parsers are known to differ (duplicate keys, NaN,
byte order marks, lone surrogates, numbers that do not fit, depth), and never repairs. The writer gives the
canonical form (JCS) of which digests are taken.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Final, NoReturn

import msgspec
import rfc8785

from trust.reasons import Reason, Unverifiable, visible

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]
JsonObject = dict[str, JsonValue]

MAX_DEPTH: Final = 64
"""Containers inside containers. Deeper than any tool's arguments seen; shallow enough for every parser."""

_INT64: Final = 1 << 63
_MAX_INT_DIGITS: Final = 20  # "-9223372036854775808"; refuses before Python builds a huge integer
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def _refuse(detail: str) -> NoReturn:
    raise Unverifiable(Reason.AMBIGUOUS_JSON, detail)


def _unique(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                _refuse(f'the key "{visible(key)}" stands twice in one object')
            seen.add(key)
    return made


def _integer(digits: str) -> int:
    if len(digits) > _MAX_INT_DIGITS:
        _refuse(f"the number {visible(digits, 24)} does not fit 64 bits")
    value = int(digits)
    if not -_INT64 <= value < _INT64:
        _refuse(f"the number {digits} does not fit 64 bits; send it as a string")
    return value


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        _refuse(f"the number {visible(digits, 24)} does not fit 64 bits")
    return value


def _constant(name: str) -> NoReturn:
    _refuse(f"{name} is not JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer, parse_float=_float, parse_constant=_constant)


def read_json(data: bytes) -> JsonValue:
    """The value of one JSON text, or :class:`Unverifiable` (``ambiguous_json``) with what was found.

    The caller bounds the size of *data* before it comes here.
    """
    if data.startswith(b"\xef\xbb\xbf"):
        _refuse("the text starts with a byte order mark")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as bad:
        _refuse(f"the text is not UTF-8 (byte {bad.start})")
    try:
        value: JsonValue = _decoder.decode(text)
    except json.JSONDecodeError as bad:
        _refuse(f"{bad.msg} (line {bad.lineno}, column {bad.colno})")
    except RecursionError:
        _refuse(f"nested deeper than {MAX_DEPTH}")
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth_exceeds(value, MAX_DEPTH):
        _refuse(f"nested deeper than {MAX_DEPTH}")
    if _SURROGATE_ESCAPE.search(text):
        _refuse_lone_surrogates(value)
    return value


def read_object(data: bytes) -> JsonObject:
    """Like :func:`read_json`, for texts that must be one object."""
    value = read_json(data)
    if not isinstance(value, dict):
        _refuse(f"expected a JSON object, found {type(value).__name__}")
    return value


def _depth_exceeds(value: JsonValue, limit: int) -> bool:
    level: list[JsonValue] = [value]
    for _ in range(limit):
        level = [inner for outer in level for inner in _children(outer)]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)


def _children(value: JsonValue) -> Iterator[JsonValue]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _refuse_lone_surrogates(value: JsonValue) -> None:
    stack: list[JsonValue] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            _refuse_surrogates_in(item)
        elif isinstance(item, dict):
            for key in item:
                _refuse_surrogates_in(key)
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _refuse_surrogates_in(text: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in text):
        _refuse("a string holds a lone surrogate")


_plain_encoder = msgspec.json.Encoder(order="sorted")


def jcs(value: JsonValue) -> bytes:
    """The canonical form of *value* (RFC 8785), as UTF-8.

    Integers between 2^53 and 2^63 keep their exact digits, where the RFC would have them rounded; together
    with floating point they are refused, because then no canonical form is exact.
    """
    if _is_plain(value):
        return _plain_encoder.encode(value)
    try:
        return bytes(rfc8785.dumps(value))
    except rfc8785.CanonicalizationError as bad:
        raise Unverifiable(Reason.AMBIGUOUS_JSON, f"no canonical form: {bad}") from None


def _is_plain(value: JsonValue) -> bool:
    """Whether the C encoder already writes *value* canonically: no floats, no keys that sort differently in UTF-16."""
    if isinstance(value, dict):
        return all(key.isascii() and _is_plain(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return not isinstance(value, float)


def sha256_hex(data: bytes) -> str:
    """SHA-256 of *data*, 64 lowercase hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest_of(value: JsonValue) -> str:
    """SHA-256 of the canonical form of *value*, 64 lowercase hexadecimal digits."""
    return sha256_hex(jcs(value))
