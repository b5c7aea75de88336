"""The policy engine: one bundle's policies, ready to answer requests in microseconds.

From Cedar's answer to ours: evaluate without approval; a clean Allow is *permit*. Otherwise evaluate as if a
person had approved; a clean Allow then is *hold*, on the strictest union of what the policies that made the
difference ask for. Everything else *refuses*, so a person is never asked for what policy would refuse anyway.
An error in any policy that was evaluated refuses, whatever Cedar says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from trust.policy import cedar
from trust.policy.cedar import Answer, Entities, Uid, pst
from trust.policy.slicing import Party, Slice, Slicer, subset
from trust.policy.terms import Terms, parse_terms, strictest
from trust.reasons import Reason
from trust.standing.rules import SEVERITIES, Severity, worst

MAX_WORLDS: Final = 10_000
MAX_CUTS: Final = 10_000
"""What is kept per bundle; beyond that a cache starts anew."""


class Request(msgspec.Struct, frozen=True):
    """What Cedar is asked. ``context`` is complete Cedar JSON but for ``approved``."""

    principal: Uid
    action: str
    resource: Uid
    context: Mapping[str, Any]


class Finding(msgspec.Struct, frozen=True):
    """What policy says of one request.

    ``policies`` are the ``@id``s that decided; ``shadow`` those of shadow policies that would have flipped it.
    """

    outcome: Literal["permit", "hold", "refuse"]
    policies: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    reason: Reason | None = None
    terms: Terms | None = None
    shadow: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()


class Engine:
    """Evaluates requests against the enforced policies of one bundle.

    *nodes* carry their ``@id`` as id. *entities* must hold the schema's actions.
    """

    def __init__(self, nodes: pst.PolicySet, schema: cedar.Schema, entities: list[dict[str, Any]]) -> None:
        self._all = {**nodes.templates, **nodes.static_policies}
        self._annotation_of = {
            **{key: key for key in self._all},
            **{x.new_id: x.template_id for x in nodes.template_links},
        }
        shadow = {key for key, node in self._all.items() if node.annotations.get("mode") == "shadow"}
        enforced = [key for key, source in self._annotation_of.items() if source not in shadow]
        self._schema = schema
        self._base_entities = entities
        self._enforced = Slicer(subset(nodes, enforced))
        self._everything = Slicer(nodes) if shadow else None
        self._terms = {
            key: parse_terms(node.annotations["approval"])
            for key, node in self._all.items()
            if "approval" in node.annotations
        }
        self._worlds: dict[bytes, World] = {}

    def world(self, extra: list[dict[str, Any]]) -> World:
        """The bundle's entities with *extra* ones (the agent and its teams); cached by content."""
        key = msgspec.json.encode(extra)
        found = self._worlds.get(key)
        if found is None:
            if len(self._worlds) >= MAX_WORLDS:
                self._worlds.clear()
            found = self._worlds[key] = World([*self._base_entities, *extra], self._schema)
        return found

    def evaluate(self, request: Request, world: World, *, approved: bool = False) -> Finding:
        """The finding for *request*; with *approved*, an approval for exactly this action exists."""
        cut, whole = self._cuts(request, world)
        finding = self._find(cut, request, world, approved)
        if whole is None:
            return finding
        with_shadows = self._find(whole, request, world, approved)
        if with_shadows.outcome == finding.outcome:
            return finding
        return msgspec.structs.replace(finding, shadow=tuple(sorted(whole.ids - cut.ids)))

    def visible(self, principal: Uid, action: str, resource: Uid, world: World) -> bool:
        """Whether the agent may be shown this action: some arguments might be permitted or held."""
        request = Request(principal, action, resource, {})
        cut, _ = self._cuts(request, world)
        return cedar.may_ever_allow(cut.policies, world.entities, principal, action, resource)

    def in_scope(self, request: Request, world: World) -> frozenset[str]:
        """The ids of the enforced policies whose scope matches."""
        return self._cuts(request, world)[0].ids

    def _cuts(self, request: Request, world: World) -> tuple[Slice, Slice | None]:
        """The slice of enforced policies, and the one with shadow policies if there are any."""
        key = (request.principal, request.action, request.resource)
        found = world.cuts.get(key)
        if found is None:
            parties = (
                world.party(request.principal),
                world.party(Uid("Action", request.action)),
                world.party(request.resource),
            )
            whole = self._everything.cut(*parties) if self._everything is not None else None
            found = (self._enforced.cut(*parties), whole)
            if len(world.cuts) >= MAX_CUTS:
                world.cuts.clear()
            world.cuts[key] = found
        return found

    def _find(self, cut: Slice, request: Request, world: World, approved: bool) -> Finding:
        first = self._ask(cut, request, world, approved)
        if first.clean_allow:
            return Finding("permit", first.policies)
        if not approved and cut.reads_attribute("approved"):
            second = self._ask(cut, request, world, True)
            if second.clean_allow:
                return self._hold(first, second)
        return self._refusal(first)

    def _ask(self, cut: Slice, request: Request, world: World, approved: bool) -> Answer:
        context = cut.narrow(request.context)
        if cut.reads_attribute("approved"):
            context["approved"] = approved
        return cedar.ask(
            cut.policies,
            world.entities,
            request.principal,
            request.action,
            request.resource,
            msgspec.json.encode(context),
        )

    def _hold(self, first: Answer, second: Answer) -> Finding:
        asking = [p for p in (*first.policies, *second.policies) if self._annotation_of[p] in self._terms]
        if not asking:
            return Finding(
                "refuse",
                first.policies,
                ("no policy that made the difference says who may approve",),
                Reason.POLICY_ERROR,
            )
        terms = strictest(self._terms[self._annotation_of[p]] for p in asking)
        return Finding("hold", tuple(dict.fromkeys(asking)), terms=terms, sentences=self._sentences(asking))

    def _refusal(self, answer: Answer) -> Finding:
        """What is forbidden for good is forbidden, whatever else could not be evaluated: else one broken policy would
        take the others' names and severities away."""
        if answer.errors and (answer.allowed or not any(self._forbids(one) for one in answer.policies)):
            failed = tuple(dict.fromkeys(filter(None, map(cedar.policy_of_error, answer.errors))))
            return Finding("refuse", failed or answer.policies, answer.errors, Reason.POLICY_ERROR)
        reason = Reason.POLICY_FORBIDS if answer.policies else Reason.NO_POLICY_PERMITS
        return Finding("refuse", answer.policies, answer.errors, reason, sentences=self._sentences(answer.policies))

    def _forbids(self, policy: str) -> bool:
        """Whether nobody could approve what this policy is against."""
        return self._annotation_of[policy] not in self._terms

    def severity(self, policies: Iterable[str]) -> Severity:
        """How much a refusal by *policies* says against whoever asked: the worst of their ``@severity``."""
        nodes = (self._all[self._annotation_of[p]] for p in policies if p in self._annotation_of)
        named = [node.annotations.get("severity", "minor") for node in nodes if node.effect == "forbid"]
        return worst([known for known in SEVERITIES if known in named])

    def _sentences(self, policies: tuple[str, ...] | list[str]) -> tuple[str, ...]:
        found = (self._all[self._annotation_of[p]].annotations.get("reason", "") for p in policies)
        return tuple(dict.fromkeys(filter(None, found)))


class World:
    """A set of entities that the engine has parsed, and who is in what."""

    def __init__(self, entities: list[dict[str, Any]], schema: cedar.Schema) -> None:
        self.entities: Entities = cedar.parse_entities(entities, schema)
        parents: dict[Uid, list[Uid]] = {}
        for entity in msgspec.json.decode(str(self.entities)):
            uid = Uid(entity["uid"]["type"], entity["uid"]["id"])
            parents[uid] = [Uid(parent["type"], parent["id"]) for parent in entity["parents"]]
        self._parents = parents
        self.cuts: dict[tuple[Uid, str, Uid], tuple[Slice, Slice | None]] = {}

    def party(self, uid: Uid) -> Party:
        return Party(uid, frozenset(self._ancestors(uid)))

    def _ancestors(self, uid: Uid) -> set[Uid]:
        found: set[Uid] = set()
        stack = list(self._parents.get(uid, ()))
        while stack:
            parent = stack.pop()
            if parent not in found:
                found.add(parent)
                stack.extend(self._parents.get(parent, ()))
        return found
