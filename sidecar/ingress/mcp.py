"""MCP over HTTP, both eras: ``/mcp/{server}``.

The message is passed on untouched and the answer comes back as it streams. A "no" takes the form that an MCP
client understands: for ``tools/call`` a result with ``isError``, otherwise a JSON-RPC error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from edge.clock import new_id, new_trace
from edge.http import Incoming, Response, StreamResponse, relay
from sidecar.answers import Allowed, Answer, Held, Refused
from sidecar.ingress.common import decision_headers
from sidecar.pipeline import Caller, Pipeline
from trust import mcp, wire
from trust.action import Action, Payload
from trust.canonical import JsonObject, jcs
from trust.mcp import Message
from trust.policy.inventory import require_server_name
from trust.reasons import TABLE, Reason, Unverifiable
from trust.trace import HEADER as TRACEPARENT
from trust.verdict import Refusal

EDITED: Final = "licet/edited"
"""In the ``_meta`` of a result: people changed the arguments before it ran."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One message with what its answer needs."""

    incoming: Incoming
    message: Message
    caller: Caller

    @property
    def is_tool_call(self) -> bool:
        return self.message.method == "tools/call"


class Mcp:
    """MCP requests against one pipeline."""

    def __init__(self, pipeline: Pipeline, default_run: str, hold_wait_s: float) -> None:
        self._pipeline = pipeline
        self._default_run = default_run
        self._hold_wait_s = hold_wait_s

    async def serve(self, incoming: Incoming, caller: Caller, server: str) -> StreamResponse:
        """One HTTP exchange of the MCP transport."""
        message: Message | None = None
        try:
            require_server_name(server)
            message = wire.message_of(Payload(incoming.method, (), incoming.body))
            action = self._action(incoming, message, server)
        except Unverifiable as bad:
            refused = await self._pipeline.refuse_with(Refusal.of(1, bad), new_id("dec"), caller=caller.authn)
            return _fault(refused, message)
        call = _Call(incoming, message, caller)
        return await self._answer(call, await self._pipeline.act(action, caller))

    def _action(self, incoming: Incoming, message: Message, server: str) -> Action:
        headers = dict(incoming.headers)
        mcp.require_headers_agree(message, headers)
        tool = self._pipeline.shown.tool(server, message.tool)
        payload = mcp.payload(message, incoming.body, headers, tool)
        run, ids = self._default_run, (new_id("act"), new_id("dec"))
        trace = new_trace(headers.get(TRACEPARENT))
        return Action(*ids, "mcp", server, message.tool, message.arguments, payload, run, trace=trace)

    async def _answer(self, call: _Call, answer: Answer) -> StreamResponse:
        match answer:
            case Allowed() if call.message.method == "tools/list":
                return await self._filtered(call, answer)
            case Allowed(approved=True):
                body = await self._under_own_id(call, answer)
                return _json(call, body, answer, 200)
            case Allowed():
                return await _pass_on(call.incoming, answer)
            case Held():
                return await self._hold(call, answer)
            case Refused():
                return _refused(call, answer)

    async def _filtered(self, call: _Call, answer: Allowed) -> Response:
        """``tools/list`` shows only what this agent may call."""
        headers = {**decision_headers(answer), **_session(answer)}
        try:
            response = mcp.final_response(answer.headers.get("Content-Type", ""), await answer.read())
        except (Unverifiable, ConnectionError) as bad:
            no = Refusal(10, Reason.UPSTREAM_FAILED, str(bad))
            return _fault(Refused(answer.decision_id, answer.audit, no), call.message)
        result = response.get("result")
        if isinstance(result, dict) and isinstance(result.get("tools"), list):
            server = call.incoming.path.rsplit("/", 1)[-1]
            among = await self._pipeline.shown.left(call.caller.chain)
            shown = [t for t in result["tools"] if self._pipeline.shown.may_see(server, t, among)]  # type: ignore[union-attr]
            response = {**response, "result": {**result, "tools": shown}}
        headers["Content-Type"] = "application/json"
        return Response(status=answer.status, body=jcs(response), headers=headers)

    async def _hold(self, call: _Call, held: Held) -> StreamResponse:
        """Keep the line while a person decides; then run it, or say that it is still pending."""
        if not call.is_tool_call:
            return _json(call, _error(call.message, _pending_text(held), held), held, 202)
        headers = {**decision_headers(held), "Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        response, _ = await relay(call.incoming, self._while_held(call, held), 200, headers)
        return response

    async def _while_held(self, call: _Call, held: Held) -> AsyncIterator[bytes]:
        yield b": waiting for a person to decide " + held.approval.encode() + b"\n\n"
        async for state in self._pipeline.approvals.states(held.approval, self._hold_wait_s):
            if state["state"] == "approved":
                yield mcp.event(await self._claimed(call, held))
                return
            if state["state"] != "pending":
                reason = Reason.APPROVAL_DENIED if state["state"] == "denied" else Reason.APPROVAL_EXPIRED
                no = Refusal(7, reason, state["reason"])
                refused = await self._pipeline.refuse_with(no, held.decision_id, approval=held.approval)
                yield mcp.event(_tool_result(call.message, refused))
                return
            yield b": still waiting\n\n"
        yield mcp.event(_pending_result(call.message, held))

    async def _claimed(self, call: _Call, held: Held) -> bytes:
        """The response of the stored action, under the id of the call that waits for it."""
        # In a task of its own: the approval is spent, so an agent that hangs up must not cancel it half-way.
        answer = await asyncio.shield(asyncio.create_task(self._pipeline.claim(held.approval, call.caller)))
        match answer:
            case Allowed():
                return await self._under_own_id(call, answer)
            case Refused():
                return _tool_result(call.message, answer)
            case Held():
                return _pending_result(call.message, answer)

    async def _under_own_id(self, call: _Call, answer: Allowed) -> bytes:
        """The response of a stored action under the id of the call that asks for it now; it says if it ran with other
        arguments than were asked for."""
        try:
            response = mcp.final_response(answer.headers.get("Content-Type", ""), await answer.read())
        except (Unverifiable, ConnectionError) as bad:
            no = Refusal(10, Reason.UPSTREAM_FAILED, str(bad))
            return _tool_result(call.message, Refused(answer.decision_id, answer.audit, no))
        result = response.get("result")
        if answer.edited and isinstance(result, dict):
            meta = result.get("_meta")
            told: JsonObject = {**(meta if isinstance(meta, dict) else {}), EDITED: True}
            response = {**response, "result": {**result, "_meta": told}}
        return jcs({**response, "id": call.message.rpc_id})


async def _pass_on(incoming: Incoming, answer: Allowed) -> StreamResponse:
    headers = {**decision_headers(answer), **_session(answer)}
    if "Content-Type" in answer.headers:
        headers["Content-Type"] = answer.headers["Content-Type"]
    if answer.stream is None:
        return Response(status=answer.status, headers=headers, body=answer.body)
    response, _ = await relay(incoming, answer.stream, answer.status, headers)
    return response


def _session(answer: Allowed) -> dict[str, str]:
    return {mcp.SESSION_HEADER: v} if (v := answer.headers.get("mcp-session-id")) else {}


def _refused(call: _Call, refused: Refused) -> Response:
    """Denied by policy: 200 and a result that the model can read. Anything else: status and JSON-RPC error."""
    row = TABLE[refused.refusal.reason]
    if call.is_tool_call and row.status not in (400, 401, 404):
        return _json(call, _tool_result(call.message, refused), refused, 200)
    return _fault(refused, call.message)


def _fault(refused: Refused, message: Message | None) -> Response:
    row = TABLE[refused.refusal.reason]
    body = _error(message, _text(refused.refusal), refused)
    return Response(
        status=row.status, body=body, headers={**decision_headers(refused), "Content-Type": "application/json"}
    )


def _json(call: _Call, body: bytes, answer: Answer, status: int) -> Response:
    return Response(status=status, body=body, headers={**decision_headers(answer), "Content-Type": "application/json"})


def _text(no: Refusal) -> str:
    row = TABLE[no.reason]
    because = f": {no.detail}" if no.detail else ""
    by = f" (policy {', '.join(no.policies)})" if no.policies else ""
    return f"Refused by Licet, {row.sentence}{because}{by}."


def _told(answer: Answer, reason: Reason) -> JsonObject:
    row = TABLE[reason]
    told: JsonObject = {
        "decision_id": answer.decision_id,
        "reason": str(reason),
        "class": str(row.no_class),
        "retryable": row.retryable,
        "audit": str(answer.audit) if answer.audit else None,
    }
    return told


def _tool_result(message: Message, refused: Refused) -> bytes:
    no = refused.refusal
    told: JsonObject = {**_told(refused, no.reason), "policy_ids": list(no.policies)}
    return mcp.result(message.rpc_id, _result(message, _text(no), told))


def _pending_text(held: Held) -> str:
    because = f" {' '.join(held.sentences)}." if held.sentences else ""
    return (
        f"Not done yet: a person must decide ({held.approval}).{because} "
        "Make the same call again later; it will find this request."
    )


def _pending_result(message: Message, held: Held) -> bytes:
    told: JsonObject = {**_told(held, Reason.APPROVAL_PENDING), "approval": held.approval, "state": held.state}
    return mcp.result(message.rpc_id, _result(message, _pending_text(held), told))


def _result(message: Message, text: str, structured: JsonObject) -> JsonObject:
    result: JsonObject = {
        "content": [{"type": "text", "text": text}],
        "structuredContent": structured,
        "isError": True,
    }
    if message.modern:
        result["resultType"] = "complete"
    return result


def _error(message: Message | None, text: str, answer: Answer) -> bytes:
    reason = answer.refusal.reason if isinstance(answer, Refused) else Reason.APPROVAL_PENDING
    data: dict[str, Any] = _told(answer, reason)
    return mcp.error(message.rpc_id if message else None, TABLE[reason].rpc_code, text, data)
