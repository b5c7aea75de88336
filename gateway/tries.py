"""Which node an action goes to, and when it may go out once more: never twice what must happen once.

- Refused or never connected: nothing happened, so another node is tried.
- The answer was lost: what policy calls idempotent is tried elsewhere; anything else only once more at the same node in
  the same epoch, which knows by the action's id what it did and answers again. Never what a person approved for once.
- A read that takes unusually long gets a second attempt beside the first, and whichever answers first counts.

The latter two out of one budget for all: a tenth of what is sent.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Final, NoReturn

import msgspec

from edge.client import Broken, Unreachable
from edge.http import Incoming, StreamResponse
from gateway.attempts import Attempts, Begun, TurnedAway
from gateway.fleet import Fleet
from gateway.router.budget import Budget
from gateway.router.cost import expected_us
from gateway.router.eligibility import ANOTHER_VERSION, Wanted
from gateway.router.homes import Belongs
from gateway.router.placement import Work
from gateway.router.routing import NOBODY, Routed, Router
from gateway.statements import Asked
from trust import mcp
from trust.policy.inventory import Manifest
from trust.reasons import Reason, Unverifiable

MAX_ATTEMPTS: Final = 3
PATIENCE: Final = 3.0
"""A second attempt at a read goes out when the first takes so many times as long as expected,"""
LEAST_PATIENCE_S: Final = 0.05
"""but not before so many seconds."""


class Tried(msgspec.Struct):
    """What was tried for one action. ``left``: nodes that are not tried again, and why; ``same``: the only one that may
    be, and in which epoch; ``lost``: an attempt may have happened; ``turned_away``: the last node that said no."""

    number: int = 0
    left: dict[str, str] = {}
    same: tuple[str, int] | None = None
    lost: Unverifiable | None = None
    turned_away: TurnedAway | None = None

    def over(self, why: Unverifiable) -> NoReturn:
        """Raise what is told in the end: that it may have happened, if it may; else what a node said last, or *why*."""
        if self.lost is not None:
            raise self.lost
        raise self.turned_away if self.turned_away is not None else why


class Tries:
    """Of one gateway."""

    def __init__(self, fleet: Fleet, router: Router, attempts: Attempts) -> None:
        self._fleet = fleet
        self._router = router
        self._attempts = attempts
        self._budget = Budget()

    def choose(self, asked: Asked, without: Mapping[str, str] = NOBODY, only: str = "") -> Routed:
        """A node for one attempt, or :class:`Unverifiable` that says why there is none."""
        routed = self._router.route(
            asked.bundle,
            asked.agent,
            _wanted(asked),
            secrets.randbits(64),
            self._fleet.now(),
            without=without,
            only=only,
            belongs=_belongs(asked),
        )
        asked.marks.at("8 choose a node")
        if routed.node is None:
            raise _nowhere(asked, routed)
        return routed

    async def send(self, incoming: Incoming, asked: Asked, first: Routed) -> StreamResponse:
        """To the node that was chosen *first*, and then where it is safe, until one answers. :class:`TurnedAway` if
        none took it on."""
        state, routed = Tried(), first
        self._budget.earned()
        while True:
            state.number += 1
            try:
                begun = await self._begin(asked, routed, state)
                break
            except Unreachable:
                state.left[_name(routed)] = "unreachable"
            except TurnedAway as no:
                if asked.dispatch.approval is not None:
                    return no.answer  # it had the bytes: that nothing was started is its word only
                state.left[_name(routed)] = "turned_away"
                state.turned_away = no
            except Broken as bad:
                self._lost(asked, routed, state, bad)
            if state.number >= MAX_ATTEMPTS:
                state.over(Unverifiable(Reason.NODE_UNREACHABLE, f"tried {', '.join(state.left)}"))
            try:
                routed = self._again(asked, state)
            except Unverifiable as bad:
                state.over(bad)
        self._settle(asked, begun)
        return await self._attempts.finish(incoming, begun)

    def _again(self, asked: Asked, state: Tried) -> Routed:
        if state.same is None:
            return self.choose(asked, state.left)
        name, epoch = state.same
        routed = self.choose(asked, only=name)
        if routed.node is None or routed.node.epoch != epoch:
            raise Unverifiable(Reason.NO_ELIGIBLE_NODE, f"{name} began anew and does not know what it did before")
        return routed

    def _lost(self, asked: Asked, routed: Routed, state: Tried, bad: Broken) -> None:
        """The node may have done it. Nothing, if it may go out once more; else :class:`Unverifiable`."""
        name = _name(routed)
        state.lost = state.lost or Unverifiable(Reason.OUTCOME_UNKNOWN, f"the connection to {name} broke: {bad}")
        if asked.dispatch.approval is not None or state.same is not None or not self._budget.spend():
            raise state.lost
        if _manifest(asked).idempotent:
            state.left[name] = "answer_lost"
        else:
            state.same = (name, routed.node.epoch if routed.node is not None else 0)

    async def _begin(self, asked: Asked, routed: Routed, state: Tried) -> Begun:
        """One attempt; of a read that takes unusually long two, and whichever answers first."""
        attempt = self._attempts.begin(self._attempts.prepare(asked, routed, state.number))
        if state.number > 1 or not _may_hedge(asked) or len(routed.open_to) < 2:
            return await attempt
        first = asyncio.create_task(attempt)
        try:
            done, _ = await asyncio.wait([first], timeout=_patience_s(routed))
            if done or not self._budget.spend():
                return await first
            try:
                other = self.choose(asked, {_name(routed): "slow"})
            except Unverifiable:
                return await first
            state.number += 1
            beside = self._attempts.prepare(asked, other, state.number)
            second = asyncio.create_task(self._attempts.begin(beside))
            return await self._race(first, second)
        except asyncio.CancelledError:
            first.cancel()
            raise

    async def _race(self, first: asyncio.Task[Begun], second: asyncio.Task[Begun]) -> Begun:
        """The one that answers first; the other is ended. If both fail: how the first did."""
        await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
        ahead, behind = (first, second) if first.done() else (second, first)
        if ahead.exception() is not None:
            await asyncio.wait([behind])
            return (behind if behind.exception() is None else first).result()
        behind.cancel()
        await asyncio.wait([behind])
        if not behind.cancelled() and behind.exception() is None:
            await self._attempts.abandon(behind.result())
        return ahead.result()

    def _settle(self, asked: Asked, begun: Begun) -> None:
        """What belongs to where this ran: a session that was opened there, or what the run keeps there."""
        homes, node, action = self._router.homes, begun.attempt.node.name, asked.action
        opened = begun.reply.header(mcp.SESSION_HEADER)
        if opened:
            homes.settle(Belongs(action.server, asked.agent.name, f"session {opened}"), node)
        belongs = _belongs(asked)
        if belongs is not None and action.payload.method == "DELETE":
            homes.leave(belongs)
        elif belongs is not None:
            homes.settle(belongs, node)


def _name(routed: Routed) -> str:
    return routed.node.name if routed.node is not None else ""


def _manifest(asked: Asked) -> Manifest:
    return asked.bundle.inventory.tool(asked.action.server, asked.action.tool).manifest


def _wanted(asked: Asked) -> Wanted:
    """What is to run, and everything that limits where. Labels: those of the data, of what the tool brings, and of what
    the run has seen."""
    action, manifest = asked.action, _manifest(asked)
    server = asked.bundle.inventory.servers[action.server]
    seen = asked.dispatch.facts["context"]["run"].get("labels", ())  # judged before, so it is there
    work = Work(
        action.server,
        action.tool,
        tuple(sorted({*server.labels, *manifest.labels})),
        tuple(sorted(map(str, seen))),
        frozenset((*server.requires, *manifest.requires)),
    )
    return Wanted(work, asked.dispatch.place)


def _belongs(asked: Asked) -> Belongs | None:
    """To what the action belongs, if to anything: a session that its server opened, or what its run keeps there."""
    action = asked.action
    session = dict(action.payload.headers).get(mcp.SESSION_HEADER)
    if session is not None:
        return Belongs(action.server, asked.agent.name, f"session {session}")
    if asked.bundle.inventory.servers[action.server].stateful:
        return Belongs(action.server, asked.agent.name, f"run {action.run}")
    return None


def _may_hedge(asked: Asked) -> bool:
    manifest = _manifest(asked)
    plain = asked.dispatch.approval is None and _belongs(asked) is None and manifest.category != "protocol"
    return plain and manifest.effect == "read" and manifest.idempotent


def _patience_s(routed: Routed) -> float:
    if routed.choice is None:
        return LEAST_PATIENCE_S
    return max(LEAST_PATIENCE_S, PATIENCE * expected_us(routed.choice.looked[routed.choice.chosen].seen) / 1e6)


def _nowhere(asked: Asked, routed: Routed) -> Unverifiable:
    eliminated, action = routed.found.eliminated, asked.action
    if routed.choice is not None:
        slo = asked.dispatch.place.slo_ms
        fast = f"none of {len(routed.open_to)} nodes answers within {slo} ms now"
        return Unverifiable(Reason.SLO_UNSATISFIABLE, fast)
    if eliminated.get(ANOTHER_VERSION):
        todo = f"an operator looks at it with `licet servers diff {action.server}`"
        return Unverifiable(Reason.TOOL_QUARANTINED, f"{action.name} is not offered as it was admitted: {todo}")
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(eliminated.items())) or "no node is registered"
    return Unverifiable(Reason.NO_ELIGIBLE_NODE, why)
