"""From actions and verdicts to the ledger's words for them."""

from __future__ import annotations

from typing import Any

from trust.action import Action
from trust.facts import Facts
from trust.ledger.entries import Decision, Deed, Judgement, Refusal
from trust.policy import judge
from trust.policy.engine import Finding
from trust.verdict import Refusal as No

MAX_INLINE_ARGUMENTS = 16_000
"""Bytes of canonical arguments that an entry carries itself; larger ones are kept beside the log by digest."""


def deed(
    action: Action, *, agent: str, principal: str, authn: str, authority: tuple[str, ...], action_digest: str
) -> Deed:
    """What was asked, as an entry says it."""
    return Deed(
        action_id=action.id,
        decision_id=action.decision_id,
        run=action.run,
        agent=agent,
        principal=principal,
        authn=authn,
        protocol=action.protocol,
        server=action.server,
        tool=action.tool,
        arguments_sha256=action.arguments_digest,
        payload_sha256=action.payload_digest,
        action_digest=action_digest,
        arguments=action.arguments if is_inline(action) else None,
        authority=list(authority),
        idempotency_key=action.idempotency_key,
        trace_id=action.trace.trace_id,
        span_id=action.trace.span_id,
    )


def is_inline(action: Action) -> bool:
    return len(action.payload.body) <= MAX_INLINE_ARGUMENTS


def judgement(bundle: str, decision: Decision, facts: Facts, finding: Finding) -> Judgement:
    """How it was decided, as an entry says it."""
    recorded: dict[str, Any] = judge.recorded_facts(facts)
    return Judgement(
        bundle=bundle,
        decision=decision,
        facts=recorded,
        policies=list(finding.policies),
        errors=list(finding.errors),
        shadow=list(finding.shadow),
    )


def refusal(no: No, decision_id: str, **known: Any) -> Refusal:
    """A refusal as an entry says it; *known*: deed, judgement, caller, approval."""
    return Refusal(no.step, str(no.reason), no.detail[:2000], decision_id, **known)
