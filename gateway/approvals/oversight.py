"""Whether people really decide: how long they take, how often they say no, what nobody saw. Plain and pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median, quantiles

import msgspec

from gateway.state import ApprovalRecord, Vote

GLANCE_US = 3_000_000
"""Whoever says yes sooner after the first look has not read what it says."""
_TEN = 10


class Times(msgspec.Struct, frozen=True):
    """Of some durations, in seconds; -1 where there is none."""

    count: int
    median_s: float
    ninth_s: float
    """Nine of ten are shorter."""


class Decider(msgspec.Struct, frozen=True):
    """One person: votes, how many were a no, from the first look at a request to their vote, and how many were a yes
    within a glance."""

    person: str
    votes: int
    denied: int
    looked: Times
    glances: int

    @property
    def glance_share(self) -> float:
        return self.glances / self.votes if self.votes else 0.0


class Asker(msgspec.Struct, frozen=True):
    """One policy: what it asked people for, and how that ended."""

    policy: str
    asked: int
    approved: int
    denied: int
    expired: int


class Oversight(msgspec.Struct, frozen=True):
    """``to_decision``: from asking to the decision; ``to_look``: from asking to the first look; ``abandoned``: that
    ended without anybody deciding; ``unseen``: of those, at which nobody looked."""

    asked: int
    waiting: int
    approved: int
    denied: int
    abandoned: int
    unseen: int
    cancelled: int
    edited: int
    covered: int
    to_decision: Times
    to_look: Times
    deciders: list[Decider]
    askers: list[Asker]

    @property
    def deny_share(self) -> float:
        decided = self.approved + self.denied
        return self.denied / decided if decided else 0.0

    @property
    def abandoned_share(self) -> float:
        over = self.approved + self.denied + self.abandoned
        return self.abandoned / over if over else 0.0


def oversight(records: Iterable[ApprovalRecord]) -> Oversight:
    """What these requests say about those who decide."""
    all_ = list(records)
    asked = [one for one in all_ if not one.under]  # what a scope covers asked nobody
    states = Counter(_ended(one) for one in asked)
    expired = [one for one in asked if one.state == "expired"]
    return Oversight(
        asked=len(asked),
        waiting=states["pending"],
        approved=states["approved"],
        denied=states["denied"],
        abandoned=len(expired),
        unseen=sum(not one.viewed_at_us for one in expired),
        cancelled=states["cancelled"],
        edited=sum(bool(one.editors) for one in asked),
        covered=len(all_) - len(asked),
        to_decision=_times([one.decided_at_us - one.requested_at_us for one in asked if _was_decided(one)]),
        to_look=_times([one.viewed_at_us - one.requested_at_us for one in asked if one.viewed_at_us]),
        deciders=_deciders(asked),
        askers=_askers(asked),
    )


def _ended(record: ApprovalRecord) -> str:
    """``consumed`` was approved, and so was what was approved and never used."""
    decided_yes = record.state == "consumed" or (record.decided_at_us and record.state == "approved")
    return "approved" if decided_yes else record.state


def _was_decided(record: ApprovalRecord) -> bool:
    return bool(record.decided_at_us) and _ended(record) in ("approved", "denied")


def _times(spans_us: Sequence[int]) -> Times:
    spans = sorted(span / 1e6 for span in spans_us if span >= 0)
    if not spans:
        return Times(0, -1.0, -1.0)
    ninth = quantiles(spans, n=_TEN, method="inclusive")[-1] if len(spans) > 1 else spans[0]
    return Times(len(spans), median(spans), ninth)


def _deciders(records: Sequence[ApprovalRecord]) -> list[Decider]:
    by: dict[str, list[tuple[ApprovalRecord, Vote]]] = {}
    for record in records:
        for vote in record.votes:
            by.setdefault(vote.by, []).append((record, vote))
    found = []
    for person, given in by.items():
        looked = [(vote, vote.at_us - one.viewed_at_us) for one, vote in given if one.viewed_at_us]
        glances = sum(vote.decision == "approve" and 0 <= span < GLANCE_US for vote, span in looked)
        denied = sum(vote.decision == "deny" for _, vote in given)
        found.append(Decider(person, len(given), denied, _times([span for _, span in looked]), glances))
    return sorted(found, key=lambda one: (-one.votes, one.person))


def _askers(records: Sequence[ApprovalRecord]) -> list[Asker]:
    counted: dict[str, Counter[str]] = {}
    for record in records:
        for policy in record.policies:
            counted.setdefault(policy, Counter())[_ended(record)] += 1
    found = [
        Asker(policy, sum(ends.values()), ends["approved"], ends["denied"], ends["expired"])
        for policy, ends in counted.items()
    ]
    return sorted(found, key=lambda one: (-one.asked, one.policy))
