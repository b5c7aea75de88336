"""Why a request was answered as it was: every policy whose scope matched, its conditions probed one by one.

Each condition is split at its ``&&`` and ``||`` through the typed tree, and each part is put before the real
engine as the only condition of a policy, so what is shown is what Cedar thinks of it, not what we think that
Cedar does. Parts are asked in Cedar's order and no further than Cedar goes: ``x has a && x.a == 1`` asks for
``x.a`` only where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from trust.policy import cedar
from trust.policy.bundle import Compiled
from trust.policy.cedar import pst
from trust.policy.engine import Finding, Request, World

Truth = Literal["true", "false", "error", "not reached"]
_STRING: Final = re.compile(r'("(?:[^"\\]|\\.)*")')
_PATH: Final = r"[A-Za-z_]\w*(?:\.\w+)*"


@dataclass(frozen=True, slots=True)
class Part:
    """One expression as Cedar prints it; ``parts`` are those that an ``and`` or ``or`` is made of."""

    text: str
    truth: Truth
    operator: Literal["and", "or", ""] = ""
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """``when`` holds if its parts are all true, ``unless`` if it is false."""

    kind: Literal["when", "unless"]
    part: Part

    @property
    def holds(self) -> bool:
        return self.part.truth == ("true" if self.kind == "when" else "false")


@dataclass(frozen=True, slots=True)
class Story:
    """One policy whose scope matched the request."""

    policy: str
    effect: str
    file: str
    line: int
    conditions: tuple[Condition, ...]

    @property
    def applies(self) -> bool:
        return all(condition.holds for condition in self.conditions)


def explain(bundle: Compiled, request: Request, world: World, *, approved: bool) -> tuple[Finding, list[Story]]:
    """The finding and the stories of all policies in the slice: those that decided, that apply, and the rest."""
    finding = bundle.engine.evaluate(request, world, approved=approved)
    context = msgspec.json.encode({**request.context, "approved": approved})

    def ask(expression: pst.Expr) -> Part:
        return _ask(expression, request, world, context)

    stories = []
    for key in sorted(bundle.engine.in_scope(request, world)):
        node = bundle.read.nodes.static_policies.get(key)
        if node is not None:
            source = bundle.read.sources[key]
            conditions = tuple(
                Condition("unless" if isinstance(clause, pst.Unless) else "when", _probe(clause.expr, ask))
                for clause in node.clauses
            )
            stories.append(Story(key, node.effect, source.file, source.statement.place().line, conditions))
    return finding, sorted(stories, key=lambda story: (story.policy not in finding.policies, not story.applies))


def _probe(expression: pst.Expr, ask: Callable[[pst.Expr], Part]) -> Part:
    match expression:
        case pst.BinaryOp("and" | "or" as operator, _, _):
            parts = _in_order(_split(expression, operator), "false" if operator == "and" else "true", ask)
            return Part("", _together(parts, operator), operator, parts)
    return ask(expression)


def _split(expression: pst.Expr, operator: str) -> list[pst.Expr]:
    match expression:
        case pst.BinaryOp(found, left, right) if found == operator:
            return [*_split(left, operator), *_split(right, operator)]
    return [expression]


def _in_order(expressions: Sequence[pst.Expr], settles: Truth, ask: Callable[[pst.Expr], Part]) -> tuple[Part, ...]:
    parts: list[Part] = []
    for expression in expressions:
        settled = bool(parts) and parts[-1].truth in (settles, "error", "not reached")
        parts.append(Part(_text(expression), "not reached") if settled else _probe(expression, ask))
    return tuple(parts)


def _together(parts: Sequence[Part], operator: str) -> Truth:
    truths = [part.truth for part in parts]
    if "error" in truths:
        return "error"
    settles: Truth = "false" if operator == "and" else "true"
    other: Truth = "true" if operator == "and" else "false"
    return settles if settles in truths else other


_MARKS: Final = {"true": "✓", "false": "✗", "error": "!", "not reached": "·"}


def lines(part: Part, depth: int = 0) -> Iterator[tuple[int, str]]:
    """*part* as a tree for people: (depth, text); of alternatives only those that matter."""
    if not part.operator:
        yield (
            depth,
            f"{_MARKS[part.truth]} {part.text}" + (f"   is {part.truth}" if part.truth != "not reached" else ""),
        )
        return
    name = "all of" if part.operator == "and" else "any of"
    told = [p for p in part.parts if p.truth == part.truth] if part.operator == "or" else part.parts
    yield depth, f"{_MARKS[part.truth]} {name} {len(part.parts)} is {part.truth}"
    for inner in told:
        yield from lines(inner, depth + 1)


def settled(part: Part) -> str:
    """The part that settled it, on one line."""
    if part.operator == "and":
        return next((settled(p) for p in part.parts if p.truth == part.truth), f"all of it is {part.truth}")
    if part.operator == "or" and part.truth == "false":
        return f"none of {len(part.parts)} alternatives is true"
    if part.operator == "or":
        return next((settled(p) for p in part.parts if p.truth == part.truth), f"it is {part.truth}")
    return f"{_MARKS[part.truth]} {part.text}   is {part.truth}"


def _set(expression: pst.Expr) -> cedar.PolicySet:
    anything = pst.ScopeAny()
    probe = pst.Template("probe", "permit", anything, anything, anything, (pst.When(expression),), {})
    return cedar.policy_set(pst.PolicySet({}, {"probe": probe}, ()))


def _ask(expression: pst.Expr, request: Request, world: World, context: bytes) -> Part:
    answer = cedar.ask(_set(expression), world.entities, request.principal, request.action, request.resource, context)
    return Part(_text(expression), "error" if answer.errors else "true" if answer.allowed else "false")


def _text(expression: pst.Expr) -> str:
    """As Cedar prints it, without the parentheses around plain paths."""
    text = str(_set(expression))
    pieces = _STRING.split(" ".join(text[text.index("{") + 1 : text.rindex("}")].split()))
    return "".join(piece if piece.startswith('"') else _without_parentheses(piece) for piece in pieces)


def _without_parentheses(code: str) -> str:
    before = ""
    while code != before:
        before, code = code, re.sub(rf"(?<![\w.])\(({_PATH})\)", r"\1", code)
    return code
