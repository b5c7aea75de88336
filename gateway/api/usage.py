"""Usage and trails for those who read the record: sums, events, how they agree with it, and the hops of a run."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from edge.http import Incoming, Response, json_response
from gateway.api.access import Access, Services
from gateway.state import Person
from gateway.trails import trail
from gateway.usage import Usage
from trust.ledger import metering
from trust.reasons import Reason, Unverifiable, visible

DAY_US: Final = 86_400_000_000
_LATER_US: Final = 253_402_300_799_000_000


class UsageApi:
    """Routes of one gateway."""

    def __init__(self, services: Services) -> None:
        self._s = services
        self._usage = Usage(services.ledgers.index, services.witness.name)

    def add_to(self, access: Access) -> None:
        access.person("GET", "/v1/usage", self._sums, "usage.see")
        access.person("GET", "/v1/usage/events", self._events, "ledger.read", "mesh")
        access.person("GET", "/v1/usage/reconciliation", self._reconcile, "ledger.read", "mesh")
        access.person("GET", "/v1/runs/{run}/trail", self._trail, "ledger.read")

    async def _sums(self, incoming: Incoming, person: Person) -> Response:
        asked = _asked(incoming)
        by = tuple(filter(None, asked.get("by", "agent").split(",")))
        teams = {one.agent.name: ",".join(one.agent.teams) for one in self._s.registry.agents()}
        own = self._s.control.agents_of(person.namespace) if person.namespace else None
        found = await self._usage.sums(by, *self._span(asked), teams, own)
        return json_response({"by": list(by), "sums": [msgspec.to_builtins(one) for one in found]})

    async def _events(self, incoming: Incoming, _person: Person) -> Response:
        """CloudEvents, the oldest first; ``next`` goes on as ``after``."""
        asked = _asked(incoming)
        events, following = await self._usage.events(*self._span(asked), asked.get("after", ""))
        return json_response({"events": [metering.cloud_event(one) for one in events], "next": following})

    async def _reconcile(self, incoming: Incoming, _person: Person) -> Response:
        found = await self._usage.reconcile(*self._span(_asked(incoming)))
        return json_response({**msgspec.to_builtins(found), "agrees": found.agrees})

    async def _trail(self, _incoming: Incoming, person: Person, run: str) -> Response:
        return json_response(msgspec.to_builtins(await trail(self._s.ledgers, run, person, self._s.trust_domain)))

    def _span(self, asked: dict[str, str]) -> tuple[int, int]:
        """From and until (Unix microseconds); by default the last day."""
        since = _number(asked, "since_us", max(0, self._s.clock.wall_us() - DAY_US))
        return since, _number(asked, "until_us", _LATER_US)


def _asked(incoming: Incoming) -> dict[str, str]:
    known = {"by", "since_us", "until_us", "after"}
    asked: dict[str, Any] = {name: values[0] for name, values in parse_qs(incoming.query).items()}
    if set(asked) - known:
        raise Unverifiable(
            Reason.MALFORMED_REQUEST,
            f"found {visible(', '.join(sorted(set(asked) - known)))}; expected some of {', '.join(sorted(known))}",
        )
    return asked


def _number(asked: dict[str, str], name: str, otherwise: int) -> int:
    value = asked.get(name, str(otherwise))
    if not value.isdecimal() or len(value) > 18:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f"{name}: expected Unix microseconds, found {visible(value)}")
    return int(value)
