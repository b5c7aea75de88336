"""Who may do what with Licet itself: roles of people in namespaces, decided by Cedar policies of our own.

``control.cedar`` says which role may do what; here people are told to the engine as it knows them. Nothing else decides
about people, but for who may vote on one request, which :mod:`gateway.approvals.rules` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

from gateway.people import AUDITOR, AUTHOR, OPERATOR, VIEWER
from gateway.records import Records
from gateway.state import AgentRecord, ApprovalRecord, Deputy, NodeRecord, Person, ServerRecord
from trust.policy import cedar
from trust.policy.cedar import Uid
from trust.policy.lint import read_policies
from trust.reasons import Reason, Unverifiable, visible

Act = Literal[
    "approvals.see", "own.see", "own.change",
    "agents.see", "nodes.see", "servers.see", "policies.see", "usage.see", "people.see",
    "approvals.decide", "deputies.name",
    "ledger.read", "ledger.export", "ledger.sql", "subjects.find",
    "policies.activate",
    "agents.change", "agents.stop", "standing.change", "nodes.change", "servers.accept", "people.change",
    "ledger.prune", "ledger.renew", "subjects.erase",
]  # fmt: skip
MESH: Final = ""
"""The namespace in which all others lie."""
APPROVER: Final = "approver"
"""Whoever has a role or a team that an ``@approval`` could name."""
ROLES: Final = frozenset({VIEWER, AUTHOR, OPERATOR, AUDITOR})
_HERE: Final = Path(__file__).resolve().parent
_SCHEMA: Final = (_HERE / "control.cedarschema").read_text("utf-8")
_READ: Final = read_policies({"control.cedar": (_HERE / "control.cedar").read_text("utf-8")}, _SCHEMA)
if _READ.errors or _READ.schema is None:
    raise SystemExit("\n".join(map(str, _READ.errors)))
_POLICIES: Final = cedar.policy_set(_READ.nodes)
_CEDAR: Final = cedar.parse_schema(_SCHEMA)


Kind = Literal["agent", "node", "server", "person", "approval"]
Of = Kind | Literal["own", "mesh"]
"""To what something is done: a thing of this kind, which the path names; something in the own namespace (which, the one
who does it looks to); or the mesh as a whole."""
ANYBODY: Final = "anybody"
"""The policy that lets everybody do something."""


class Control:
    """Asks the policies, and knows whose everything is. What a person may not see is not there for them."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._store = records.store

    def roles_of(self, person: Person) -> frozenset[str]:
        """The roles that ``control.cedar`` knows: who stands in for an approver is one."""
        own = ROLES & frozenset(person.roles)
        decides = bool(person.teams) or bool(frozenset(person.roles) - ROLES)
        if decides or any(one.deputy == person.name for one in self._records.cached(Deputy)):
            return own | {APPROVER}
        return own

    def may(self, person: Person, act: Act, namespace: str) -> str:
        """The role in which *person* may do this in *namespace*; empty: in none."""
        return _may(self.roles_of(person), person.namespace, act, namespace)

    def require(self, person: Person, act: Act, namespace: str) -> str:
        """The role in which *person* may do this, or :class:`Unverifiable`."""
        role = self.may(person, act, namespace)
        if role:
            return role
        able = [one for one in sorted({*ROLES, APPROVER}) if _may(frozenset({one}), person.namespace, act, namespace)]
        if able:
            raise Unverifiable(Reason.NOT_YOURS, f"{person.name} has not the role {' or '.join(able)}")
        where = f"the namespace {person.namespace}" if person.namespace else "the mesh"
        raise Unverifiable(Reason.NOT_YOURS, f"{person.name} is of {where} and cannot do this beyond it")

    def require_for(self, person: Person, act: Act, of: Of, named: Mapping[str, str]) -> str:
        """The role in which *person* may do this to what a path *named*."""
        if of == "own":
            return self.require(person, act, person.namespace)
        if of == "mesh":
            return self.require(person, act, MESH)
        (name,) = (value for key, value in named.items() if key not in ("act",))
        return self.require_of(person, act, of, name)

    def require_of(self, person: Person, act: Act, kind: Kind, name: str) -> str:
        """The role in which *person* may do this to what is called *name*. What is another's is as if it were not."""
        role = self.require(person, act, person.namespace)
        whose = self.whose(kind, name)
        if whose is None or not self.may(person, act, whose):
            raise self.missing(person, kind, name)
        return role

    def home(self, person: Person, asked: str) -> str:
        """The namespace of what *person* registers, who *asked* for one: the own one, if it is of one."""
        if person.namespace and asked not in ("", person.namespace):
            raise Unverifiable(Reason.NOT_YOURS, f"{person.name} registers in {person.namespace} only")
        return person.namespace or asked

    def missing(self, person: Person, kind: Kind, name: str) -> Unverifiable:
        """That there is nothing of this name, as far as *person* can know."""
        hint = ""
        if kind == "agent":
            seen = (one.agent.name for one in self._store.all(AgentRecord) if self.sees(person, one.namespace))
            hint = f" is registered; registered: {', '.join(islice(seen, 10)) or 'none'}"
        return Unverifiable(Reason.NOT_FOUND, f'no {kind} "{visible(name)}"{hint}')

    def sees(self, person: Person, namespace: str) -> bool:
        """Whether what is of *namespace* is there for *person* at all."""
        return person.namespace in (MESH, namespace)

    def whose(self, kind: Kind, name: str) -> str | None:
        """The namespace of what is called *name*; None if there is none."""
        match kind:
            case "agent":
                agent = self._store.get(AgentRecord, name)
                return agent.namespace if agent is not None else None
            case "node":
                node = self._store.get(NodeRecord, name)
                return node.namespace if node is not None else None
            case "server":
                server = self._store.get(ServerRecord, name)
                return server.namespace if server is not None else None
            case "person":
                person = self._store.get(Person, name)
                return person.namespace if person is not None else None
            case "approval":
                approval = self._store.get(ApprovalRecord, name)
                return self.whose("agent", approval.agent) if approval is not None else None

    def agents_of(self, namespace: str) -> list[str]:
        """The names of the agents of one namespace."""
        return [one.agent.name for one in self._records.cached(AgentRecord) if one.namespace == namespace]


@lru_cache(maxsize=10_000)
def _may(roles: frozenset[str], home: str, act: Act, namespace: str) -> str:
    """Pure, so each answer is found once."""
    attributes = {"namespace": {"__entity": {"type": "Namespace", "id": home}}, "roles": sorted(roles)}
    told: list[dict[str, Any]] = [{"uid": {"type": "Person", "id": "who"}, "attrs": attributes, "parents": []}]
    for one in sorted({home, namespace, MESH}):
        parents = [{"type": "Namespace", "id": MESH}] if one != MESH else []
        told.append({"uid": {"type": "Namespace", "id": one}, "attrs": {}, "parents": parents})
    entities = cedar.parse_entities(told, _CEDAR)
    answer = cedar.ask(_POLICIES, entities, Uid("Person", "who"), act, Uid("Namespace", namespace), b"{}", _CEDAR)
    return answer.policies[0] if answer.clean_allow else ""
