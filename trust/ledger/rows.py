"""What of an entry can be asked for: one flat row, so that an index can find it. The entry itself stays in its log."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from trust.ledger import words
from trust.ledger.entries import Agent, Approval, Deed, Intent, Judgement, Line, Refusal, SignIn, Subject


class Row(msgspec.Struct, frozen=True):
    """``origin`` and ``index`` are the entry's place, ``wall_us`` its time (Unix microseconds). Everything else is
    empty where it does not apply. ``subject``: the key under which something personal of it is sealed.
    ``decision``: allow, deny, hold, or how an outcome ended, or an event. ``policies``: those that decided. ``owner``:
    of the agent, as the decision knew it. ``words``: the entry in one line."""

    origin: str
    index: int
    wall_us: int
    kind: str
    step: int = 0
    decision: str = ""
    reason: str = ""
    agent: str = ""
    principal: str = ""
    owner: str = ""
    run: str = ""
    decision_id: str = ""
    action_id: str = ""
    approval: str = ""
    server: str = ""
    tool: str = ""
    node: str = ""
    by: str = ""
    subject: str = ""
    policies: tuple[str, ...] = ()
    words: str = ""


def row(line: Line) -> Row:
    """Of one entry."""
    stamp, entry = line.stamp, line.entry
    found: dict[str, Any] = {name: value for name in _PLAIN if isinstance(value := getattr(entry, name, ""), str)}
    deed, judgement = getattr(entry, "deed", None), getattr(entry, "judgement", None)
    if isinstance(deed, Deed):
        found |= {name: getattr(deed, name) for name in _OF_A_DEED}
        found["subject"] = deed.sealed.key if deed.sealed is not None else ""
    if isinstance(judgement, Judgement):
        found |= {"decision": judgement.decision, "policies": tuple(judgement.policies)}
        told = judgement.facts.get("agent")
        found["owner"] = str(told.get("owner", "")) if isinstance(told, dict) else ""
    if isinstance(entry, Agent):
        found["owner"] = entry.owner
    if isinstance(entry, Refusal):
        found["decision"] = "deny"
    elif isinstance(entry, Intent):
        found["decision"] = "allow"
    if isinstance(entry, Approval) and entry.request is not None:
        found |= {name: str(entry.request.get(name, "")) for name in _OF_A_DEED}
        found["subject"] = str(entry.request.get("sealed_by", ""))
    if isinstance(entry, Subject):
        found["subject"] = entry.key
    if isinstance(entry, SignIn):
        found["by"] = entry.person
    found["decision"] = found.get("decision") or getattr(entry, "status", "") or getattr(entry, "event", "")
    found["approval"] = getattr(entry, "approval", "") or ""
    return Row(
        origin=stamp.origin,
        index=stamp.seq,
        wall_us=stamp.wall_us,
        kind=words.kind_of(entry),
        step=getattr(entry, "step", 0),
        words=words.words(entry),
        **found,
    )


_PLAIN: Final = (
    "reason",
    "agent",
    "principal",
    "run",
    "decision_id",
    "action_id",
    "server",
    "tool",
    "node",
    "by",
)
_OF_A_DEED: Final = ("agent", "principal", "run", "decision_id", "action_id", "server", "tool")
