"""Putting facts and an action before the engine, and doing it again from what a ledger entry recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from trust.canonical import JsonObject, JsonValue, digest_of, jcs, sha256_hex
from trust.facts import Agent, Facts
from trust.ledger.entries import Deed, Judgement, Line
from trust.ledger.verify import Undecidable
from trust.policy.arguments import project
from trust.policy.bundle import Compiled
from trust.policy.cedar import Uid
from trust.policy.engine import Finding, Request
from trust.policy.inventory import Tool
from trust.policy.terms import strictest
from trust.reasons import Reason, Unverifiable

_OUTCOME_OF = {"allow": "permit", "hold": "hold", "deny": "refuse"}


def recorded_facts(facts: Facts) -> dict[str, Any]:
    """What an entry keeps, so that the decision can be made again."""
    return {"context": facts.context, "agent": msgspec.to_builtins(facts.agent)}


def evaluate(
    bundle: Compiled, tool: Tool, arguments: JsonObject, facts: Facts, server: str, *, approved: bool
) -> Finding:
    """Step 4. Raises :class:`Unverifiable` (``arguments_invalid``) before policy sees anything."""
    return evaluate_context(bundle, server, tool, arguments, facts.agent, facts.context, approved)


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


def together(findings: Sequence[Finding]) -> Finding:
    """What holds when several must agree: the first refusal, else whoever any of them asks for, else a permit.
    Nobody who agrees is no permit."""
    for finding in findings:
        if finding.outcome == "refuse":
            return finding
    held = [finding for finding in findings if finding.terms is not None]
    policies = tuple(dict.fromkeys(policy for finding in findings for policy in finding.policies))
    if held:
        sentences = tuple(dict.fromkeys(text for finding in held for text in finding.sentences))
        terms = strictest(finding.terms for finding in held if finding.terms is not None)
        return Finding("hold", policies, terms=terms, sentences=sentences)
    if not findings:
        return Finding("refuse", reason=Reason.NO_POLICY_PERMITS)
    return Finding("permit", policies, shadow=findings[0].shadow)


def recorded(bundle: Compiled, deed: Deed, judgement: Judgement) -> tuple[Agent, JsonObject, JsonValue]:
    """Agent, context and projected arguments of a recorded decision, or :class:`Undecidable`."""
    if deed.arguments is None:
        raise Undecidable("the arguments are not here")
    try:
        tool = bundle.inventory.tool(deed.server, deed.tool)
        agent = msgspec.convert(judgement.facts["agent"], Agent)
        return agent, judgement.facts["context"], project(bundle.shape(tool), deed.arguments)
    except (KeyError, msgspec.ValidationError) as bad:
        raise Undecidable(f"the recorded facts are incomplete: {bad}") from None
    except Unverifiable as bad:
        raise Undecidable(bad.detail) from None


def action_digest(bundle: Compiled, deed: Deed, salt: bytes = b"") -> str:
    """As :meth:`trust.action.Action.digest` makes it."""
    return digest_of(
        {
            "action": f"{deed.server}/{deed.tool}",
            "agent": deed.agent,
            "arguments": deed.arguments,
            "authority": list(deed.authority),
            "principal": deed.principal,
            "resource": f'Server::"{deed.server}"',
            **({"salt": salt.hex()} if salt else {}),
            "server": deed.server,
            "tool_schema": bundle.inventory.tool(deed.server, deed.tool).digest,
        }
    )


def wrongly_kept(bundle: Compiled, deed: Deed) -> str | None:
    """What is wrong with how the arguments of a decided action were recorded: what is personal is sealed under the key
    of its subject, and nothing else is, or decisions could hide behind keys that nobody has."""
    try:
        marks = bundle.personal(bundle.inventory.tool(deed.server, deed.tool))
    except Unverifiable:
        return None
    name = f"{deed.server}/{deed.tool}"
    if deed.sealed is None:
        return f"what is personal of {name} was recorded in plain" if marks.anything else None
    if not marks.anything:
        return f"nothing of {name} is personal, and it was sealed"
    if not deed.sealed.key:
        return f"{name} was decided, and sealed under a key that nobody has"
    if not set(deed.arguments or {}) <= marks.plain:
        return f"what is personal of {name} was recorded in plain"
    return None


def disagreement(bundle: Compiled, line: Line, deed: Deed, salt: bytes = b"") -> str | None:
    """What is wrong with the decision in *line*, if it does not follow from what was recorded beside it.

    *deed* is the entry's, with its arguments; *salt* that of its digests, if some of them are personal.
    """
    entry: Any = line.entry
    judgement: Judgement = entry.judgement
    if sha256_hex(salt + jcs(deed.arguments or {})) != deed.arguments_sha256:
        return f"the arguments of {deed.server}/{deed.tool} are not those whose digest was recorded"
    agent, context, args = recorded(bundle, deed, judgement)
    if agent.name != deed.agent:
        return f"asked by {deed.agent}, and decided with the facts of {agent.name}"
    if deed.action_digest and deed.action_digest != action_digest(bundle, deed, salt):
        return f"{deed.server}/{deed.tool}: the digest that people approve is not the one of this action"
    request = Request(agent.uid, f"{deed.server}/{deed.tool}", Uid("Server", deed.server), {**context, "args": args})
    approved = getattr(entry, "approval", None) is not None
    finding = bundle.engine.evaluate(request, bundle.engine.world(agent.entities()), approved=approved)
    expected = _OUTCOME_OF[judgement.decision]
    if finding.outcome == expected and list(finding.policies) == judgement.policies:
        return None
    return (
        f"{deed.server}/{deed.tool} was recorded as {expected} by {judgement.policies}, but its facts and "
        f"bundle give {finding.outcome} by {list(finding.policies)}"
    )
