"""Who may decide on a request, and when enough of them have. Plain and pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from gateway.state import ApprovalRecord, Deputy, Person, Vote
from trust.ledger.entries import ONCE, Scope
from trust.policy.inventory import RISK_CRITICAL
from trust.reasons import Reason, Unverifiable

DEFAULT_MINUTES: Final = 60
_NARROW: Final = {"once": 0, "uses": 1, "tool": 2}


class Electorate(msgspec.Struct, frozen=True):
    """Everybody, who stands in for whom, and when that is (Unix microseconds)."""

    people: Mapping[str, Person]
    deputies: Sequence[Deputy]
    now_us: int

    def groups(self, name: str) -> frozenset[str]:
        person = self.people.get(name)
        return person.groups if person is not None else frozenset()

    def seats(self, voter: str) -> list[str]:
        """In whose places *voter* may vote: the own first."""
        mine = (d for d in self.deputies if d.deputy == voter)
        return [voter] + [d.person for d in mine if d.since_us <= self.now_us < d.until_us]

    def reach(self, voter: str) -> frozenset[str]:
        """The groups in which *voter* may vote, for whomever."""
        return frozenset().union(*(self.groups(name) for name in self.seats(voter)))


def wanted(record: ApprovalRecord) -> frozenset[str]:
    """The groups whose people may decide now."""
    return frozenset(record.terms["quorum"]) | frozenset(record.groups)


def excluded(record: ApprovalRecord, owner: str) -> dict[str, str]:
    """Who may not decide on it, and why: nobody judges what is done for them, or by them."""
    found = dict.fromkeys(record.editors, "edited it")
    return found | {str(record.request["principal"]): "is whom it is done for", owner: f"owns {record.agent}"}


def seat(
    record: ApprovalRecord, voter: str, owner: str, all_: Electorate, asked: str = "", *, signs: bool = False
) -> str:
    """In whose place *voter* votes (*asked*: the one that it names), or :class:`Unverifiable` that says why in none.
    *signs*: it is a yes that is signed, and nobody signs for somebody else."""
    barred = excluded(record, owner)
    if voter in barred:
        raise Unverifiable(Reason.NOT_YOURS, f"{voter} {barred[voter]} and cannot decide on it")
    seats = [voter] if signs else all_.seats(voter)
    possible = [name for name in seats if all_.groups(name) & wanted(record)]
    if asked:
        possible = [name for name in possible if name == asked]
    if not possible:
        groups = ", ".join(sorted(wanted(record)))
        raise Unverifiable(
            Reason.NOT_YOURS,
            f"{voter} has none of the roles {groups}, and "
            + ("nobody signs for somebody else" if signs else "stands in for nobody who does"),
        )
    taken = {vote.seat for vote in record.votes} | {vote.by for vote in record.votes}
    if voter in taken:
        raise Unverifiable(Reason.NOT_YOURS, f"{voter} has voted already")
    free = [name for name in possible if name not in taken and name not in barred]
    if not free:
        raise Unverifiable(Reason.NOT_YOURS, f"{', '.join(possible)} has voted already, or cannot decide on it")
    return free[0]


def may_vote(record: ApprovalRecord, voter: str, owner: str, all_: Electorate) -> bool:
    """Whether *voter* could vote on it now."""
    try:
        seat(record, voter, owner, all_)
    except Unverifiable:
        return False
    return True


def require_may_decide(record: ApprovalRecord, voter: str, owner: str, all_: Electorate) -> None:
    """That *voter* could vote on what the agent asked for, or could have."""
    seat(msgspec.structs.replace(record, votes=(), editors=()), voter, owner, all_)


def enough(
    votes: Iterable[Vote], quorum: Mapping[str, int], stand_ins: Iterable[str], all_: Electorate, *, step_up: bool
) -> bool:
    """Whether as many people of each group approved, of those who are still there; emptiness is no yes. With *step_up*
    only what people signed for themselves counts."""
    escalated = frozenset(stand_ins)
    yes = [vote for vote in votes if vote.decision == "approve" and vote.by in all_.people]
    seats = {vote.seat for vote in yes if not step_up or (vote.signed and vote.seat == vote.by)}
    return bool(quorum) and all(
        sum(bool(all_.groups(name) & ({group} | escalated)) for name in seats) >= count
        for group, count in quorum.items()
    )


def given(record: ApprovalRecord, group: str, all_: Electorate) -> int:
    """How many of *group*, or who may stand in for it, have approved."""
    accepted = {group} | frozenset(record.groups)
    seats = {vote.seat for vote in record.votes if vote.decision == "approve" and vote.by in all_.people}
    return sum(bool(all_.groups(name) & accepted) for name in seats)


def outcome(record: ApprovalRecord, all_: Electorate) -> Literal["approved", "denied"] | None:
    """What the votes so far come to."""
    if len({vote.seat for vote in record.votes if vote.decision == "deny"}) >= int(record.terms["deny"]):
        return "denied"
    step_up = bool(record.terms["step_up"])
    return "approved" if enough(record.votes, record.terms["quorum"], record.groups, all_, step_up=step_up) else None


def narrowest(votes: Iterable[Vote]) -> Scope:
    """How far a yes goes that several gave: no further than any of them."""
    scopes = [vote.scope for vote in votes if vote.decision == "approve"]
    if not scopes:
        return ONCE
    kind = min((scope.kind for scope in scopes), key=_NARROW.__getitem__)
    if kind == "once":
        return ONCE
    alike = [scope for scope in scopes if scope.kind == kind]
    return Scope(kind, min(scope.uses for scope in alike), min(scope.minutes for scope in scopes))


def require_scope(scope: Scope, record: ApprovalRecord, risk: int) -> Scope:
    """*scope* if a yes to this request may go so far, or :class:`Unverifiable`."""
    if scope.kind == "once":
        return ONCE
    if risk >= RISK_CRITICAL:
        raise Unverifiable(Reason.APPROVAL_MISMATCH, "an action of the highest risk is approved once, each time anew")
    if record.terms.get("step_up"):
        raise Unverifiable(Reason.APPROVAL_MISMATCH, "each action of this kind is signed for: it is approved once")
    if scope.kind == "uses" and scope.uses < 1:
        raise Unverifiable(Reason.MALFORMED_REQUEST, "uses: expected 1 to 100")
    uses = scope.uses if scope.kind == "uses" else 0
    return Scope(scope.kind, uses, scope.minutes or DEFAULT_MINUTES)
