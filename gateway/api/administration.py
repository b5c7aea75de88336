"""What operators do: agents, nodes, servers, people, kills, revocations, standing. Every act carries who did it."""

from __future__ import annotations

from typing import Any

import msgspec

from edge.http import Incoming, Response, json_response
from gateway.api.access import Access, Services, decode
from gateway.registry import NewAgent
from gateway.state import AgentRecord, Person, ServerRecord
from gateway.stops import thumbprint
from trust.identity.keys import PublicKey, unb64url
from trust.policy.inventory import to_json
from trust.reasons import Reason, Unverifiable, visible


class _NewPerson(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    roles: list[str]
    teams: list[str] = []
    login: str = ""
    namespace: str = ""


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
    """Routes for operators, and for who looks at what there is."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def add_to(self, access: Access) -> None:
        person = access.person
        person("GET", "/v1/agents", self._list_agents, "agents.see")
        person("POST", "/v1/agents", self._register_agent, "agents.change")
        person("GET", "/v1/agents/{name}", self._show_agent, "agents.see", "agent")
        person("POST", "/v1/agents/{name}/rotate", self._rotate, "agents.change", "agent")
        person("GET", "/v1/agents/{name}/standing", self._story, "agents.see", "agent")
        person("POST", "/v1/agents/{name}/vouch", self._vouch, "standing.change", "agent")
        person("POST", "/v1/agents/{name}/clear", self._clear, "standing.change", "mesh")
        person("POST", "/v1/agents/{name}/grant", self._grant, "standing.change", "mesh")
        person("GET", "/v1/standings", self._books, "agents.see")
        person("GET", "/v1/servers", self._list_servers, "servers.see")
        person("POST", "/v1/servers/{server}/accept", self._accept_server, "servers.accept", "server")
        person("POST", "/v1/servers/{server}/retire", self._retire_server, "servers.accept", "server")
        person("GET", "/v1/people", self._list_people, "people.see")
        person("POST", "/v1/people", self._register_person, "people.change")
        person("POST", "/v1/people/{name}/login", self._set_login, "people.change", "mesh")
        person("POST", "/v1/people/{name}/remove", self._remove_person, "people.change", "person")
        person("GET", "/v1/people/{name}/passkeys", self._passkeys, "people.see", "person")
        person("POST", "/v1/people/{name}/passkeys/remove", self._remove_passkey, "people.change", "person")
        person("POST", "/v1/kills", self._kill, "agents.stop")
        person("POST", "/v1/kills/lift", self._unkill, "agents.stop")
        person("POST", "/v1/revocations", self._revoke, "agents.stop")

    # Agents

    def _state(self, record: AgentRecord) -> str:
        stopped = self._s.stops.of(record.agent)
        if stopped is not None:
            return stopped.reason
        if not record.agent.key:
            return "registered"
        return "active" if self._s.stops.revoked("key", thumbprint(record.agent.key)) is None else "key_revoked"

    async def _list_agents(self, _incoming: Incoming, person: Person) -> Response:
        agents = []
        for record in self._s.registry.agents():
            if not self._s.control.sees(person, record.namespace):
                continue
            held, killed = self._s.standings.standing(record.agent.name), self._s.stops.killed(record.agent)
            agents.append(
                {
                    **msgspec.to_builtins(record.agent),
                    "namespace": record.namespace,
                    "state": self._state(record),
                    "killed_by": killed.target if killed is not None else "",
                    "score": held.score,
                    "tier": held.tier,
                }
            )
        return json_response({"agents": agents})

    async def _register_agent(self, incoming: Incoming, person: Person) -> Response:
        new = decode(incoming, NewAgent)
        new = msgspec.structs.replace(new, namespace=self._s.control.home(person, new.namespace))
        if new.attested and person.namespace:
            raise Unverifiable(Reason.NOT_YOURS, "that an agent was attested is the word of operators of the mesh")
        token = await self._s.registry.register_agent(new, person.name)
        await self._s.bundles.ensure(new.namespace, person.name)
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
                "namespace": record.namespace,
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

    async def _books(self, _incoming: Incoming, person: Person) -> Response:
        await self._s.standings.drain()
        control = self._s.control
        seen = [
            one for one in self._s.standings.books() if control.sees(person, control.whose("agent", one.agent) or "")
        ]
        return json_response(
            {"entries": self._s.records.ledger.size, "books": [msgspec.to_builtins(book) for book in seen]}
        )

    async def _vouch(self, incoming: Incoming, person: Person, name: str) -> Response:
        asked = decode(incoming, _Vouch)
        self._s.control.require_of(person, "standing.change", "agent", asked.voucher)
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
        self._require_stops(person, asked.target)
        target, note = await self._s.stops.kill(asked.target, person.name, asked.reason)
        await self._s.desk.cancel_stopped()
        return json_response({"killed": target, "note": note})

    async def _unkill(self, incoming: Incoming, person: Person) -> Response:
        asked = decode(incoming, _Kill)
        self._require_stops(person, asked.target)
        target, note = await self._s.stops.unkill(asked.target, person.name, asked.reason)
        return json_response({"lifted": target, "note": note})

    def _require_stops(self, person: Person, target: str) -> None:
        """Who is of a namespace stops its agents and its teams."""
        if person.namespace and not target.startswith(f"team:{person.namespace}/"):
            self._s.control.require_of(person, "agents.stop", "agent", target)

    def _require_revokes(self, person: Person, what: str, name: str) -> None:
        """Who is of a namespace revokes its agents and their keys."""
        if not person.namespace:
            return
        if what == "key":
            try:
                holder = self._s.registry.holder(name)
            except Unverifiable:
                holder = None
            if holder is None or not self._s.control.may(person, "agents.stop", holder.namespace):
                raise Unverifiable(Reason.NOT_FOUND, f"no agent has the key {visible(name)}")
            return
        if what != "agent":
            raise Unverifiable(Reason.NOT_YOURS, f"a {visible(what)} is revoked by operators of the mesh")
        self._s.control.require_of(person, "agents.stop", "agent", name)

    async def _revoke(self, incoming: Incoming, person: Person) -> Response:
        asked = decode(incoming, _Revoke)
        self._require_revokes(person, asked.what, asked.id)
        note = await self._s.stops.revoke(asked.what, asked.id, person.name, asked.reason)
        if not note and asked.what == "session" and not self._s.callers.sessions.knows(asked.id):
            note = "no session of this name is open; is it spelled right?"
        await self._s.desk.cancel_stopped()
        return json_response({"revoked": f"{asked.what} {asked.id}", "note": note}, 201)

    # Nodes, servers, people

    async def _list_servers(self, _incoming: Incoming, person: Person) -> Response:
        seen = [one for one in self._s.servers.all() if self._s.control.may(person, "servers.see", one.namespace)]
        return json_response({"servers": [self._shown_server(record, person) for record in seen]})

    def _shown_server(self, record: ServerRecord, person: Person) -> dict[str, Any]:
        """What nodes offer of it beside that, for those whose nodes they are."""
        servers = self._s.servers
        offers = servers.offers(record) if self._s.control.sees(person, record.namespace) else []
        told = to_json(servers.admitted(record))
        return {**told, "namespace": record.namespace, "admitted": record.admitted, "offers": offers}

    async def _accept_server(self, incoming: Incoming, person: Person, server: str) -> Response:
        accepted = await self._s.servers.accept(server, decode(incoming, _Accept).offer, person.name)
        await self._s.bundles.refresh(person.name)
        return json_response({"server": server, "accepted": list(accepted)})

    async def _retire_server(self, _incoming: Incoming, person: Person, server: str) -> Response:
        await self._s.servers.retire(server, person.name)
        await self._s.bundles.refresh(person.name)
        return json_response({"server": server, "retired": True})

    async def _list_people(self, _incoming: Incoming, person: Person) -> Response:
        shown = [
            {
                "name": one.name,
                "roles": list(one.roles),
                "teams": list(one.teams),
                "login": one.login,
                "namespace": one.namespace,
            }
            for one in self._s.records.store.all(Person)
            if self._s.control.sees(person, one.namespace)
        ]
        return json_response({"people": shown})

    async def _register_person(self, incoming: Incoming, person: Person) -> Response:
        new = decode(incoming, _NewPerson)
        namespace = self._s.control.home(person, new.namespace)
        if new.login and person.namespace:
            raise Unverifiable(Reason.NOT_YOURS, "how somebody signs in elsewhere is the word of operators of the mesh")
        token = await self._s.people.register(new.name, new.roles, person.name, new.teams, new.login, namespace)
        return json_response({"name": new.name, "token": token}, 201)

    async def _remove_person(self, _incoming: Incoming, person: Person, name: str) -> Response:
        await self._s.people.remove(name, person.name)
        return json_response({"name": name, "removed": True})

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
