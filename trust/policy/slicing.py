"""Slices: of all policies, those whose scope can match a request, as a set that the engine already parsed.

Cedar's cost grows with the number of policies, because it looks at each. But a policy's scope (the part in
parentheses) is known in advance, and a policy whose scope does not match decides nothing and cannot even
fail. So each policy is filed under the action and the principal that its scope names; a request looks under
its own action with its groups and its own principal with its ancestors, filters by resource, and the set for
that key is built once. The ids stay, so reasons and errors are the same as with all policies.

A slice also knows which attributes of the context its policies mention. Those are all that Cedar is given:
what no policy reads cannot change an answer, and building a request is most of the cost of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final

from trust.policy import cedar
from trust.policy.cedar import PolicySet, Uid, pst

_ANY: Final = None
Reads = Mapping[str, frozenset[str] | None]
"""Top-level attribute of the context → its inner attributes that are read, or None for all of it."""


@dataclass(frozen=True, slots=True)
class Slice:
    """``ids`` are the policies in it; ``reads`` is None when a policy uses the context as a whole."""

    policies: PolicySet
    ids: frozenset[str]
    reads: Reads | None

    def narrow(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """What of *context* these policies can see."""
        if self.reads is None:
            return dict(context)
        narrowed: dict[str, Any] = {}
        for name, inner in self.reads.items():
            if name in context:
                value = context[name]
                narrowed[name] = (
                    value
                    if inner is None or not isinstance(value, dict)
                    else {key: value[key] for key in inner if key in value}
                )
        return narrowed

    def reads_attribute(self, name: str) -> bool:
        return self.reads is None or name in self.reads


@dataclass(frozen=True, slots=True)
class _Scope:
    """One static policy or one link, with the scope that it has once its slots are filled."""

    id: str
    principal: pst.PrincipalOrResourceConstraint
    action: pst.ActionConstraint
    resource: pst.PrincipalOrResourceConstraint


@dataclass(frozen=True, slots=True)
class Party:
    """A principal, action or resource with everything that it is in."""

    uid: Uid
    ancestors: frozenset[Uid]

    @property
    def uids(self) -> frozenset[Uid]:
        return self.ancestors | {self.uid}


class Slicer:
    """Files a policy set and cuts slices from it."""

    def __init__(self, nodes: pst.PolicySet) -> None:
        self._nodes = nodes
        self._files: dict[tuple[Uid | None, Uid | None], list[_Scope]] = {}
        for scope in _scopes(nodes):
            for action in action_keys(scope.action):
                self._files.setdefault((action, _principal_key(scope.principal)), []).append(scope)

    def cut(self, principal: Party, action: Party, resource: Party) -> Slice:
        """The slice for one request; milliseconds of work, for the caller to keep."""
        matching = {
            scope.id
            for action_key in (_ANY, *action.uids)
            for principal_key in (_ANY, *principal.uids)
            for scope in self._files.get((action_key, principal_key), ())
            if _matches(scope.principal, principal) and _matches(scope.resource, resource)
        }
        nodes = subset(self._nodes, matching)
        return Slice(cedar.policy_set(nodes), frozenset(matching), context_reads(nodes))


def subset(nodes: pst.PolicySet, ids: Iterable[str]) -> pst.PolicySet:
    """Only the policies and links with *ids* (templates come along with their links)."""
    wanted = set(ids)
    links = tuple(link for link in nodes.template_links if link.new_id in wanted)
    used = {link.template_id for link in links}
    return pst.PolicySet(
        templates={key: node for key, node in nodes.templates.items() if key in used},
        static_policies={key: node for key, node in nodes.static_policies.items() if key in wanted},
        template_links=links,
    )


def _scopes(nodes: pst.PolicySet) -> Iterable[_Scope]:
    for key, node in nodes.static_policies.items():
        yield _Scope(key, node.principal, node.action, node.resource)
    for link in nodes.template_links:
        template = nodes.templates[link.template_id]
        yield _Scope(
            link.new_id,
            _filled(template.principal, link.values),
            template.action,
            _filled(template.resource, link.values),
        )


def _filled(
    constraint: pst.PrincipalOrResourceConstraint, values: Mapping[Any, pst.EntityUid]
) -> pst.PrincipalOrResourceConstraint:
    match constraint:
        case pst.ScopeEq(pst.Slot(name)):
            return pst.ScopeEq(values[name])
        case pst.ScopeIn(pst.Slot(name)):
            return pst.ScopeIn(values[name])
        case pst.ScopeIsIn(entity_type, pst.Slot(name)):
            return pst.ScopeIsIn(entity_type, values[name])
    return constraint


def _uid(entity: pst.EntityOrSlot) -> Uid:
    if isinstance(entity, pst.Slot):
        raise TypeError("an unlinked slot reached the index")
    return Uid(str(entity.type), entity.id)


def action_keys(constraint: pst.ActionConstraint) -> list[Uid | None]:
    """The actions and groups that a scope names; None stands for any."""
    match constraint:
        case pst.ActionEq(entity):
            return [_uid(entity)]
        case pst.ActionIn(entities):
            return [_uid(entity) for entity in entities]
    return [_ANY]


def _principal_key(constraint: pst.PrincipalOrResourceConstraint) -> Uid | None:
    match constraint:
        case pst.ScopeEq(entity) | pst.ScopeIn(entity) | pst.ScopeIsIn(_, entity):
            return _uid(entity)
    return _ANY


def _matches(constraint: pst.PrincipalOrResourceConstraint, party: Party) -> bool:
    match constraint:
        case pst.ScopeAny():
            return True
        case pst.ScopeEq(entity):
            return _uid(entity) == party.uid
        case pst.ScopeIn(entity):
            return _uid(entity) in party.uids
        case pst.ScopeIs(entity_type):
            return str(entity_type) == party.uid.type
        case pst.ScopeIsIn(entity_type, entity):
            return str(entity_type) == party.uid.type and _uid(entity) in party.uids
    raise TypeError(f"a scope of a kind that is not known: {constraint!r}")


def context_reads(nodes: pst.PolicySet) -> Reads | None:
    """Which attributes of ``context`` the conditions of *nodes* mention; None if it stands alone somewhere."""
    found: dict[str, set[str] | None] = {}
    stack: list[object] = [
        clause.expr for node in (*nodes.static_policies.values(), *nodes.templates.values()) for clause in node.clauses
    ]
    while stack:
        node = stack.pop()
        match node:
            case pst.Var("context"):
                return None
            case pst.GetAttr(pst.GetAttr(pst.Var("context"), outer), inner):
                _note(found, outer, inner)
            case pst.HasAttr(pst.GetAttr(pst.Var("context"), outer), attrs):
                _note(found, outer, attrs[0])
            case pst.HasAttr(pst.Var("context"), attrs) if len(attrs) > 1:
                _note(found, attrs[0], attrs[1])
            case pst.GetAttr(pst.Var("context"), outer) | pst.HasAttr(pst.Var("context"), (outer, *_)):
                found[outer] = None
            case Mapping():
                stack.extend(node.values())
            case tuple():
                stack.extend(node)
            case _ if is_dataclass(node) and not isinstance(node, type):
                stack.extend(getattr(node, part.name) for part in fields(node))
    return {name: None if inner is None else frozenset(inner) for name, inner in found.items()}


def _note(found: dict[str, set[str] | None], outer: str, inner: str) -> None:
    known = found.setdefault(outer, set())
    if known is not None:
        known.add(inner)
