"""After a restart: what the ledger says of the time before, and an outcome for every intent that has none."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge.durable import DurableLedger
from sidecar.memory import DAY, Memory
from trust.ledger import entries


@dataclass(frozen=True, slots=True)
class Past:
    """Of one agent. ``keys``: idempotency keys of the last day, with when (Unix seconds) they were used. ``refusals``:
    those of the last day, by index; the gateway may not have heard of all."""

    memory: Memory
    keys: dict[str, float] = field(default_factory=dict)
    refusals: list[tuple[int, entries.Refusal]] = field(default_factory=list)


class Before:
    """``unfinished``: outcomes (``unknown``) that have to be written now. ``newest_bundle``: its version, or 0."""

    def __init__(self, labels_keep_s: int) -> None:
        self._labels_keep_s = labels_keep_s
        self._of: dict[str, Past] = {}
        self.unfinished: list[entries.Outcome] = []
        self.newest_bundle = 0

    def of(self, agent: str) -> Past:
        """What is known of *agent*; a new agent has no past."""
        found = self._of.get(agent)
        if found is None:
            found = self._of[agent] = Past(Memory(self._labels_keep_s))
        return found


def recover(ledger: DurableLedger, labels_keep_s: int, now: float) -> Before:
    """Everything that *ledger* tells of the time before."""
    before = Before(labels_keep_s)
    open_deeds: dict[str, entries.Deed] = {}
    for index, line in ledger.lines():
        at = line.stamp.wall_us / 1_000_000
        match line.entry:
            case entries.Intent(deed=deed) as intent:
                open_deeds[deed.action_id] = deed
                if now - at < DAY:
                    past = before.of(deed.agent)
                    past.memory.permitted(deed.run, f"{deed.server}/{deed.tool}", intent.labels, at, intent.cents)
                    if deed.idempotency_key:
                        past.keys[deed.idempotency_key] = at
            case entries.Refusal(deed=entries.Deed() as deed) as refusal if now - at < DAY:
                past = before.of(deed.agent)
                past.memory.denied(deed.run, at)
                past.refusals.append((index, refusal))
            case entries.Outcome() as outcome if outcome.action_id in open_deeds:
                deed = open_deeds.pop(outcome.action_id)
                if outcome.status == "refused":
                    before.of(deed.agent).keys.pop(deed.idempotency_key, None)
            case entries.Bundle() as loaded:
                before.newest_bundle = max(before.newest_bundle, loaded.version)
    before.unfinished = [
        entries.Outcome(
            action_id=deed.action_id,
            decision_id=deed.decision_id,
            run=deed.run,
            status="unknown",
            reason="outcome_unknown",
            detail="the sidecar ended before the answer came",
        )
        for deed in open_deeds.values()
    ]
    return before
