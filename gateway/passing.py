"""A node's answer on its way to the sidecar: passed on as it comes, and looked at for how it ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from edge.client import Reply
from edge.http import Incoming, Response, StreamResponse, relay, watched
from gateway.state import NodeRecord
from trust import mcp, wire
from trust.mcp import MAX_TAIL_BYTES

Ending = Literal["done", "tool_error", "refused", "failed", "unknown", "abandoned"]


class Passed(msgspec.Struct, frozen=True):
    """What was passed on to the sidecar, and how it ended; ``size`` in bytes, for what came whole."""

    response: StreamResponse
    status: int
    how: Ending
    size: int = 0


def is_stream(reply: Reply) -> bool:
    return reply.header("Content-Type").startswith("text/event-stream")


def _headers(reply: Reply, node: NodeRecord, told: dict[str, str]) -> dict[str, str]:
    """What the sidecar hears beside the answer: what the node said, and what is *told* of the way there."""
    names = ("Content-Type", "mcp-session-id", wire.UPSTREAM_STATUS_HEADER)
    return {**{name: value for name in names if (value := reply.header(name))}, wire.NODE_HEADER: node.name, **told}


def passed(reply: Reply, node: NodeRecord, body: bytes, told: dict[str, str]) -> Passed:
    """A complete answer."""
    response = Response(status=reply.status, headers=_headers(reply, node, told), body=body)
    return Passed(response, reply.status, _ending(reply, body), len(body))


async def pass_on(
    incoming: Incoming, reply: Reply, node: NodeRecord, stopped: Callable[[], object], told: dict[str, str]
) -> Passed:
    """A stream to the sidecar, chunk by chunk, until it ends or is *stopped*."""
    tail = bytearray()
    chunks, headers = watched(reply.chunks(), tail, MAX_TAIL_BYTES), _headers(reply, node, told)
    streamed, complete = await relay(incoming, chunks, reply.status, headers, stopped)
    return Passed(streamed, reply.status, _ending(reply, bytes(tail)) if complete else "unknown")


def _ending(reply: Reply, body: bytes) -> Ending:
    """How the node says that it ended: only what its server answered, and answered without an error, is done."""
    upstream = reply.header(wire.UPSTREAM_STATUS_HEADER)
    if not upstream:
        return "failed" if reply.status >= 500 else "refused"
    if not upstream.isdecimal() or int(upstream) >= 400:
        return "failed"
    return "tool_error" if mcp.went_wrong(reply.header("Content-Type"), body) else "done"
