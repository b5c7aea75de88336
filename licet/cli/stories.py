"""The story of a policy, printed: what decided in full, of the others what kept them out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from licet.cli.output import say
from trust.policy.engine import Finding
from trust.policy.explain import Part, Story

_MARKS: Final = {"true": "✓", "false": "✗", "error": "!", "not reached": "·"}


def tell(story: Story, finding: Finding) -> None:
    """Everything about a policy that decided or applies; of others, the first condition that kept them out."""
    decided = story.policy in finding.policies
    if story.applies:
        state = "applies"
    else:
        state = "would apply if a person approved" if decided and finding.outcome == "hold" else "does not apply"
    say(f"{story.file}:{story.line} {story.effect} {story.policy} {state}", "green" if decided else "")
    for condition in story.conditions:
        if decided or story.applies:
            for depth, text in _lines(condition.part):
                say(f"    {condition.kind if not depth else '    '} {'  ' * depth}{text}")
        elif not condition.holds:
            say(f"    {condition.kind} {_first(condition.part, condition.kind)}", "dim")
            return


def _lines(part: Part, depth: int = 0) -> Iterator[tuple[int, str]]:
    """*part* as a tree; of alternatives only those that matter."""
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
        yield from _lines(inner, depth + 1)


def _first(part: Part, kind: str) -> str:
    """The part that settled it, on one line."""
    if part.operator == "and":
        return next((_first(p, kind) for p in part.parts if p.truth == part.truth), f"all of it is {part.truth}")
    if part.operator == "or" and part.truth == "false":
        return f"none of {len(part.parts)} alternatives is true"
    if part.operator == "or":
        return next((_first(p, kind) for p in part.parts if p.truth == part.truth), f"it is {part.truth}")
    return f"{_MARKS[part.truth]} {part.text}   is {part.truth}"
