"""Telling the gateway what was refused here: evidence for standing, in batches, until it is known to be heard."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from sidecar.identity import Identity, detail_of
from trust.ledger import entries
from trust.reasons import Reason, Unverifiable
from trust.standing.rules import COUNTED, THE_REST

MAX_KINDS: Final = 100
"""Told apart in one report; further ones are one kind."""


class _Kind(msgspec.Struct):
    """Equal refusals."""

    reason: str
    resource: str
    policies: tuple[str, ...]
    count: int = 0


class _Batch:
    """What was refused from ``first`` to ``last``."""

    def __init__(self) -> None:
        self.first = self.last = -1
        self._kinds: dict[tuple[str, str, tuple[str, ...]], _Kind] = {}

    def add(self, index: int, reason: str, resource: str, policies: tuple[str, ...]) -> None:
        name = (reason, resource, policies)
        if name not in self._kinds and len(self._kinds) >= MAX_KINDS:
            name = (reason, THE_REST, ())
        self._kinds.setdefault(name, _Kind(*name)).count += 1
        self.first, self.last = (index if self.first < 0 else self.first), index

    def encode(self, agent: str) -> bytes:
        told = {"agent": agent, "first": self.first, "last": self.last, "refusals": list(self._kinds.values())}
        return msgspec.json.encode(told)


class Reports:
    """Of one agent. Each refusal is counted once, because the gateway remembers how far it heard."""

    def __init__(self, agent: str, identity: Identity, before: Iterable[tuple[int, entries.Refusal]]) -> None:
        self._agent = agent
        self._identity = identity
        self._waiting = _Batch()
        self._sent: _Batch | None = None
        self._before: list[tuple[int, entries.Refusal]] | None = list(before)

    def note(self, index: int, reason: str, resource: str, policies: tuple[str, ...]) -> None:
        """A refusal stands at *index* of this sidecar's ledger."""
        if reason in COUNTED:
            self._waiting.add(index, reason, resource, policies)

    async def tell(self, heard: int) -> None:
        """Send what waits; the gateway has *heard* everything up to an index. What is not answered is sent again as
        it was, so that it can be recognised."""
        self._recall(heard)
        if self._sent is None and self._waiting.first >= 0:
            self._sent, self._waiting = self._waiting, _Batch()
        if self._sent is not None and self._sent.last > heard:
            await self._send(self._sent)
        self._sent = None

    def _recall(self, heard: int) -> None:
        """Once: what was refused before a restart, and what since."""
        if self._before is None:
            return
        before, since, self._before = self._before, self._waiting, None
        self._waiting = _Batch()
        for index, refusal in before:
            if index > heard and refusal.deed is not None:
                policies = tuple(refusal.judgement.policies) if refusal.judgement is not None else ()
                self.note(index, refusal.reason, refusal.deed.server, policies)
        if self._waiting.first < 0:
            self._waiting = since
        elif since.first >= 0:
            self._sent, self._waiting = self._waiting, since

    async def _send(self, batch: _Batch) -> None:
        body, headers = batch.encode(self._agent), {"Content-Type": "application/json"}
        async with self._identity.send("POST", "/v1/refusals", body, headers, timeout_s=10.0) as reply:
            answer = await reply.read()
        if reply.status != 200:
            raise Unverifiable(Reason.GATEWAY_UNREACHABLE, f"refusals were not taken: {detail_of(answer)}")
