"""Facts: everything beside the action itself that a decision may read, gathered before it is made."""

from __future__ import annotations

import datetime
from functools import cached_property, lru_cache
from typing import Any

import msgspec

from trust.canonical import JsonObject
from trust.policy.cedar import Uid
from trust.standing.score import Standing


def cedar_time(seconds: int) -> JsonObject:
    """A moment (Unix seconds) as a Cedar ``datetime``."""
    return {"__extn": {"fn": "datetime", "arg": _iso(seconds)}}


@lru_cache(maxsize=16)
def _iso(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Agent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An agent as the gateway registered it. ``key`` is the raw public key, base64url; empty before enrolment."""

    name: str
    did: str
    owner: str
    purpose: str
    environment: str
    teams: tuple[str, ...] = ()
    attested: bool = False
    key: str = ""

    def entities(self) -> list[dict[str, Any]]:
        """The agent and what it refers to, as Cedar JSON."""
        owner = {"type": "Human", "id": self.owner}
        return [
            {
                "uid": {"type": "Agent", "id": self.name},
                "attrs": {
                    "owner": {"__entity": owner},
                    "purpose": self.purpose,
                    "environment": self.environment,
                    "attested": self.attested,
                },
                "parents": [{"type": "Team", "id": team} for team in self.teams],
            },
        ]

    @property
    def uid(self) -> Uid:
        return Uid("Agent", self.name)


class Run(msgspec.Struct, frozen=True):
    """What a run has done so far. ``labels`` include those that stay with the agent."""

    id: str
    calls: int
    denied: int
    labels: tuple[str, ...]
    spent_cents: int
    seconds: int


class Rate(msgspec.Struct, frozen=True):
    """Calls in the last minute, hour and day, of the agent and of the agent to this tool, in flight included;
    and how many are in flight now."""

    minute: int
    hour: int
    day: int
    tool_minute: int
    tool_hour: int
    tool_day: int
    in_flight: int = 0


class Mandate(msgspec.Struct, frozen=True):
    """For whom an agent acts, and with what delegated authority: ``tokens`` are the hashes of a chain, root first, and
    ``scopes`` the tools that its last token names; both are empty when nothing was delegated."""

    principal: str
    tokens: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()

    @property
    def context(self) -> JsonObject:
        """``context.authority``."""
        return {
            "principal": {"__entity": {"type": "Human", "id": self.principal}},
            "depth": len(self.tokens),
            "scopes": list(self.scopes),
        }


def trust_context(standing: Standing) -> JsonObject:
    """``context.trust``."""
    return {"score": standing.score, "tier": standing.tier, "ring": standing.ring}


class Facts(msgspec.Struct, frozen=True, dict=True):
    """What a decision may read beside the action."""

    agent: Agent
    standing: Standing
    run: Run
    rate: Rate
    mandate: Mandate
    now_s: int
    risk: int

    @cached_property
    def context(self) -> JsonObject:
        """The Cedar context but for ``args`` and ``approved``; what a ledger entry keeps as its facts."""
        run, rate = self.run, self.rate
        return {
            "trust": trust_context(self.standing),
            "run": {
                "id": run.id,
                "calls": run.calls,
                "denied": run.denied,
                "labels": list(run.labels),
                "spent_cents": run.spent_cents,
                "seconds": run.seconds,
            },
            "rate": {
                "minute": rate.minute,
                "hour": rate.hour,
                "day": rate.day,
                "tool_minute": rate.tool_minute,
                "tool_hour": rate.tool_hour,
                "tool_day": rate.tool_day,
                "in_flight": rate.in_flight,
            },
            "authority": self.mandate.context,
            "now": cedar_time(self.now_s),
            "risk": self.risk,
        }
