"""A request as people read it: what will happen, with what, why somebody is asked, for whom, how far it reaches."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from gateway.approvals import rules
from gateway.approvals.desk import Desk
from gateway.bundles import Bundles
from gateway.console.charts import RECENT, spark
from gateway.console.why import Why, Whys
from gateway.passkeys import Passkeys
from gateway.registry import Registry
from gateway.standings import Standings
from gateway.state import ApprovalRecord, Grant, Person
from trust import report, wire
from trust.canonical import JsonObject
from trust.ledger import entries
from trust.policy.inventory import Tool
from trust.reasons import Unverifiable
from trust.standing.score import HIGHEST

MAX_VALUE: Final = 4_000
LIKE_IT: Final = 5


class Value(msgspec.Struct, frozen=True):
    """One argument; ``was``: before somebody edited it. Empty where it is not, or was not."""

    name: str
    value: str
    was: str = ""
    changed: bool = False


class Seats(msgspec.Struct, frozen=True):
    """How many of one group have approved, of how many."""

    group: str
    given: int
    wanted: int


class Card(msgspec.Struct, frozen=True):
    """``seat``: in whose place the person who looks would vote; empty with ``barred``, which says why not. ``missing``:
    why the arguments are not here. ``asked``: what their passkey is asked for a yes, where that is signed; empty if
    they have none. ``looking``: who else opened it just now."""

    record: ApprovalRecord
    owner: str
    purpose: str
    teams: tuple[str, ...]
    score: int
    tier: str
    line: str
    tool: Tool | None
    zone: str
    labels: tuple[str, ...]
    values: list[Value]
    seats: list[Seats]
    like: list[ApprovalRecord]
    left: Grant | None
    seat: str = ""
    barred: str = ""
    missing: str = ""
    arguments: str = ""
    asked: str = ""
    looking: tuple[str, ...] = ()
    why: Why | None = None

    @property
    def until_s(self) -> int:
        return self.record.expires_at_us // 1_000_000

    @property
    def scoped(self) -> bool:
        """Whether a yes may go further than this once."""
        return self.tool is not None and self.tool.manifest.risk < 3 and not self.record.terms.get("step_up")


class Past(msgspec.Struct, frozen=True):
    """A request that is over. ``ended``: how the action that used it ended (done, unknown, …); empty if nothing did, or
    nobody knows yet."""

    record: ApprovalRecord
    values: list[Value]
    ended: str


class Cards:
    """Of one gateway."""

    def __init__(
        self, desk: Desk, registry: Registry, standings: Standings, bundles: Bundles, passkeys: Passkeys, whys: Whys
    ) -> None:
        self._passkeys = passkeys
        self._desk = desk
        self._registry = registry
        self._standings = standings
        self._bundles = bundles
        self._whys = whys

    def of(self, record: ApprovalRecord, person: Person) -> Card:
        """*record* as *person* sees it."""
        all_ = self._desk.electorate(record)
        agent = self._registry.agent(record.agent).agent
        standing = self._standings.standing(record.agent)
        bundle = self._bundles.for_agent(record.agent).compiled
        server = bundle.inventory.servers.get(record.request["server"]) if bundle is not None else None
        seat, barred = "", ""
        try:
            seat = rules.seat(record, person.name, agent.owner, all_)
        except Unverifiable as bad:
            barred = bad.detail
        given, before, missing = self._opened(record, person)
        return Card(
            record=record,
            owner=agent.owner,
            purpose=agent.purpose,
            teams=tuple(agent.teams),
            score=standing.score,
            tier=standing.tier,
            line=spark([one.entry.after for one in self._standings.lately(record.agent, RECENT)], HIGHEST),
            tool=server.tools.get(record.request["tool"]) if server is not None else None,
            zone=server.zone if server is not None else "",
            labels=tuple(server.labels) if server is not None else (),
            values=_values(given or {}, before),
            seats=[Seats(g, rules.given(record, g, all_), n) for g, n in sorted(record.terms["quorum"].items())],
            like=self._desk.like(record, LIKE_IT),
            left=self._desk.granted(record),
            seat=seat,
            barred=barred,
            missing=missing,
            arguments=json.dumps(given, indent=2, ensure_ascii=False) if given is not None else "",
            asked=self._passkeys.to_vote(person, record) if record.terms["step_up"] and seat else "",
        )

    def past(self, record: ApprovalRecord, person: Person, ended: str) -> Past:
        """*record* in a list of what is over; *ended*: how the action that used it ended, if that is known."""
        given, before, _ = self._opened(record, person)
        return Past(record, _values(given or {}, before), ended)

    def _opened(self, record: ApprovalRecord, person: Person) -> tuple[JsonObject | None, JsonObject | None, str]:
        """(its arguments, those of before somebody edited them, why they are not here), as far as *person* may see."""
        reach = self._desk.electorate(record).reach(person.name)
        opens = bool(rules.wanted(record) & reach) or bool({"auditor", "operator"} & person.groups)
        if "sealed_by" in record.request and not opens:
            return None, None, "personal"
        given, missing = self._arguments(record)
        return given, self._before(record), missing

    def _arguments(self, record: ApprovalRecord) -> tuple[JsonObject | None, str]:
        try:
            action, _ = wire.action_of(*self._desk.stored(record))
        except Unverifiable as bad:
            return None, bad.detail
        return action.arguments, ""

    def _before(self, record: ApprovalRecord) -> JsonObject | None:
        """What the agent asked with, if somebody edited that since."""
        try:
            first = self._desk.original(record)
        except Unverifiable:
            return None
        return wire.action_of(*first)[0].arguments if first is not None else None

    async def explained(self, card: Card) -> Card:
        """With the clauses that asked for a person, of the policies as they were."""
        try:
            dispatch, body = self._desk.stored(card.record)
            action, _ = wire.action_of(dispatch, body)
        except Unverifiable:
            return card
        deed = report.deed(
            action,
            agent=dispatch.agent,
            principal=dispatch.principal,
            authn="",
            authority=dispatch.authority,
            action_digest=dispatch.action_digest,
        )
        judgement = entries.Judgement(dispatch.bundle, "hold", dispatch.facts, list(card.record.policies))
        return msgspec.structs.replace(card, why=await self._whys.waiting(entries.Hold(deed, judgement, {})))


def _values(now: JsonObject, before: JsonObject | None) -> list[Value]:
    if before is None:
        return [Value(name, _text(value)) for name, value in now.items()]
    names = dict.fromkeys((*now, *before))
    return [
        Value(
            name,
            _text(now[name]) if name in now else "",
            _text(before[name]) if name in before else "",
            (name in now) != (name in before) or now.get(name) != before.get(name),
        )
        for name in names
    ]


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}… ({len(text)} characters)"
