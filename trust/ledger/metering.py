"""Metering: what each finished action used, as events that can be summed, sent on, and held against the ledger.

One event for each attempt, ``action:attempt``; so what is heard twice collapses. Whoever could not measure says
nothing: ``None``, never 0. What turns out to have been otherwise is taken back by an event with the opposite amounts,
and told again. Refused actions used nothing but evaluations of policy, which are counted from the decisions themselves.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from trust.ledger.entries import Dispatch, Line, Outcome
from trust.ledger.words import moment

SPECVERSION: Final = "1.0"
TYPE: Final = "dev.licet.action.finished"
EVALUATIONS: Final = 2
"""Of policy, for an action that ran: by its sidecar, and by the gateway."""


class Metered(msgspec.Struct, frozen=True):
    """What one attempt used. Times in microseconds: ``took_us`` as the gateway saw it, ``node_us`` of that on the node,
    the rest (``queue_us``) on the way and waiting; ``cpu_us`` and ``memory_bytes`` of the tool's process. ``sign`` is
    -1 for an event that takes another back."""

    action_id: str
    attempt: int
    wall_us: int
    origin: str
    index: int
    run: str
    agent: str
    principal: str
    tool: str
    node: str
    node_kind: str
    status: str
    took_us: int
    node_us: int | None
    cpu_us: int | None
    memory_bytes: int | None
    gpu_us: int | None
    bytes_in: int | None
    bytes_out: int | None
    tokens_in: int | None
    tokens_out: int | None
    sign: int = 1

    @property
    def queue_us(self) -> int | None:
        return None if self.node_us is None else max(0, self.took_us - self.node_us)

    @property
    def id(self) -> str:
        return f"{self.action_id}:{self.attempt}" + ("" if self.sign > 0 else ":taken-back")


COLUMNS: Final = tuple(name for name in Metered.__struct_fields__ if name not in ("origin", "sign"))


def begun(line: Line) -> dict[str, Any] | None:
    """What a gateway's dispatch tells of an attempt, by column; None for other entries."""
    entry = line.entry
    if not isinstance(entry, Dispatch) or entry.step != 8:
        return None
    return {
        "action_id": entry.action_id,
        "attempt": entry.attempt,
        "wall_us": line.stamp.wall_us,
        "index": line.stamp.seq,
        "run": entry.run,
        "agent": entry.agent,
        "principal": entry.principal,
        "tool": f"{entry.server}/{entry.tool}",
        "node": entry.node,
        "node_kind": entry.node_kind,
        "bytes_in": entry.request_bytes,
        "idempotency_key": entry.idempotency_key,
    }


def ended(line: Line) -> dict[str, Any] | None:
    """What a gateway's outcome tells of the same attempt, by column; None for other entries."""
    entry = line.entry
    if not isinstance(entry, Outcome) or entry.step != 8:
        return None
    used = entry.used
    finished = entry.status in ("done", "tool_error")
    return {
        "wall_us": line.stamp.wall_us,
        "index": line.stamp.seq,
        "status": entry.status,
        "took_us": entry.duration_us,
        "bytes_out": entry.response_bytes if finished and entry.response_bytes else None,
        **({name: getattr(used, name) for name in used.__struct_fields__} if used is not None else {}),
    }


def cloud_event(one: Metered) -> dict[str, Any]:
    """One event (CloudEvents 1.0, structured)."""
    amounts = {
        "took_ms": one.took_us / 1000,
        "queue_ms": _ms(one.queue_us),
        "cpu_ms": _ms(one.cpu_us),
        "gpu_seconds": None if one.gpu_us is None else one.gpu_us / 1e6,
        "bytes_in": one.bytes_in,
        "bytes_out": one.bytes_out,
        "tokens_in": one.tokens_in,
        "tokens_out": one.tokens_out,
        "evaluations": EVALUATIONS,
    }
    return {
        "specversion": SPECVERSION,
        "type": TYPE,
        "source": f"urn:licet:{one.origin}",
        "id": one.id,
        "time": moment(one.wall_us, "%Y-%m-%dT%H:%M:%S.%fZ"),
        "subject": one.agent,
        "datacontenttype": "application/json",
        "data": {
            "action_id": one.action_id,
            "attempt": one.attempt,
            "run": one.run,
            "agent": one.agent,
            "principal": one.principal,
            "tool": one.tool,
            "decision": "allow",
            "status": one.status,
            "node": one.node,
            "node_kind": one.node_kind or None,
            **{name: value if value is None else one.sign * value for name, value in amounts.items()},
            "memory_bytes": one.memory_bytes,  # the most that was used, which nobody sums
            "measured_by": {"took": one.origin, "node": one.node if one.node_us is not None else None},
            "audit": {"origin": one.origin, "index": one.index},
        },
    }


def _ms(us: int | None) -> float | None:
    return None if us is None else us / 1000
