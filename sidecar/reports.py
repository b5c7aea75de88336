"""Telling the gateway what was refused here: evidence for standing, in batches, until it is known to be heard."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

import msgspec

from sidecar.identity import Identity, detail_of
from trust.ledger import entries
from trust.reasons import Reason, Unverifiable
from trust.standing.rules import COUNTED, THE_REST

MAX_KINDS: Final = 100
"""In one report; the next begins with the next kind."""
MAX_WAITING: Final = 20
"""Full reports that wait. Beyond, servers are not told apart any more; policies always are."""

MAX_NAME: Final = 128
MAX_POLICIES: Final = 16


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

    def takes(self, reason: str, resource: str, policies: tuple[str, ...]) -> bool:
        """Whether this kind belongs to it, or there is room for another."""
        return (reason, resource, policies) in self._kinds or len(self._kinds) < MAX_KINDS

    def add(self, index: int, reason: str, resource: str, policies: tuple[str, ...]) -> None:
        name = (reason, resource[:MAX_NAME], tuple(policy[:MAX_NAME] for policy in policies[:MAX_POLICIES]))
        self._kinds.setdefault(name, _Kind(*name)).count += 1
        self.first, self.last = (index if self.first < 0 else self.first), index

    def encode(self, agent: str, instance: str) -> bytes:
        told = {
            "agent": agent,
            "instance": instance,
            "first": self.first,
            "last": self.last,
            "refusals": list(self._kinds.values()),
        }
        return msgspec.json.encode(told)


class Reports:
    """Of one agent. Each refusal is counted once, because the gateway remembers how far it heard."""

    def __init__(self, agent: str, identity: Identity, before: Iterable[tuple[int, entries.Refusal]]) -> None:
        self._agent = agent
        self._identity = identity
        self._waiting = deque([_Batch()])
        self._before: list[tuple[int, entries.Refusal]] | None = list(before)

    def note(self, index: int, reason: str, resource: str, policies: tuple[str, ...]) -> None:
        """A refusal stands at *index* of this sidecar's ledger."""
        if reason not in COUNTED:
            return
        if len(self._waiting) > MAX_WAITING:
            resource = THE_REST
        if not self._waiting[-1].takes(reason, resource, policies):
            self._waiting.append(_Batch())
        self._waiting[-1].add(index, reason, resource, policies)

    async def tell(self, heard: int) -> None:
        """Send what waits longest; the gateway has *heard* everything up to an index. What is not answered is sent
        again as it was, so that it can be recognised. One report a call: the gateway takes no more of them."""
        self._recall(heard)
        while self._waiting[0].first >= 0:
            if len(self._waiting) == 1:
                self._waiting.append(_Batch())  # what comes meanwhile
            told = self._waiting[0].last <= heard
            if not told:
                await self._send(self._waiting[0])
            self._waiting.popleft()
            if not told:
                return

    def _recall(self, heard: int) -> None:
        """Once: what was refused before a restart comes first."""
        if self._before is None:
            return
        before, since, self._before = self._before, self._waiting, None
        self._waiting = deque([_Batch()])
        for index, refusal in before:
            if index > heard and refusal.deed is not None:
                policies = tuple(refusal.judgement.policies) if refusal.judgement is not None else ()
                self.note(index, refusal.reason, refusal.deed.server, policies)
        if self._waiting[-1].first >= 0:
            self._waiting.extend(since)
        else:
            self._waiting = since

    async def _send(self, batch: _Batch) -> None:
        body, headers = batch.encode(self._agent, self._identity.instance), {"Content-Type": "application/json"}
        async with self._identity.send("POST", "/v1/refusals", body, headers, timeout_s=10.0) as reply:
            answer = await reply.read()
        if reply.status != 200:
            raise Unverifiable(Reason.GATEWAY_UNREACHABLE, f"refusals were not taken: {detail_of(answer)}")
