"""Agents: registered by people; they and nodes enrol with one-time tokens and have keys that can be replaced."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from edge.clock import SystemClock, new_id
from gateway.people import EVERYBODY as EVERYBODY_THERE
from gateway.people import new_token, require_namespace, within
from gateway.records import Records
from gateway.state import AgentKey, AgentRecord, Draining, Enrolling, NodeRecord
from gateway.stops import EVERYBODY, Stops, thumbprint
from trust.canonical import sha256_hex
from trust.identity import did, wit
from trust.identity.keys import PublicKey, SecretKey, b64url, unb64url
from trust.identity.wit import Workload, WorkloadKind
from trust.ledger import entries
from trust.reasons import Reason, Unverifiable, visible

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_PERSON: Final = re.compile(r"[A-Za-z0-9_.@-]{1,128}")
MAX_AGENT_KEYS: Final = 4
"""The current one and those that drain. Whoever rotates more often waits for one of them to end."""


class NewAgent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    owner: str
    purpose: str = ""
    environment: str = "development"
    teams: tuple[str, ...] = ()
    attested: bool = False
    via: str = ""
    namespace: str = ""


class Registry:
    """Commands that look, record and let the fold apply."""

    def __init__(
        self,
        records: Records,
        stops: Stops,
        key: SecretKey,
        trust_domain: str,
        clock: SystemClock,
    ) -> None:
        self._records = records
        self._stops = stops
        self._store = records.store
        self._key = key
        self._trust_domain = trust_domain
        self._clock = clock
        self._holders: tuple[int, dict[str, str]] = (-1, {})

    # Registration

    async def register_agent(self, new: NewAgent, by: str) -> str:
        """The one-time enrolment token; shown once."""
        require_name(new.name)
        if _PERSON.fullmatch(new.owner) is None:
            expected = "an agent acts for somebody: name its owner, 1 to 128 of letters, digits and _.@-"
            raise Unverifiable(Reason.MALFORMED_REQUEST, f'owner "{visible(new.owner)}": {expected}')
        token = new_token()
        async with self._records.deciding:
            if self._store.get(AgentRecord, new.name) is not None:
                raise taken("agent", new.name)
            if new.via and self.known_agent(new.via).namespace != new.namespace:
                raise Unverifiable(Reason.NOT_FOUND, f'no agent "{visible(new.via)}" is registered')
            self._stops.require_believed([("principal", new.owner)])
            await self._records.change(
                entries.Agent(
                    "registered",
                    new.name,
                    by,
                    did=did.of(self._trust_domain, "agent", new.name),
                    owner=new.owner,
                    purpose=new.purpose,
                    environment=new.environment,
                    teams=_teams(new),
                    attested=new.attested,
                    via=new.via,
                    namespace=new.namespace,
                    token_sha256=sha256_hex(token.encode()),
                )
            )
        return token

    # Keys

    async def enroll(self, token: str, key: PublicKey) -> Workload:
        """Bind *key* to whomever *token* was made for. A token works once."""
        digest = sha256_hex(token.encode())
        self._stops.require_believed([("key", key.thumbprint)])
        async with self._records.deciding:
            found = self._store.get(Enrolling, digest)
            if found is not None and found.kind == "agent":
                self._stops.require_believed([("agent", found.name)])
                await self._records.change(entries.Agent("enrolled", found.name, found.name, key=b64url(key.raw)))
            elif found is not None:
                await self._records.change(entries.Node("enrolled", found.name, found.name, key=b64url(key.raw)))
            if found is not None:
                return self._workload(found.kind, found.name)
        raise Unverifiable(Reason.UNAUTHENTICATED, "this enrolment token is not known or was used before")

    async def ask_for_rotation(self, name: str, by: str) -> None:
        """The agent's sidecar hears of it and replaces its key."""
        async with self._records.deciding:
            record = self.known_agent(name)
            self._stops.require_believed([("agent", name), ("principal", record.agent.owner)])
            if not record.agent.key:
                raise Unverifiable(Reason.MALFORMED_REQUEST, f"{name} is not enrolled, so it has no key to replace")
            if self._stops.revoked("key", thumbprint(record.agent.key)) is not None:
                todo = f"let it enrol with another: licet agents rotate {name} --lost"
                raise Unverifiable(Reason.REVOKED, f"the key of {name} is revoked and cannot ask for the next; {todo}")
            await self._records.change(entries.Agent("rotate", name, by))

    async def new_token(self, name: str, by: str) -> str:
        """Another one-time token for an agent that lost its key; the old key counts until the new one is bound."""
        token = new_token()
        async with self._records.deciding:
            owner = self.known_agent(name).agent.owner
            self._stops.require_believed([("agent", name), ("principal", owner)])
            await self._records.change(entries.Agent("token", name, by, token_sha256=sha256_hex(token.encode())))
        return token

    async def rotate(self, workload: Workload, key: PublicKey, drains_until: int) -> str:
        """A WIT for *key*, which is the agent's now; the one before drains until *drains_until* (Unix seconds)."""
        self._stops.require_believed([("key", key.thumbprint)])
        async with self._records.deciding:
            name = workload.name
            record = self.agent(name)
            if record.agent.key == b64url(key.raw):
                return self.issue_wit("agent", name)  # the answer to the first request was lost
            self._require_newest(workload)
            if any(known.key == b64url(key.raw) for known in record.keys):
                raise Unverifiable(Reason.REPLAYED, f"{name} has this key already")
            if len(record.keys) >= MAX_AGENT_KEYS:
                first = min(known.until_us for known in record.keys if known.until_us) / 1e6 - self._clock.now()
                detail = f"{name} has {len(record.keys)} keys; the first of them ends in {first:.0f} s"
                raise Unverifiable(Reason.OVERLOADED, detail, int(first) + 1)
            until_us = drains_until * 1_000_000
            await self._records.change(entries.Agent("rotated", name, name, until_us, key=b64url(key.raw)))
        return self.issue_wit("agent", name)

    def renew_wit(self, workload: Workload) -> str:
        """Another token for the workload's current key; one that drains gets none."""
        self._require_newest(workload)
        return self.issue_wit(workload.kind, workload.name)

    def _require_newest(self, workload: Workload) -> None:
        key = self.node(workload.name).key if workload.kind == "node" else self.agent(workload.name).agent.key
        if key != b64url(workload.key.raw):
            raise Unverifiable(Reason.REVOKED, f"{workload.name} has a newer key; sign with that one")

    async def end_drained_keys(self) -> None:
        """Called every second: keys that drained to their end are removed."""
        now = self._clock.wall_us()
        due = [
            (one.agent, key.key)
            for one in self._records.cached(Draining)
            for key in self.agent(one.agent).keys
            if key.until_us and key.until_us <= now
        ]
        for name, key in due:
            async with self._records.deciding:
                if any(known.key == key for known in self.agent(name).keys):
                    await self._records.change(entries.Agent("key_ended", name, "gateway", key=key))

    def _workload(self, kind: WorkloadKind, name: str) -> Workload:
        expires = int(self._clock.now()) + wit.MAX_LIFE_S
        if kind == "agent":
            record = self.agent(name)
            name_of, key, epoch = record.agent.did, record.agent.key, record.epoch
        else:
            node = self.node(name)
            name_of, key, epoch = did.of(self._trust_domain, "node", name), node.key, 1
        return Workload(self._trust_domain, kind, name, name_of, PublicKey(unb64url(key)), epoch, expires)

    def issue_wit(self, kind: WorkloadKind, name: str) -> str:
        """A fresh token for an enrolled workload."""
        return wit.issue(self._workload(kind, name), now=int(self._clock.now()), token_id=new_id("wit"), key=self._key)

    def domain_workload(self, token: str, now: float) -> Workload:
        """Who a WIT of this trust domain speaks for."""
        return wit.verify(token, now=now, trust_domain=self._trust_domain, issuer=self._key.public)

    def require_current(self, workload: Workload) -> None:
        """Refuse a workload whose key was replaced or revoked, or whose token is of an epoch that is over."""
        self.require_not_cut_off(workload)
        key = b64url(workload.key.raw)
        node = workload.kind == "node"
        keys = (AgentKey(self.node(workload.name).key),) if node else self.agent(workload.name).keys
        now = self._clock.wall_us()
        if not any(known.key == key and (not known.until_us or now < known.until_us) for known in keys):
            raise Unverifiable(Reason.REVOKED, f"{workload.kind} {workload.name} has another key now")

    def require_not_cut_off(self, workload: Workload) -> None:
        """Refuse a key that was revoked, or of which nothing counts any more because its agent enrolled again; what a
        key that is replaced in order has begun may go on."""
        epoch = 1 if workload.kind == "node" else self.agent(workload.name).epoch
        if workload.revision < epoch:
            raise Unverifiable(Reason.REVOKED, f"{workload.name} is in epoch {epoch}; this is of {workload.revision}")
        self._stops.require_believed([("key", workload.key.thumbprint)])

    # Questions

    def agent(self, name: str) -> AgentRecord:
        record = self._store.get(AgentRecord, name)
        if record is None:
            raise Unverifiable(Reason.UNAUTHENTICATED, f'no agent "{visible(name)}" is registered')
        return record

    def known_agent(self, name: str) -> AgentRecord:
        """For whoever asks about an agent, and is not it."""
        if self._store.get(AgentRecord, name) is None:
            raise Unverifiable(Reason.NOT_FOUND, f'no agent "{visible(name)}" is registered')
        return self.agent(name)

    def require_speaks_for(self, workload: Workload, agent: str) -> AgentRecord:
        """*agent*, if *workload* is it, or the sidecar through which an operator said that it is reached."""
        record = self._store.get(AgentRecord, agent)
        if workload.kind == "agent" and workload.name == agent and record is not None:
            if record.via:
                raise Unverifiable(Reason.NOT_YOURS, f"{agent} acts through the sidecar of {record.via}, not by itself")
            return record
        if workload.kind != "agent" or record is None or record.via != workload.name:
            raise Unverifiable(Reason.NOT_YOURS, f"{workload.name} does not speak for {visible(agent)}")
        return record

    def agents(self) -> list[AgentRecord]:
        return list(self._store.all(AgentRecord))

    def node(self, name: str) -> NodeRecord:
        record = self._store.get(NodeRecord, name)
        if record is None:
            raise Unverifiable(Reason.UNAUTHENTICATED, f'no node "{visible(name)}" is registered')
        return record

    def holder(self, key_thumbprint: str) -> AgentRecord:
        """The agent whose key (current or draining) has this thumbprint."""
        version = self._store.version(AgentRecord)
        if self._holders[0] != version:
            found = {thumbprint(key.key): r.agent.name for r in self._store.all(AgentRecord) for key in r.keys}
            self._holders = (version, found)
        name = self._holders[1].get(key_thumbprint)
        if name is None:
            raise Unverifiable(Reason.REVOKED, f"no registered agent has the key {visible(key_thumbprint)} (any more)")
        return self.agent(name)

    def own_document(self) -> dict[str, Any]:
        """The DID document of the trust domain."""
        return did.document(did.domain(self._trust_domain), [self._key.public], delegates=True)

    def document(self, kind: WorkloadKind, name: str) -> dict[str, Any]:
        """The DID document of an agent or node."""
        if kind == "node":
            record = self._store.get(NodeRecord, name)
            if record is None:
                raise Unverifiable(Reason.NOT_FOUND, f'no node "{visible(name)}" is registered')
            keys = [record.key]
        else:
            now = self._clock.wall_us()
            keys = [key.key for key in self.known_agent(name).keys if not key.until_us or now < key.until_us]
        believed = [PublicKey(unb64url(key)) for key in keys if key]
        believed = [key for key in believed if self._stops.revoked("key", key.thumbprint) is None]
        if kind == "agent" and self._stops.revoked("agent", name) is not None:
            believed = []
        return did.document(did.of(self._trust_domain, kind, name), believed, delegates=kind == "agent")


def _teams(new: NewAgent) -> list[str]:
    """All agents of a namespace are in a team, by which a policy of the mesh can name them."""
    if not require_namespace(new.namespace):
        return list(new.teams)
    return within(new.namespace, sorted({*new.teams, EVERYBODY_THERE}))


def require_name(name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f'"{visible(name)}": a name has 1 to 63 of a-z, 0-9 and "-"')
    if name == EVERYBODY:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f'"{EVERYBODY}" means everybody and cannot be a name')


def taken(what: str, name: str) -> Unverifiable:
    return Unverifiable(Reason.MALFORMED_REQUEST, f'the {what} "{name}" is already registered')
