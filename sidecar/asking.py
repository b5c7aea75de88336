"""What the gateway says of held actions: asked for, waited for, and fetched as people saw them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import msgspec

from edge.backoff import Backoff
from edge.client import Broken, Reply, Unreachable
from edge.clock import SystemClock
from sidecar.forward import refusal_of
from sidecar.identity import Identity
from trust import wire
from trust.reasons import Reason
from trust.verdict import Refusal
from trust.wire import Dispatch

ASK_AGAIN_S: Final = 1.0
"""While the gateway cannot be reached."""
POLL_S: Final = 5.0
"""For how long the gateway is asked to keep the line, each time: clients and proxies give up on a silent stream."""


class Stored(msgspec.Struct, frozen=True):
    """An action as it is to run: what people approved; ``edited``: not as it was asked for."""

    dispatch: Dispatch
    body: bytes
    edited: bool


class Asking:
    """Of one agent."""

    def __init__(self, agent: str, identity: Identity, clock: SystemClock) -> None:
        self._agent = agent
        self._identity = identity
        self._clock = clock

    async def ask(self, dispatch: Dispatch, body: bytes) -> dict[str, Any] | Refusal:
        """Put the action in the queue, or find it there; the state of its approval."""
        headers = {"Content-Type": wire.DISPATCH_TYPE}
        return _told(await self._send("POST", "/v1/approvals", wire.encode(dispatch, body), headers))

    async def state(self, approval: str, wait_s: float = 0.0) -> dict[str, Any] | Refusal:
        """What the gateway says of one approval of this agent, after at most *wait_s* if it is pending."""
        return _told(await self._send("GET", f"/v1/approvals/{approval}/state?agent={self._agent}&wait={wait_s:.1f}"))

    async def states(self, approval: str, seconds: float) -> AsyncIterator[dict[str, Any]]:
        """What becomes of an approval: each time that the gateway says so, until it is decided or *seconds* are over.
        While the gateway is away nothing is said: the request is safe with it."""
        deadline, backoff = self._clock.mono() + seconds, Backoff()
        while (left := deadline - self._clock.mono()) > 0:
            state = await self.state(approval, min(left, POLL_S))
            if isinstance(state, Refusal):
                if state.reason in (Reason.NOT_FOUND, Reason.NOT_YOURS, Reason.REVOKED):
                    return  # no later answer will be another
                patience = ASK_AGAIN_S if state.reason is Reason.GATEWAY_UNREACHABLE else left
                await asyncio.sleep(min(backoff.next(), patience, left))
                continue
            backoff.reset()
            yield state
            if state["state"] != "pending":
                return

    async def stored(self, approval: str) -> Stored | Refusal:
        """The action that was approved. Raises :class:`Unverifiable` if what came is none."""
        came = await self._send("GET", f"/v1/approvals/{approval}/action?agent={self._agent}")
        if isinstance(came, Refusal):
            return came
        reply, answer = came
        return Stored(*wire.decode(answer, Dispatch), edited=bool(reply.header(wire.EDITED_HEADER)))

    async def _send(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[Reply, bytes] | Refusal:
        """The answer with its body, or why there is none."""
        try:
            async with self._identity.send(method, target, body, headers) as reply:
                answer = await reply.read()
        except (Unreachable, Broken) as bad:
            return Refusal(7, Reason.GATEWAY_UNREACHABLE, str(bad))
        if reply.status >= 300:
            return refusal_of(reply.status, answer)
        return reply, answer


def _told(came: tuple[Reply, bytes] | Refusal) -> dict[str, Any] | Refusal:
    if isinstance(came, Refusal):
        return came
    told: dict[str, Any] = json.loads(came[1])
    return told
