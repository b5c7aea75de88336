"""The keys of subjects as a sidecar has them: asked of the gateway when a call is personal, forgotten soon."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Final

import msgspec

from edge.client import Broken, Unreachable
from edge.clock import SystemClock
from sidecar.forward import refusal_of
from sidecar.identity import Identity
from sidecar.world import View
from trust.action import Action
from trust.identity.keys import unb64url
from trust.personal import ALL, SALT_BYTES, Marked, Personal, SubjectKey
from trust.policy.bundle import Compiled
from trust.reasons import Reason, Unverifiable

KEPT_S: Final = 300.0
MAX_KEPT: Final = 10_000
_JSON: Final = {"Content-Type": "application/json"}


class Subjects:
    """Of one agent."""

    def __init__(self, agent: str, identity: Identity, view: View, clock: SystemClock) -> None:
        self._agent = agent
        self._identity = identity
        self._view = view
        self._clock = clock
        self._kept: dict[str, tuple[SubjectKey, float]] = {}
        self._erasures = 0

    def guarded(self, action: Action) -> Action:
        """*action*, so that nothing personal of it can be recorded in plain: under a key that nobody keeps.
        :class:`Unverifiable` if its arguments have no canonical form."""
        marks = marks_of(self._view.bundle, action)
        if not marks.anything and action.canonical_arguments:
            return action
        thrown_away = SubjectKey("", secrets.token_bytes(SALT_BYTES))
        return msgspec.structs.replace(action, personal=Personal(marks, thrown_away))

    async def sealed(self, action: Action, principal: Callable[[], str]) -> Action:
        """*action* under the key of whom it is about, or :class:`Unverifiable` while that cannot be had."""
        if action.personal is None or self._view.bundle is None:
            return action
        marks = action.personal.marks
        key = await self._key(marks.about(action.arguments, principal()))
        return msgspec.structs.replace(action, personal=Personal(marks, key))

    async def _key(self, subject: str) -> SubjectKey:
        self._forget_what_was_erased()
        now = self._clock.mono()
        kept, until = self._kept.get(subject, (None, 0.0))
        if kept is not None and now < until:
            return kept
        erasures = self._told()
        key = await self._ask(subject)
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        if self._told() == erasures:  # else it may be one of those
            self._kept[subject] = key, now + KEPT_S
        return key

    def forget(self) -> None:
        """Ask for all of them again: the gateway did not know one."""
        self._kept.clear()

    def _told(self) -> int:
        return self._view.facts.erasures if self._view.facts is not None else 0

    def _forget_what_was_erased(self) -> None:
        """Whose key was destroyed is not told: all are asked for again."""
        if self._told() != self._erasures:
            self._erasures = self._told()
            self._kept.clear()

    async def _ask(self, subject: str) -> SubjectKey:
        body = msgspec.json.encode({"agent": self._agent, "subject": subject})
        try:
            async with self._identity.send("POST", "/v1/subjects/key", body, _JSON) as reply:
                answer = await reply.read()
        except (Unreachable, Broken) as bad:
            detail = f"this call is personal, and the key under which it is recorded cannot be had: {bad}"
            raise Unverifiable(Reason.GATEWAY_UNREACHABLE, detail) from None
        if reply.status != 200:
            no = refusal_of(reply.status, answer)
            raise Unverifiable(no.reason, no.detail)
        told = json.loads(answer)
        return SubjectKey(told["id"], unb64url(told["secret"]))


def marks_of(bundle: Compiled | None, action: Action) -> Marked:
    """What of *action* is personal; everything while there is no policy to say so, and of a tool that nobody knows, if
    any is personal: the name may be misspelt."""
    if bundle is None:
        return ALL
    server = bundle.inventory.servers.get(action.server)
    tool = server.tools.get(action.tool) if server is not None else None
    if tool is None:
        return ALL if bundle.any_personal else Marked()
    return bundle.personal(tool)
