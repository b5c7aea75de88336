"""The native protocol: ``/v1/actions``, ``/v1/tools``, ``/v1/approvals/{id}``, with all ways to wait for a person."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from edge.clock import new_id, new_trace
from edge.http import Incoming, Response, StreamResponse, json_response, problem, relay
from sidecar.answers import Allowed, Answer, Held, Refused
from sidecar.ingress.common import audit_member, decision_headers, require_run
from sidecar.ingress.repeats import Repeats, Told
from sidecar.pipeline import Caller, Pipeline
from sidecar.siblings import Siblings
from trust import mcp
from trust.action import Action
from trust.canonical import JsonObject, digest_of, read_object
from trust.policy.inventory import Tool, require_server_name, require_tool_name
from trust.reasons import Reason, Unverifiable, visible
from trust.trace import HEADER as TRACEPARENT
from trust.trace import Trace
from trust.verdict import Refusal
from trust.wire import Place

RETRY_AFTER_S: Final = 5
MAX_WAIT_S: Final = 300
_WAIT: Final = re.compile(r"(?:^|[,;])\s*wait=(\d{1,6})\s*(?:$|[,;])")


class _Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tool: str
    args: dict[str, Any] = {}
    run: str | None = None
    place: Place = Place()
    idempotency_key: str | None = None


class Actions:
    """Native requests against one pipeline. *siblings*: the other workers of this sidecar, if there are any."""

    def __init__(
        self, agent: str, pipeline: Pipeline, default_run: str, repeats: Repeats, siblings: Siblings | None
    ) -> None:
        self._agent = agent
        self._siblings = siblings
        self._pipeline = pipeline
        self._default_run = default_run
        self._repeats = repeats

    async def act(self, incoming: Incoming, caller: Caller) -> StreamResponse:
        asked, arguments = _read(incoming)
        action = self._action(asked, arguments, new_trace(incoming.header(TRACEPARENT)))
        key, wait_s = asked.idempotency_key, preferred_wait(incoming)
        if key is None:
            answer = await self._waited(await self._pipeline.act(action, caller, asked.place), caller, wait_s)
            return _applied(await respond(answer), wait_s)

        async def do() -> tuple[Answer, Told]:
            answer = await self._waited(await self._pipeline.act(action, caller, asked.place), caller, wait_s)
            response = _applied(await respond(answer), wait_s)
            body = response.body if isinstance(response.body, bytes) else b""
            return answer, Told(response.status, dict(response.headers), body)

        await self._pipeline.require_identified(caller)
        if self._siblings is not None and (owner := self._siblings.owner(key)) is not None:
            return await self._siblings.ask(owner, self._agent, caller, incoming)
        under = digest_of({"asked": msgspec.to_builtins(asked), "chain": caller.chain})
        told = await self._repeats.once(key, under, do)
        return Response(status=told.status, headers=told.headers, body=told.body)

    async def _waited(self, answer: Answer, caller: Caller, wait_s: int) -> Answer:
        """What became of a held action within so many seconds (``Prefer: wait``, RFC 7240): it ran, or was refused, or
        it is held as before."""
        if not isinstance(answer, Held) or not wait_s:
            return answer
        async for state in self._pipeline.approvals.states(answer.approval, wait_s):
            if state["state"] == "approved":
                # In a task of its own: the approval is spent, so an agent that hangs up must not cancel it half-way.
                return await asyncio.shield(asyncio.create_task(self._pipeline.claim(answer.approval, caller)))
            if state["state"] != "pending":
                no = Refusal(7, _ENDED.get(state["state"], Reason.APPROVAL_EXPIRED), state["reason"])
                return await self._pipeline.refuse_with(no, answer.decision_id, approval=answer.approval)
        return answer

    def _action(self, asked: _Asked, arguments: JsonObject, trace: Trace) -> Action:
        server, slash, tool = asked.tool.partition("/")
        if not slash:
            raise Unverifiable(
                Reason.UNKNOWN_TOOL,
                f'tool "{visible(asked.tool)}": expected "server/tool", as in "files/read_file"',
            )
        action_id = new_id("act")
        message, body = mcp.call(action_id, require_tool_name(tool), arguments)
        headers = {mcp.VERSION_HEADER: mcp.MODERN}
        known = self._pipeline.shown.tool(require_server_name(server), tool)
        payload = mcp.payload(message, body, headers, known)
        run = require_run(asked.run or self._default_run)
        key = asked.idempotency_key or ""
        return Action(action_id, new_id("dec"), "native", server, tool, arguments, payload, run, key, trace)

    async def tools(self, _incoming: Incoming, caller: Caller) -> StreamResponse:
        """What this agent may call, by the names that ``POST /v1/actions`` takes."""
        return json_response(
            {"tools": [_listed(server, tool) for server, tool in await self._pipeline.shown.tools(caller.chain)]}
        )

    async def approval(self, incoming: Incoming, caller: Caller, approval: str) -> StreamResponse:
        """The state of one approval; for the agent in full, not for programs that it left with less."""
        _require_whole(caller)
        wait_s = preferred_wait(incoming)
        state = await self._pipeline.approvals.state(approval)
        if isinstance(state, Refusal):
            return await respond(await self._pipeline.refuse_with(state, new_id("dec"), approval=approval))
        if state["state"] == "pending" and wait_s:
            async for heard in self._pipeline.approvals.states(approval, wait_s):
                state = heard
        return _applied(json_response(state), wait_s)

    async def events(self, incoming: Incoming, caller: Caller, approval: str) -> StreamResponse:
        """The states of one approval as server-sent events, until it is decided."""
        _require_whole(caller)
        state = await self._pipeline.approvals.state(approval)
        if isinstance(state, Refusal):
            return await respond(await self._pipeline.refuse_with(state, new_id("dec"), approval=approval))
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        response, _ = await relay(incoming, self._events(approval, state), 200, headers)
        return response

    async def _events(self, approval: str, state: dict[str, Any]) -> AsyncIterator[bytes]:
        yield _event(state)
        if state["state"] != "pending":
            return
        async for heard in self._pipeline.approvals.states(approval, math.inf):
            if heard["state"] == "pending":
                yield b": still waiting\n\n"
            else:
                yield _event(heard)

    async def claim(self, _incoming: Incoming, caller: Caller, approval: str) -> StreamResponse:
        return await respond(await self._pipeline.claim(approval, caller))


_ENDED: Final = {
    "denied": Reason.APPROVAL_DENIED,
    "cancelled": Reason.APPROVAL_CANCELLED,
    "consumed": Reason.APPROVAL_CONSUMED,
}


def _listed(server: str, tool: Tool) -> dict[str, Any]:
    manifest = tool.manifest
    return {
        "name": f"{server}/{tool.name}",
        "description": tool.description,
        "input_schema": tool.input_schema,
        "category": manifest.category,
        "effect": manifest.effect,
        "risk": manifest.risk,
        "privileged": manifest.privileged,
    }


def preferred_wait(incoming: Incoming) -> int:
    """How many seconds the agent would wait (``Prefer: wait=N``), at most :data:`MAX_WAIT_S`."""
    found = _WAIT.search(incoming.header("prefer") or "")
    return min(int(found[1]), MAX_WAIT_S) if found is not None else 0


def _applied(response: Response, wait_s: int) -> Response:
    if wait_s:
        response.headers["Preference-Applied"] = f"wait={wait_s}"
    return response


def _event(state: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (str(state["state"]).encode(), msgspec.json.encode(state))


def _require_whole(caller: Caller) -> None:
    if caller.chain:
        raise Unverifiable(Reason.NOT_YOURS, "only the agent itself looks at its approvals; make the call again")


def _read(incoming: Incoming) -> tuple[_Asked, JsonObject]:
    media_type = (incoming.header("content-type") or "").split(";")[0].strip().lower()
    if media_type != "application/json":
        raise Unverifiable(Reason.UNSUPPORTED_MEDIA_TYPE, "expected Content-Type: application/json")
    value = read_object(incoming.body)
    try:
        asked = msgspec.convert(value, _Asked)
    except msgspec.ValidationError as bad:
        raise Unverifiable(Reason.MALFORMED_REQUEST, str(bad)) from None
    return asked, asked.args


async def respond(answer: Answer) -> Response:
    """*answer* in the native protocol."""
    headers = decision_headers(answer)
    match answer:
        case Allowed():
            return await _allowed(answer, headers)
        case Held():
            body = {
                "decision": "hold",
                "decision_id": answer.decision_id,
                "approval": answer.approval,
                "state": answer.state,
                "action_digest": answer.action_digest,
                "expires_at": answer.expires_at,
                "because": list(answer.sentences),
                "detail": "a person must decide; then send the same action again, or claim it with "
                f"POST /v1/approvals/{answer.approval}/claim",
                "events": f"/v1/approvals/{answer.approval}/events",
                "audit": audit_member(answer),
            }
            location = {"Location": f"/v1/approvals/{answer.approval}", "Retry-After": str(RETRY_AFTER_S)}
            return json_response(body, 202, {**headers, **location})
        case Refused():
            extra = {"decision": "deny", "audit": audit_member(answer)}
            response = problem(answer.refusal, answer.decision_id, extra)
            response.headers.update(headers)
            return response


async def _allowed(answer: Allowed, headers: dict[str, str]) -> Response:
    body = {
        "decision": "allow",
        "decision_id": answer.decision_id,
        "node": answer.node,
        "audit": audit_member(answer),
        "trace": answer.trace,
        **({"edited": True} if answer.edited else {}),
    }
    try:
        response = mcp.final_response(answer.headers.get("Content-Type", ""), await answer.read())
    except (Unverifiable, ConnectionError) as bad:
        no = Refusal(10, Reason.UPSTREAM_FAILED, f"HTTP {answer.status}: {bad}")
        return problem(no, answer.decision_id, {"audit": audit_member(answer)})
    if "error" in response:
        return json_response({**body, "result": {"isError": True, "error": response["error"]}}, 200, headers)
    return json_response({**body, "result": response["result"]}, 200, headers)
