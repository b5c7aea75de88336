"""The story of a policy, printed: what decided in full, of the others what kept them out."""

from __future__ import annotations

from licet.cli.output import say
from trust.policy.engine import Finding
from trust.policy.explain import Story, lines, settled


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
            for depth, text in lines(condition.part):
                say(f"    {condition.kind if not depth else '    '} {'  ' * depth}{text}")
        elif not condition.holds:
            say(f"    {condition.kind} {settled(condition.part)}", "dim")
            return
