"""A node's place in the mesh: joined under an epoch, its lease renewed, and who was stopped, as the gateway says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import Final

import msgspec

from edge.clock import SystemClock
from sidecar.config import NodeConfig
from sidecar.forward import refusal_of
from sidecar.identity import Identity, detail_of
from sidecar.node.offers import LIST_TIMEOUT_S
from sidecar.node.upstream import UpstreamFailed
from trust import feed
from trust.policy.inventory import Server, Tool
from trust.reasons import Reason, Unverifiable

LEASE_MARGIN_S: Final = 2.0
"""A node stops starting work this long before its lease ends, so that two never believe to hold it."""
TRIES: Final = 5
TRY_AGAIN_S: Final = 1.1
"""What a verifier heard is known to the second."""
_JSON: Final = {"Content-Type": "application/json"}
_log = logging.getLogger("licet.node")


class Membership:
    """Of one node. ``told``: what the gateway knows to be offered here."""

    def __init__(self, config: NodeConfig, identity: Identity, clock: SystemClock) -> None:
        self._config = config
        self._identity = identity
        self._clock = clock
        self._joining = asyncio.Lock()
        self._renewed = float("-inf")
        self._stops: feed.Stops | None = None
        self._heard = float("-inf")
        self._slots = 1
        self.epoch = 0
        self.told: dict[str, Server] = {}

    # Lease

    async def join(self, url: str, offered: dict[str, Server]) -> None:
        """Tell the gateway what is offered here now; it answers with a new epoch."""
        async with self._joining:
            vouchers = [path.read_text("utf-8").strip() for path in self._config.vouchers]
            told = {"servers": list(offered.values()), "claims": self._config.claims, "vouchers": vouchers}
            status, answer = await self._ask_to_join(msgspec.json.encode({"url": url, **told}))
            if status != 200:
                raise UpstreamFailed(f"the gateway did not let this node join: {detail_of(answer)}")
            self.told = offered
            self.epoch, self._slots = (int(json.loads(answer)[name]) for name in ("epoch", "slots"))
            self._renewed = self._clock.mono()

    async def _ask_to_join(self, body: bytes) -> tuple[int, bytes]:
        """Status and answer; signed again, some times, for a gateway that has just begun to remember what it heard."""
        for _ in range(TRIES):
            async with self._identity.send(
                "POST", "/v1/nodes/join", body, _JSON, strong=True, timeout_s=LIST_TIMEOUT_S
            ) as reply:
                answer = await reply.read()
            if reply.status == 200 or refusal_of(reply.status, answer).reason is not Reason.REPLAY_UNKNOWN:
                break
            await asyncio.sleep(TRY_AGAIN_S)
        return reply.status, answer

    def slots(self) -> int:
        """How many actions the gateway will let run here at once."""
        return self._slots

    async def settled(self) -> None:
        """While this node joins, the gateway knows the new epoch before it does."""
        if self._joining.locked():
            async with self._joining:
                pass

    async def renew(self) -> bool:
        """Whether the lease goes on; if not, join again."""
        asked = self._clock.mono()
        body = msgspec.json.encode({"epoch": self.epoch})
        async with self._identity.send("POST", "/v1/nodes/heartbeat", body, _JSON, timeout_s=5.0) as reply:
            await reply.read()
        if reply.status == 200:
            self._renewed = asked
        return reply.status != 403

    def lease_left_s(self) -> float:
        return self._config.lease_ttl_s - LEASE_MARGIN_S - (self._clock.mono() - self._renewed)

    # Who was stopped

    def hear(self, line: bytes) -> bool:
        """Whether *line* was believed."""
        try:
            self._stops = feed.open_stops(
                line, self._identity.gateway, node=self._identity.name, after=self._stops, now=self._clock.now()
            )
        except Unverifiable as bad:
            _log.warning("a line of the feed was not believed: %s", bad)
            return False
        self._heard = self._clock.mono()
        return True

    def heard_lately(self) -> bool:
        return self._clock.mono() - self._heard < feed.SIDE_EFFECTS_STALE_S

    def is_stopped(self, agent: str) -> bool:
        return self._stops is not None and agent in self._stops.agents

    def require_current(self, agent: str, tool: Tool) -> None:
        """A ticket's agent was not stopped since it was made, as far as can be known: who has not heard the gateway for
        too long starts nothing."""
        if self.is_stopped(agent):
            raise Unverifiable(Reason.REVOKED, f"{agent} was stopped after this ticket was made")
        age = self._clock.mono() - self._heard
        limit = feed.ALL_STALE_S if tool.manifest.effect == "read" else feed.SIDE_EFFECTS_STALE_S
        if age > limit:
            raise Unverifiable(
                Reason.STALE_FACTS, f"the gateway was last heard {age:.1f} s ago; the limit is {limit:.0f} s"
            )


async def sleeping(woken: asyncio.Event, seconds: float) -> None:
    """Until *woken*, or for so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await woken.wait()
    woken.clear()
