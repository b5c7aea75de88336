"""The facts feed: what the gateway pushes to each sidecar and node, signed, with a version that only rises."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from trust.facts import Agent
from trust.identity import jws
from trust.identity.keys import PublicKey, Signer
from trust.reasons import Reason, Unverifiable
from trust.standing.score import Standing

TYP: Final = "licet-feed+jwt"
STOPS_TYP: Final = "licet-stops+jwt"
HEARTBEAT_S: Final = 1.0
SIDE_EFFECTS_STALE_S: Final = 5.0
"""Older facts deny whatever has side effects."""
ALL_STALE_S: Final = 30.0
"""Older facts deny everything."""
CLOCK_SKEW_S: Final = 5.0


class Stopped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why somebody must not act: ``reason`` is ``killed`` or ``revoked``, ``detail`` what a person said."""

    reason: str
    detail: str


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """About one agent. ``as_of_ms``: Unix milliseconds; ``version`` rises with each change of the gateway's state.

    ``rotate``: the key (raw, base64url) that the sidecar should replace. ``heard``: the last of the sidecar's refusals
    that the gateway knows, by index. ``breakers``: open circuit breakers, target → until when (Unix seconds).
    ``epoch`` and ``keys`` (raw, base64url; those that drain included) are what the agent is known by now.
    ``revoked``: ``what:id`` of everything that is not believed any more; None when it is as in the line before. Why, is
    told to whoever it concerns, and not to all. ``erasures``: how many keys of subjects were destroyed; who keeps such
    keys forgets them when it rises.
    """

    as_of_ms: int
    version: int
    agent: Agent
    standing: Standing
    bundle: str
    stopped: Stopped | None = None
    rotate: str = ""
    heard: int = -1
    breakers: dict[str, int] = {}
    epoch: int = 1
    keys: tuple[str, ...] = ()
    revoked: tuple[str, ...] | None = None
    erasures: int = 0


class Stops(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For a node: the agents whose tickets it must not honour."""

    as_of_ms: int
    version: int
    node: str
    agents: tuple[str, ...]


Line = TypeVar("Line", Facts, Stops)


def seal(line: Facts | Stops, key: Signer) -> bytes:
    """One line of the feed."""
    typ = TYP if isinstance(line, Facts) else STOPS_TYP
    return jws.seal(msgspec.json.encode(line), typ, key).encode("ascii") + b"\n"


def open_line(line: bytes, key: PublicKey, *, agent: str, after: Facts | None, now: float) -> Facts:
    """A line about *agent*; one that is old, out of order or about another is refused."""
    facts = _open(line, TYP, key, Facts)
    if facts.agent.name != agent:
        raise _refuse(f"about {facts.agent.name}, expected {agent}")
    _require_newer(facts, after, now)
    return facts


def open_stops(line: bytes, key: PublicKey, *, node: str, after: Stops | None, now: float) -> Stops:
    """The same for a node."""
    stops = _open(line, STOPS_TYP, key, Stops)
    if stops.node != node:
        raise _refuse(f"for {stops.node}, expected {node}")
    _require_newer(stops, after, now)
    return stops


def _open(line: bytes, typ: str, key: PublicKey, kind: type[Line]) -> Line:
    try:
        return msgspec.json.decode(jws.open_sealed(line.strip().decode("ascii"), typ, key), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as bad:
        raise _refuse(str(bad)) from None


def _require_newer(line: Facts | Stops, after: Facts | Stops | None, now: float) -> None:
    # Nothing is believed that is so far ahead; if what was believed is, then our own clock was put back since.
    put_back = after is not None and after.as_of_ms / 1000 - now > CLOCK_SKEW_S
    if after is not None and line.as_of_ms <= after.as_of_ms and not put_back:
        raise _refuse("not newer than the last one")
    if after is not None and line.version < after.version:
        raise _refuse(f"version {line.version} after {after.version}: something was taken back")
    if abs(now - line.as_of_ms / 1000) > CLOCK_SKEW_S:
        raise _refuse(f"its clock is {now - line.as_of_ms / 1000:+.1f} s from ours")


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.STALE_FACTS, f"feed: {detail}")
