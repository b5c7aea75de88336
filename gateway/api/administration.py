"""What operators do: agents, nodes, servers, people, kills, revocations, standing. Every act carries who did it."""

from __future__ import annotations

from typing import Any

import msgspec

from edge.http import Incoming, Response, json_response
from gateway.api.access import Access, Services, decode
from gateway.people import OPERATOR
from gateway.registry import NewAgent
from gateway.state import AgentRecord, Person, ServerRecord
from gateway.stops import thumbprint
from trust.identity.keys import PublicKey, unb64url
from trust.policy.inventory import to_json


class _NewPerson(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    roles: list[str]
    teams: list[str] = []
    login: str = ""


class _Kill(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    target: str
    reason: str


class _Revoke(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    what: str
    id: str
    reason: str


class _Rotate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``lost``: the agent cannot sign with its key any more (or somebody else can), so it enrols again."""

    lost: bool = False


class _Vouch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``voucher`` stakes ``milli`` thousandths of its earned evidence."""

    voucher: str
    milli: int
    reason: str


class _Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    allowed: bool
    reason: str


class _Clear(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: str


class _Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    login: str


class _Lost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    credential: str


class _Accept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    offer: str


class Administration:
    """Routes for people with the role of an operator."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def add_to(self, access: Access) -> None:
        def add(method: str, path: str, handler: Any) -> None:
            access.person(method, path, handler, OPERATOR)

        add("GET", "/v1/agents", self._list_agents)
        add("POST", "/v1/agents", self._register_agent)
        add("GET", "/v1/agents/{name}", self._show_agent)
        add("POST", "/v1/agents/{name}/rotate", self._rotate)
        add("GET", "/v1/agents/{name}/standing", self._story)
        add("POST", "/v1/agents/{name}/vouch", self._vouch)
        add("POST", "/v1/agents/{name}/clear", self._clear)
        add("POST", "/v1/agents/{name}/grant", self._grant)
        add("GET", "/v1/standings", self._books)
        add("GET", "/v1/servers", self._list_servers)
        add("POST", "/v1/servers/{server}/accept", self._accept_server)
        add("GET", "/v1/people", self._list_people)
        add("POST", "/v1/people", self._register_person)
        add("POST", "/v1/people/{name}/login", self._set_login)
        add("GET", "/v1/people/{name}/passkeys", self._passkeys)
        add("POST", "/v1/people/{name}/passkeys/remove", self._remove_passkey)
        add("POST", "/v1/kills", self._kill)
        add("POST", "/v1/kills/lift", self._unkill)
        add("POST", "/v1/revocations", self._revoke)

    # Agents

    def _state(self, record: AgentRecord) -> str:
        stopped = self._s.stops.of(record.agent)
        if stopped is not None:
            return stopped.reason
        if not record.agent.key:
            return "registered"
        return "active" if self._s.stops.revoked("key", thumbprint(record.agent.key)) is None else "key_revoked"

    async def _list_agents(self, _incoming: Incoming, _person: Person) -> Response:
        agents = []
        for record in self._s.registry.agents():
            held, killed = self._s.standings.standing(record.agent.name), self._s.stops.killed(record.agent)
            agents.append(
                {
                    **msgspec.to_builtins(record.agent),
                    "state": self._state(record),
                    "killed_by": killed.target if killed is not None else "",
                    "score": held.score,
                    "tier": held.tier,
                }
            )
        return json_response({"agents": agents})

    async def _register_agent(self, incoming: Incoming, person: Person) -> Response:
        new = decode(incoming, NewAgent)
        token = await self._s.registry.register_agent(new, person.name)
        return json_response({"name": new.name, "enrolment_token": token}, 201)

    async def _show_agent(self, _incoming: Incoming, _person: Person, name: str) -> Response:
        record, held = self._s.registry.known_agent(name), self._s.standings.standing(name)
        stopped = self._s.stops.of(record.agent)
        keys = [
            {
                "thumbprint": thumbprint(key.key),
                "did": PublicKey(unb64url(key.key)).did,
                "until": key.until_us // 1_000_000,
                "revoked": self._s.stops.revoked("key", thumbprint(key.key)) is not None,
            }
            for key in record.keys
        ]
        return json_response(
            {
                **msgspec.to_builtins(record.agent),
                "state": self._state(record),
                "because": stopped.detail if stopped is not None else "",
                "epoch": record.epoch,
                "keys": keys,
                "rotating": bool(record.rotate),
                "roots": self._s.delegations.roots_of(name),
                "score": held.score,
                "tier": held.tier,
                "ring": held.ring,
            }
        )

    async def _rotate(self, incoming: Incoming, person: Person, name: str) -> Response:
        if decode(incoming, _Rotate).lost:
            token = await self._s.registry.new_token(name, person.name)
            return json_response({"name": name, "enrolment_token": token}, 201)
        await self._s.registry.ask_for_rotation(name, person.name)
        return json_response({"name": name, "rotating": True}, 202)

    # Standing

    async def _story(self, _incoming: Incoming, _person: Person, name: str) -> Response:
        await self._s.standings.drain()
        return json_response(self._s.standings.story(name))

    async def _books(self, _incoming: Incoming, _person: Person) -> Response:
        await self._s.standings.drain()
        return json_response(
            {
                "entries": self._s.records.ledger.size,
                "books": [msgspec.to_builtins(book) for book in self._s.standings.books()],
            }
        )

    async def _vouch(self, incoming: Incoming, person: Person, name: str) -> Response:
        asked = decode(incoming, _Vouch)
        await self._s.standings.vouch(asked.voucher, name, asked.milli, person.name, asked.reason)
        return json_response(self._s.standings.story(name))

    async def _clear(self, incoming: Incoming, person: Person, name: str) -> Response:
        await self._s.standings.clear(name, person.name, decode(incoming, _Clear).reason)
        return json_response(self._s.standings.story(name))

    async def _grant(self, incoming: Incoming, person: Person, name: str) -> Response:
        asked = decode(incoming, _Grant)
        await self._s.standings.grant(name, asked.allowed, person.name, asked.reason)
        return json_response(self._s.standings.story(name))

    # Kills and revocations

    async def _kill(self, incoming: Incoming, person: Person) -> Response:
        asked = decode(incoming, _Kill)
        target, note = await self._s.stops.kill(asked.target, person.name, asked.reason)
        await self._s.desk.cancel_stopped()
        return json_response({"killed": target, "note": note})

    async def _unkill(self, incoming: Incoming, person: Person) -> Response:
        asked = decode(incoming, _Kill)
        target, note = await self._s.stops.unkill(asked.target, person.name, asked.reason)
        return json_response({"lifted": target, "note": note})

    async def _revoke(self, incoming: Incoming, person: Person) -> Response:
        asked = decode(incoming, _Revoke)
        note = await self._s.stops.revoke(asked.what, asked.id, person.name, asked.reason)
        if not note and asked.what == "session" and not self._s.callers.sessions.knows(asked.id):
            note = "no session of this name is open; is it spelled right?"
        await self._s.desk.cancel_stopped()
        return json_response({"revoked": f"{asked.what} {asked.id}", "note": note}, 201)

    # Nodes, servers, people

    async def _list_servers(self, _incoming: Incoming, _person: Person) -> Response:
        found = self._s.servers
        return json_response({"servers": [self._shown_server(record) for record in found.all()]})

    def _shown_server(self, record: ServerRecord) -> dict[str, Any]:
        servers = self._s.servers
        return {**to_json(servers.admitted(record)), "admitted": record.admitted, "offers": servers.offers(record)}

    async def _accept_server(self, incoming: Incoming, person: Person, server: str) -> Response:
        accepted = await self._s.servers.accept(server, decode(incoming, _Accept).offer, person.name)
        await self._s.bundles.refresh(person.name)
        return json_response({"server": server, "accepted": list(accepted)})

    async def _list_people(self, _incoming: Incoming, _person: Person) -> Response:
        people = self._s.records.store.all(Person)
        return json_response(
            {
                "people": [
                    {"name": p.name, "roles": list(p.roles), "teams": list(p.teams), "login": p.login} for p in people
                ]
            }
        )

    async def _register_person(self, incoming: Incoming, person: Person) -> Response:
        new = decode(incoming, _NewPerson)
        token = await self._s.people.register(new.name, new.roles, person.name, new.teams, new.login)
        return json_response({"name": new.name, "token": token}, 201)

    async def _set_login(self, incoming: Incoming, person: Person, name: str) -> Response:
        login = decode(incoming, _Login).login
        await self._s.people.set_login(name, login, person.name)
        return json_response({"name": name, "login": login})

    async def _passkeys(self, _incoming: Incoming, _person: Person, name: str) -> Response:
        return json_response({"passkeys": [msgspec.to_builtins(one) for one in self._s.passkeys.of(name)]})

    async def _remove_passkey(self, incoming: Incoming, person: Person, name: str) -> Response:
        credential = decode(incoming, _Lost).credential
        await self._s.passkeys.remove(name, credential, person, None)
        return json_response({"name": name, "removed": credential})
