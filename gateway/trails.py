"""The trail of a run: its hops in order, each with who acted for whom, where, on whose data, and where it stands."""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.ledgers import Ledgers
from gateway.state import Person
from trust.identity import did
from trust.ledger import entries
from trust.ledger.rows import Row
from trust.reasons import Reason, Unverifiable, visible

MAX_HOPS: Final = 10_000


class Hop(msgspec.Struct, frozen=True):
    """One attempt of one action. ``actor``: the DID of the agent; ``data_locality`` is empty where nobody vouches for
    one; ``status``: how it ended, as the gateway knows; ``origin`` and ``index``: where it stands in the ledger."""

    agent: str
    actor: str
    principal: str
    node: str
    node_kind: str
    action: str
    data_locality: str
    decision_id: str
    attempt: int
    wall_us: int
    status: str
    origin: str
    index: int


class Trail(msgspec.Struct, frozen=True):
    """``one_identity``: every hop was made by the same agent for the same principal; ``others``: the places of those
    that were not, beside the first."""

    run: str
    agent: str
    principal: str
    one_identity: bool
    others: list[int]
    hops: list[Hop]


async def trail(ledgers: Ledgers, run: str, by: Person, trust_domain: str) -> Trail:
    """Of a run, as far as its logs are sealed; :class:`Unverifiable` if nothing of it ran anywhere."""
    rows = await ledgers.whole_run(run, MAX_HOPS * 8, by, "trail")
    ended = {
        (row.decision_id, row.node): row.decision
        for row in rows
        if row.kind == "outcome" and row.step == 8
    }  # fmt: skip
    sent = [row for row in rows if row.kind == "dispatch" and row.step == 8][:MAX_HOPS]
    hops = [_hop(ledgers, row, ended, did.of(trust_domain, "agent", row.agent)) for row in sent]
    if not hops:
        missing = f"nothing of run {visible(run)} was sent to a node (what is recorded can be found a second later)"
        raise Unverifiable(Reason.NOT_FOUND, missing)
    first = hops[0]
    others = [at for at, hop in enumerate(hops) if (hop.agent, hop.principal) != (first.agent, first.principal)]
    return Trail(run, first.agent, first.principal, not others, others, hops)


def _hop(ledgers: Ledgers, row: Row, ended: dict[tuple[str, str], str], actor: str) -> Hop:
    entry = entries.decode(ledgers.sealed(row.origin).entry(row.index)).entry
    sent = entry if isinstance(entry, entries.Dispatch) else None
    return Hop(
        agent=row.agent,
        actor=actor,
        principal=row.principal,
        node=row.node,
        node_kind=sent.node_kind if sent else "",
        action=f"{row.server}/{row.tool}",
        data_locality=sent.data_locality if sent else "",
        decision_id=row.decision_id,
        attempt=sent.attempt if sent else 1,
        wall_us=row.wall_us,
        status=ended.get((row.decision_id, row.node), "running"),
        origin=row.origin,
        index=row.index,
    )
