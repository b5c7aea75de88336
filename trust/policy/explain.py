"""Why a request was answered as it was: every policy whose scope matched, its clauses probed one by one.

Each condition is split at its ``&&`` through the typed tree, and each part is put before the real engine as
the only condition of a policy, so what is shown is what Cedar thinks of it, not what we think that Cedar does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from trust.policy import cedar
from trust.policy.bundle import Compiled
from trust.policy.cedar import pst
from trust.policy.engine import Finding, Request, World

Truth = Literal["true", "false", "error"]


@dataclass(frozen=True, slots=True)
class Part:
    """One condition as Cedar prints it; ``unless`` conditions hold when they are false."""

    kind: Literal["when", "unless"]
    text: str
    truth: Truth

    @property
    def holds(self) -> bool:
        return self.truth == ("true" if self.kind == "when" else "false")


@dataclass(frozen=True, slots=True)
class Story:
    """One policy whose scope matched the request."""

    policy: str
    effect: str
    file: str
    line: int
    parts: tuple[Part, ...]

    @property
    def applies(self) -> bool:
        """Whether all of its conditions hold."""
        return all(part.holds for part in self.parts)


def explain(bundle: Compiled, request: Request, world: World, *, approved: bool) -> tuple[Finding, list[Story]]:
    """The finding and the stories of all policies in the slice, those that apply first."""
    finding = bundle.engine.evaluate(request, world, approved=approved)
    context = msgspec.json.encode({**request.context, "approved": approved})
    stories = []
    for key in sorted(bundle.engine.in_scope(request, world)):
        node = bundle.read.nodes.static_policies.get(key)
        if node is not None:
            source = bundle.read.sources[key]
            parts = tuple(_probe(node, request, world, context))
            stories.append(Story(key, node.effect, source.file, source.statement.place().line, parts))
    return finding, sorted(stories, key=lambda story: not story.applies)


def _probe(node: pst.Template, request: Request, world: World, context: bytes) -> Iterator[Part]:
    for clause in node.clauses:
        if isinstance(clause, pst.Unless):
            yield _ask("unless", clause.expr, request, world, context)
        else:
            for expression in _conjuncts(clause.expr):
                yield _ask("when", expression, request, world, context)


def _conjuncts(expression: pst.Expr) -> Iterator[pst.Expr]:
    match expression:
        case pst.BinaryOp("and", left, right):
            yield from _conjuncts(left)
            yield from _conjuncts(right)
        case _:
            yield expression


def _ask(kind: Literal["when", "unless"], expression: pst.Expr, request: Request, world: World, context: bytes) -> Part:
    anything = pst.ScopeAny()
    probe = pst.Template("probe", "permit", anything, anything, anything, (pst.When(expression),), {})
    policies = cedar.policy_set(pst.PolicySet({}, {"probe": probe}, ()))
    answer = cedar.ask(policies, world.entities, request.principal, request.action, request.resource, context)
    text = str(policies)
    inside = " ".join(text[text.index("{") + 1 : text.rindex("}")].split())
    return Part(kind, inside, "error" if answer.errors else "true" if answer.allowed else "false")
