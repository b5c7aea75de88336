"""The facts feed: what the gateway pushes to each sidecar, signed, with a time that only rises."""

from __future__ import annotations

from typing import Final

import msgspec

from trust.facts import Agent
from trust.identity import jws
from trust.identity.keys import PublicKey, SecretKey
from trust.reasons import Reason, Unverifiable

TYP: Final = "licet-feed+jwt"
HEARTBEAT_S: Final = 1.0
SIDE_EFFECTS_STALE_S: Final = 5.0
"""Older facts deny whatever has side effects."""
ALL_STALE_S: Final = 30.0
"""Older facts deny everything."""
CLOCK_SKEW_S: Final = 5.0


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """About one agent. ``as_of_ms``: Unix milliseconds; ``killed``: the reason, if it was."""

    as_of_ms: int
    agent: Agent
    score: int
    bundle: str
    killed: str | None = None


def seal(facts: Facts, key: SecretKey) -> bytes:
    """One line of the feed."""
    return jws.seal(msgspec.json.encode(facts), TYP, key).encode("ascii") + b"\n"


def open_line(line: bytes, key: PublicKey, *, agent: str, after_ms: int, now: float) -> Facts:
    """Inverse of :func:`seal`; a line that is old, out of order or about another agent is refused."""
    try:
        facts = msgspec.json.decode(jws.open_sealed(line.strip().decode("ascii"), TYP, key), type=Facts)
    except (msgspec.DecodeError, UnicodeDecodeError) as bad:
        raise _refuse(str(bad)) from None
    if facts.agent.name != agent:
        raise _refuse(f"about {facts.agent.name}, expected {agent}")
    if facts.as_of_ms <= after_ms:
        raise _refuse("not newer than the last one")
    if abs(now - facts.as_of_ms / 1000) > CLOCK_SKEW_S:
        raise _refuse(f"its clock is {now - facts.as_of_ms / 1000:+.1f} s from ours")
    return facts


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.STALE_FACTS, f"feed: {detail}")
