"""Step 8 as the sidecar sees it: a permitted action goes to the gateway, and nothing goes without its permit."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import msgspec

from edge.client import Broken, Reply, Unreachable
from sidecar.identity import Identity
from trust import wire
from trust.action import Action
from trust.reasons import Reason, Unverifiable
from trust.verdict import Permit, Refusal, Step
from trust.wire import Dispatch


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What came back. ``chunks`` is there for a stream; closing ``stack`` ends the connection's use."""

    node: str
    status: int
    headers: dict[str, str]
    body: bytes
    chunks: AsyncIterator[bytes] | None
    stack: AsyncExitStack


async def forward(identity: Identity, action: Action, permit: Permit, dispatch: Dispatch) -> Forwarded | Refusal:
    """Send *action* under *permit*. A refusal by gateway or node is a value; a lost answer is
    :class:`Unverifiable` (``outcome_unknown``)."""
    if permit.payload_digest != action.payload_digest or permit.decision_id != action.decision_id:
        raise Unverifiable(Reason.PERMIT_INVALID, "the permit is for another action")
    body = wire.encode(dispatch, action.payload.body)
    stack = AsyncExitStack()
    try:
        reply = await stack.enter_async_context(
            identity.send("POST", "/v1/dispatch", body, {"Content-Type": wire.DISPATCH_TYPE})
        )
        if not reply.header(wire.UPSTREAM_STATUS_HEADER):
            return await _refusal(reply, stack)
        return await _forwarded(reply, stack)
    except Unreachable as bad:
        await stack.aclose()
        return Refusal(8, Reason.GATEWAY_UNREACHABLE, str(bad))
    except Broken as bad:
        await stack.aclose()
        raise Unverifiable(Reason.OUTCOME_UNKNOWN, f"the connection to the gateway broke: {bad}") from None
    except BaseException:
        await stack.aclose()
        raise


async def _forwarded(reply: Reply, stack: AsyncExitStack) -> Forwarded:
    headers = {name: value for name in ("Content-Type", "mcp-session-id") if (value := reply.header(name))}
    status, node = int(reply.header(wire.UPSTREAM_STATUS_HEADER)), reply.header(wire.NODE_HEADER)
    if headers.get("Content-Type", "").startswith("text/event-stream"):
        return Forwarded(node, status, headers, b"", reply.chunks(), stack)
    body = await reply.read()
    await stack.aclose()
    return Forwarded(node, status, headers, body, None, stack)


async def _refusal(reply: Reply, stack: AsyncExitStack) -> Refusal:
    body = await reply.read()
    await stack.aclose()
    return refusal_of(reply.status, body)


def refusal_of(status: int, body: bytes) -> Refusal:
    """A problem document of gateway or node, believed only as far as its reason is one of ours."""
    try:
        told: dict[str, Any] = json.loads(body)
        reason = Reason(told["reason"])
        step = msgspec.convert(told.get("step", 8), Step)
        policies = tuple(msgspec.convert(told.get("policy_ids", []), list[str]))
        return Refusal(step, reason, str(told.get("detail", ""))[:1000], policies)
    except (ValueError, KeyError, TypeError, msgspec.ValidationError):
        return Refusal(8, Reason.UPSTREAM_FAILED, f"the gateway answered {status} without saying why")
