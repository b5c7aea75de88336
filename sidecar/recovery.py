"""After a restart: what the ledgers say of the time before, and an outcome for every intent that has none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import msgspec

from sidecar.memories import Memories
from trust.ledger import entries
from trust.ledger.entries import Line
from trust.reasons import Reason
from trust.standing.rules import COUNTED
from trust.window import DAY

NOT_SENT: Final = ("refused", str(Reason.STALE_FACTS))
"""The outcome of what was permitted knowing too little, or what a gateway that knew too little would not send."""


class Past(msgspec.Struct):
    """Of one agent. ``keys``: idempotency keys of the last day, with when (Unix seconds) they were used. ``refusals``:
    those of the last day in the own ledger, by index; the gateway may not have heard of all."""

    keys: dict[str, float]
    refusals: list[tuple[int, entries.Refusal]]


class Before(msgspec.Struct):
    """Of one sidecar. ``keys``: by agent, as in :class:`Past`."""

    memories: Memories
    keys: defaultdict[str, dict[str, float]] = msgspec.field(default_factory=lambda: defaultdict(dict))

    def read(self, lines: Iterable[tuple[int, Line]], now: float) -> Own:
        """Everything that one of its ledgers tells, those of its other workers included."""
        own = Own()
        open_deeds: dict[str, tuple[entries.Intent, float]] = {}
        for index, line in lines:
            at = line.stamp.wall_us / 1_000_000
            match line.entry:
                case entries.Intent(deed=deed) as intent:
                    open_deeds[deed.action_id] = intent, at
                    if now - at < DAY:
                        tool = f"{deed.server}/{deed.tool}"
                        self.memories.of(deed.agent).permitted(deed.run, tool, intent.labels, at, intent.cents)
                        if deed.idempotency_key:
                            self.keys[deed.agent][deed.idempotency_key] = at
                case entries.Refusal(deed=entries.Deed() as deed) as refusal if now - at < DAY:
                    if refusal.reason in COUNTED:
                        self.memories.of(deed.agent).denied(deed.run, at)
                    own.refusals[deed.agent].append((index, refusal))
                case entries.Outcome() as outcome if outcome.action_id in open_deeds:
                    intent, permitted_at = open_deeds.pop(outcome.action_id)
                    deed = intent.deed
                    if outcome.status == "refused":
                        self.keys[deed.agent].pop(deed.idempotency_key, None)
                    if outcome.reason in COUNTED and now - at < DAY:
                        self.memories.of(deed.agent).denied(deed.run, at)
                    if (outcome.status, outcome.reason) == NOT_SENT and now - permitted_at < DAY:
                        self.memories.of(deed.agent).took_back(f"{deed.server}/{deed.tool}", permitted_at, intent.cents)
                case entries.Bundle() as loaded:
                    own.newest_bundle = max(own.newest_bundle, loaded.version)
        own.unfinished = [_unfinished(intent.deed) for intent, _ in open_deeds.values()]
        return own


class Own(msgspec.Struct):
    """Of one ledger. ``refusals``: by agent, as in :class:`Past`. ``unfinished``: outcomes (``unknown``) that have to
    be written now. ``newest_bundle``: its version, or 0."""

    refusals: defaultdict[str, list[tuple[int, entries.Refusal]]] = msgspec.field(
        default_factory=lambda: defaultdict(list)
    )
    unfinished: list[entries.Outcome] = []
    newest_bundle: int = 0


def _unfinished(deed: entries.Deed) -> entries.Outcome:
    return entries.Outcome(
        action_id=deed.action_id,
        decision_id=deed.decision_id,
        run=deed.run,
        status="unknown",
        reason="outcome_unknown",
        detail="the sidecar ended before the answer came",
    )
