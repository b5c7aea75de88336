"""The annotations of a policy that mean something to Licet.

``@id`` (required, unique), ``@reason`` (a sentence for the agent), ``@approval`` (who must decide),
``@mode("shadow")`` (evaluated and recorded, not enforced), ``@severity`` (what a refusal says of whoever asked),
``@owner``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

KNOWN: Final = frozenset({"id", "reason", "approval", "mode", "severity", "owner"})
DEFAULT_TTL_S: Final = 900
MAX_TTL_S: Final = 7 * 86_400
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_GROUP: Final = re.compile(r"(team:([a-z][a-z0-9_-]{0,62}/)?)?[a-z][a-z0-9_-]{0,62}")


class BadAnnotation(ValueError):
    """An annotation that cannot be obeyed; the bundle is refused."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Who must decide, and how long they have.

    ``quorum`` maps each group (a role, or ``team:NAME``) to how many of its people must approve; ``deny``: how many
    denials end it; ``step_up``: each vote is a signature. ``escalate`` maps groups to after how many seconds they may
    decide in place of the others.
    """

    quorum: Mapping[str, int]
    ttl_s: int = DEFAULT_TTL_S
    step_up: bool = False
    deny: int = 1
    escalate: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        return {
            "quorum": dict(sorted(self.quorum.items())),
            "ttl_s": self.ttl_s,
            "step_up": self.step_up,
            "deny": self.deny,
            **({"escalate": dict(sorted(self.escalate.items()))} if self.escalate else {}),
        }


def parse_terms(text: str) -> Terms:
    """``of=finance quorum=2 ttl=15m step_up deny=1 escalate=5m,team:leads`` as :class:`Terms`, or
    :class:`BadAnnotation`."""
    words: dict[str, str] = {}
    for word in text.split():
        key, given, value = word.partition("=")
        if key in words:
            raise BadAnnotation(f'"{key}" stands twice')
        if key not in {"of", "quorum", "ttl", "step_up", "deny", "escalate"}:
            raise BadAnnotation(f'"{key}" is not known; expected of=, quorum=, ttl=, deny=, escalate=, step_up')
        if bool(given) == (key == "step_up"):
            raise BadAnnotation(f'"{key}" {"takes no" if given else "needs a"} value')
        words[key] = value
    group = words.get("of", "")
    if not _GROUP.fullmatch(group):
        raise BadAnnotation("it names nobody who could approve: expected of=<role> or of=team:<name>")
    ttl_s = _duration("ttl", words["ttl"]) if "ttl" in words else DEFAULT_TTL_S
    return Terms(
        quorum={group: _count(words.get("quorum", "1"), "quorum")},
        ttl_s=ttl_s,
        step_up="step_up" in words,
        deny=_count(words.get("deny", "1"), "deny"),
        escalate=_escalation(words["escalate"], ttl_s) if "escalate" in words else {},
    )


def _escalation(text: str, ttl_s: int) -> dict[str, int]:
    after, _, group = text.partition(",")
    if not _GROUP.fullmatch(group):
        raise BadAnnotation(f"escalate={text}: expected a time and a group, such as 5m,team:leads")
    seconds = _duration("escalate", after)
    if seconds >= ttl_s:
        raise BadAnnotation(f"escalate={text}: nobody would be left any time; it ends after {ttl_s} s")
    return {group: seconds}


def _count(text: str, what: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]?", text):
        raise BadAnnotation(f"{what}={text}: expected a number from 1 to 99")
    return int(text)


def _duration(what: str, text: str) -> int:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text)
    if match is None:
        raise BadAnnotation(f"{what}={text}: expected a number and s, m, h or d, such as 15m")
    seconds = int(match[1]) * _UNITS[match[2]]
    if seconds > MAX_TTL_S:
        raise BadAnnotation(f"{what}={text}: an approval waits at most 7 days")
    return seconds


def strictest(all_terms: Iterable[Terms]) -> Terms:
    """Everybody whom any of them asks for, within the shortest time of all. Somebody else may decide in their place
    only if all of them say so, and not before the last of them does."""
    terms = list(all_terms)
    if not terms:
        raise ValueError("no terms: nobody could approve")
    quorum: dict[str, int] = {}
    for one in terms:
        for role, count in one.quorum.items():
            quorum[role] = max(count, quorum.get(role, 0))
    stand_ins = set.intersection(*(set(one.escalate) for one in terms))
    return Terms(
        quorum=quorum,
        ttl_s=min(one.ttl_s for one in terms),
        step_up=any(one.step_up for one in terms),
        deny=min(one.deny for one in terms),
        escalate={group: max(one.escalate[group] for one in terms) for group in stand_ins},
    )
