"""Putting facts and an action before the engine, and doing it again from what a ledger entry recorded."""

from __future__ import annotations

from typing import Any

import msgspec

from trust.canonical import JsonObject
from trust.facts import Agent, Facts
from trust.ledger.entries import Deed, Judgement, Line
from trust.ledger.verify import Undecidable
from trust.policy.arguments import project
from trust.policy.bundle import Compiled
from trust.policy.cedar import Uid
from trust.policy.engine import Finding, Request
from trust.policy.inventory import Tool
from trust.reasons import Unverifiable

_OUTCOME_OF = {"allow": "permit", "hold": "hold", "deny": "refuse"}


def recorded_facts(facts: Facts) -> dict[str, Any]:
    """What an entry keeps, so that the decision can be made again."""
    return {"context": facts.context(), "agent": msgspec.to_builtins(facts.agent)}


def evaluate(
    bundle: Compiled, tool: Tool, arguments: JsonObject, facts: Facts, server: str, *, approved: bool
) -> Finding:
    """Step 4. Raises :class:`Unverifiable` (``arguments_invalid``) before policy sees anything."""
    return evaluate_context(bundle, server, tool, arguments, facts.agent, facts.context(), approved)


def evaluate_context(
    bundle: Compiled,
    server: str,
    tool: Tool,
    arguments: JsonObject,
    agent: Agent,
    context: JsonObject,
    approved: bool,
) -> Finding:
    """Like :func:`evaluate`, with facts that are Cedar JSON already."""
    args = project(bundle.shape(tool), arguments)
    request = Request(agent.uid, f"{server}/{tool.name}", Uid("Server", server), {**context, "args": args})
    return bundle.engine.evaluate(request, bundle.engine.world(agent.entities()), approved=approved)


def finding_of(bundle: Compiled, deed: Deed, judgement: Judgement, *, approved: bool) -> Finding:
    """The finding that *judgement*'s facts give today, or :class:`Undecidable`."""
    if deed.arguments is None:
        raise Undecidable("the arguments were too large to keep in the entry")
    try:
        tool = bundle.inventory.tool(deed.server, deed.tool)
        agent = msgspec.convert(judgement.facts["agent"], Agent)
        context = judgement.facts["context"]
        return evaluate_context(bundle, deed.server, tool, deed.arguments, agent, context, approved)
    except (KeyError, msgspec.ValidationError) as bad:
        raise Undecidable(f"the recorded facts are incomplete: {bad}") from None
    except Unverifiable as bad:
        raise Undecidable(bad.detail) from None


def disagreement(bundle: Compiled, line: Line) -> str | None:
    """What is wrong with the decision in *line*, if it does not follow from what was recorded beside it."""
    entry: Any = line.entry
    deed, judgement = entry.deed, entry.judgement
    if deed is None or judgement is None:
        raise Undecidable("nothing was decided")
    finding = finding_of(
        bundle, deed, judgement, approved=entry.approval is not None if hasattr(entry, "approval") else False
    )
    expected = _OUTCOME_OF[judgement.decision]
    if finding.outcome == expected and list(finding.policies) == judgement.policies:
        return None
    return (
        f"{deed.server}/{deed.tool} was recorded as {expected} by {judgement.policies}, but its facts and "
        f"bundle give {finding.outcome} by {list(finding.policies)}"
    )
