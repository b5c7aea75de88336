"""After a restart: what the ledger says of the time before, and an outcome for every intent that has none."""

from __future__ import annotations

from dataclasses import dataclass

from edge.durable import DurableLedger
from sidecar.memory import DAY, Memory
from trust.ledger import entries


@dataclass(frozen=True, slots=True)
class Before:
    """``unfinished``: outcomes (``unknown``) that have to be written now. ``newest_bundle``: its version, or 0.
    ``keys``: idempotency keys of the last day, with when (Unix seconds) they were used. ``refusals``: those of the
    last day, by index; the gateway may not have heard of all."""

    unfinished: list[entries.Outcome]
    newest_bundle: int
    keys: dict[str, float]
    refusals: list[tuple[int, entries.Refusal]]


def recover(ledger: DurableLedger, memory: Memory, now: float) -> Before:
    """Fold the ledger into *memory*, and tell the rest."""
    newest = 0
    unfinished: dict[str, entries.Deed] = {}
    keys: dict[str, float] = {}
    refusals: list[tuple[int, entries.Refusal]] = []
    for index, line in ledger.lines():
        at = line.stamp.wall_us / 1_000_000
        match line.entry:
            case entries.Intent() as intent:
                unfinished[intent.deed.action_id] = intent.deed
                if now - at < DAY:
                    name = f"{intent.deed.server}/{intent.deed.tool}"
                    memory.permitted(intent.deed.run, name, intent.labels, at, intent.cents)
                    if intent.deed.idempotency_key:
                        keys[intent.deed.idempotency_key] = at
            case entries.Refusal(deed=entries.Deed() as deed) as refusal if now - at < DAY:
                memory.denied(deed.run, at)
                refusals.append((index, refusal))
            case entries.Outcome() as outcome:
                ended = unfinished.pop(outcome.action_id) if outcome.action_id in unfinished else None
                if ended is not None and outcome.status == "refused":
                    keys.pop(ended.idempotency_key, None)
            case entries.Bundle() as loaded:
                newest = max(newest, loaded.version)
    outcomes = [
        entries.Outcome(
            action_id=deed.action_id,
            decision_id=deed.decision_id,
            run=deed.run,
            status="unknown",
            reason="outcome_unknown",
            detail="the sidecar ended before the answer came",
        )
        for deed in unfinished.values()
    ]
    return Before(outcomes, newest, keys, refusals)
