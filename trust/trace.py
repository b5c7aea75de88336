"""Trace context (W3C): the ids by which what several processes did for one request is seen together."""

from __future__ import annotations

import re
from typing import Final

import msgspec

HEADER: Final = "traceparent"
_TRACEPARENT: Final = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_ZERO_TRACE, _ZERO_SPAN = "0" * 32, "0" * 16


class Trace(msgspec.Struct, frozen=True):
    """``span_id`` is ours, ``parent_id`` the caller's (empty: the trace begins here); lowercase hexadecimal.
    ``received_ns``: when the request was there, Unix nanoseconds."""

    trace_id: str
    span_id: str
    parent_id: str = ""
    received_ns: int = 0


NO_TRACE: Final = Trace("", "")


def continued(header: object, random: str, received_ns: int) -> Trace:
    """The trace that *header* (a ``traceparent``) names, with a span of our own; a new one if it names none that is
    valid. *random*: 48 random hexadecimal digits."""
    span = random[32:48]
    match = _TRACEPARENT.fullmatch(header) if isinstance(header, str) else None
    if match is None or match[2] == _ZERO_TRACE or match[3] == _ZERO_SPAN or (match[1] == "00" and match[5]):
        return Trace(random[:32], span, "", received_ns)
    return Trace(match[2], span, match[3], received_ns)


def traceparent(trace_id: str, span_id: str) -> str:
    """What the next process is told; empty if there is nothing to be told."""
    return f"00-{trace_id}-{span_id}-01" if trace_id and span_id else ""
