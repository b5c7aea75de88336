"""What is degraded, in words: what an operator should know before somebody asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from gateway.fleet import Shown
from gateway.gaps import LogState
from gateway.state import Killed, Tripped

WITNESS_LATE_US = 60 * 1_000_000
NODES = "/console/nodes"


class Trouble(msgspec.Struct, frozen=True):
    """One sentence, and the page of the console that says more; ``grave``: actions are refused because of it."""

    words: str
    page: str = ""
    grave: bool = False


class Seen(msgspec.Struct, frozen=True):
    """Everything that is looked at. ``now_us``: Unix microseconds."""

    now_us: int
    policies: str
    active: bool
    broken: str
    anchors: str
    logs: Sequence[LogState]
    nodes: Sequence[Shown]
    killed: Iterable[Killed]
    tripped: Iterable[Tripped]
    late: int
    """Requests that wait and end within five minutes."""


def troubles(seen: Seen) -> list[Trouble]:
    """What is wrong now, the gravest first; nothing, if nothing is."""
    found = [*_of_policies(seen), *_of_logs(seen), *_of_nodes(seen), *_of_stops(seen)]
    if seen.late:
        found.append(Trouble(f"{seen.late} requests end within five minutes, undecided", "/console/queue"))
    return sorted(found, key=lambda one: not one.grave)


def _of_policies(seen: Seen) -> list[Trouble]:
    if not seen.active:
        return [Trouble("No policies are active, so every action is refused", "/console/policies", grave=True)]
    return [Trouble(seen.policies[:1].upper() + seen.policies[1:], "/console/policies")] if seen.policies else []


def _of_logs(seen: Seen) -> list[Trouble]:
    found = []
    if seen.broken:
        words = f"The gateway's ledger takes no entries any more, so nothing is allowed: {seen.broken}"
        found.append(Trouble(words, "/console/gaps", grave=True))
    if seen.anchors:
        found.append(Trouble(f"The gateway's log is not held fast outside: {seen.anchors}", "/console/gaps"))
    for log in seen.logs:
        if log.record is not None and log.record.wrong:
            words = f"{log.origin} contradicts what was witnessed of it: {log.record.wrong}"
            found.append(Trouble(words, "/console/gaps", grave=True))
        elif log.record is not None and log.seen_us and log.seen_us < seen.now_us - WITNESS_LATE_US:
            minutes = (seen.now_us - log.seen_us) // 60_000_000
            found.append(Trouble(f"{log.origin} was not heard of for {minutes} min", "/console/gaps"))
        if log.stuck:
            found.append(Trouble(f"{log.origin} cannot be searched: {log.stuck}", "/console/gaps"))
    return found


def _of_nodes(seen: Seen) -> list[Trouble]:
    found = []
    for one in seen.nodes:
        if one.state in ("draining", "quarantined"):
            found.append(Trouble(f"Node {one.name} is {one.state} and gets no calls", NODES))
        elif one.state == "lost":
            found.append(Trouble(f"Node {one.name} is not heard of and gets no calls", NODES))
        elif one.state == "not admitted":
            found.append(Trouble(f"Node {one.name} is not admitted by policy and gets no calls", NODES))
        elif one.ejected_ms:
            found.append(Trouble(f"Node {one.name} failed three times in a row and rests for some seconds", NODES))
        for capability in one.suspended:
            found.append(Trouble(f"{capability} of node {one.name} does not count until it is proved again", NODES))
    if seen.nodes and not any(one.state == "ready" for one in seen.nodes):
        found.append(Trouble("No node can be reached, so nothing can run", grave=True))
    return found


def _of_stops(seen: Seen) -> list[Trouble]:
    stopped = [
        Trouble(f"{'Every agent' if one.target == 'all' else one.target} is stopped by {one.by}: {one.reason}",
                "/console/agents", grave=one.target == "all")
        for one in seen.killed
    ]  # fmt: skip
    tripped = [
        Trouble(f"A circuit breaker is open for {one.target.replace(':', ' ')} ({one.rule}, {one.count})")
        for one in seen.tripped
        if one.until_us > seen.now_us
    ]
    return stopped + tripped
