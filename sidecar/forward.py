"""Step 8 as the sidecar sees it: a permitted action goes to the gateway, and nothing goes without its permit."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from edge.client import Broken, Reply, Unreachable
from sidecar.identity import Identity
from trust import wire
from trust.action import Action
from trust.reasons import Reason, Unverifiable
from trust.recalled import MEMBER, Recalled
from trust.verdict import Permit, Refusal, Step
from trust.wire import Dispatch


class Behind(msgspec.Struct, frozen=True):
    """The gateway knows more of what the agent did than the decision did: so much."""

    refusal: Refusal
    recalled: Recalled


class Forwarded(msgspec.Struct, frozen=True):
    """What came back. For a stream ``reply`` is still open: iterate its chunks, then close it. ``trace``: how the node
    was chosen, as the gateway tells it."""

    node: str
    status: int
    headers: dict[str, str]
    body: bytes
    reply: Reply | None
    trace: dict[str, Any] = {}


async def forward(
    identity: Identity, action: Action, permit: Permit, dispatch: Dispatch, *, strong: bool
) -> Forwarded | Behind | Refusal:
    """Send *action* under *permit*; *strong*: signed with the agent's key, not within a session.

    A refusal by gateway or node is a value; so is that the decision was made knowing too little. A lost answer is
    :class:`Unverifiable` (``outcome_unknown``).
    """
    if permit.payload_digest != action.payload_digest or permit.decision_id != action.decision_id:
        raise Unverifiable(Reason.PERMIT_INVALID, "the permit is for another action")
    body = wire.encode(dispatch, action.payload.body)
    try:
        headers = {"Content-Type": wire.DISPATCH_TYPE}
        reply = await identity.request("POST", "/v1/dispatch", body, headers, strong=strong)
    except Unreachable as bad:
        return Refusal(8, Reason.GATEWAY_UNREACHABLE, str(bad))
    except Broken as bad:
        raise _lost(bad) from None
    try:
        return await _came_back(reply)
    except Broken as bad:
        raise _lost(bad) from None
    except BaseException:
        reply.close()
        raise


def _lost(bad: Broken) -> Unverifiable:
    return Unverifiable(Reason.OUTCOME_UNKNOWN, f"the connection to the gateway broke: {bad}")


async def _came_back(reply: Reply) -> Forwarded | Behind | Refusal:
    """Only an answer that carries the upstream's status is the upstream's; anything else is a refusal."""
    upstream_status = reply.header(wire.UPSTREAM_STATUS_HEADER)
    if not upstream_status:
        body = await reply.read()
        refusal = refusal_of(reply.status, body)
        return _behind(refusal, body) if refusal.reason is Reason.STALE_FACTS else refusal
    headers = {name: value for name in ("Content-Type", "mcp-session-id") if (value := reply.header(name))}
    status, node = int(upstream_status), reply.header(wire.NODE_HEADER)
    if headers.get("Content-Type", "").startswith("text/event-stream"):
        return Forwarded(node, status, headers, b"", reply, _trace(reply))
    return Forwarded(node, status, headers, await reply.read(), None, _trace(reply))


def _behind(refusal: Refusal, body: bytes) -> Behind | Refusal:
    try:
        return Behind(refusal, msgspec.convert(json.loads(body)[MEMBER], Recalled))
    except (KeyError, ValueError):  # it is stale in another way
        return refusal


def _trace(reply: Reply) -> dict[str, Any]:
    """Only told on: nothing is decided by it."""
    try:
        told = json.loads(reply.header(wire.TRACE_HEADER) or "{}")
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


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
