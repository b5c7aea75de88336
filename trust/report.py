"""From actions and verdicts to the ledger's words for them."""

from __future__ import annotations

from typing import Any

from trust.action import Action
from trust.canonical import JsonObject, jcs, sha256_hex
from trust.facts import Facts
from trust.identity.keys import b64url
from trust.ledger.entries import Decision, Deed, Judgement, Refusal, SealedArguments
from trust.personal import ALL, ARGUMENTS, QUIET, Personal
from trust.policy import cedar, judge
from trust.policy.engine import Finding
from trust.reasons import Reason
from trust.verdict import Refusal as No

MAX_INLINE_ARGUMENTS = 16_000
"""Bytes of canonical arguments that an entry carries itself; larger ones are kept beside the log by digest."""


def deed(
    action: Action,
    *,
    agent: str,
    principal: str,
    authn: str,
    authority: tuple[str, ...],
    action_digest: str,
    valid: bool = True,
) -> Deed:
    """What was asked, as an entry says it; nothing that is personal is in it in plain. *valid*: the arguments are of
    the tool's schema; else nobody knows what stands where, and of a personal call all of them are sealed."""
    plain, sealed = action.arguments, None
    if action.personal is not None:
        marks = action.personal.marks if valid else ALL
        plain, sealed = _sealed(action, Personal(marks, action.personal.key))
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
        arguments=plain if is_inline(action) else None,
        sealed=sealed,
        authority=list(authority),
        idempotency_key=action.idempotency_key,
        trace_id=action.trace.trace_id,
        span_id=action.trace.span_id,
    )


def _sealed(action: Action, personal: Personal) -> tuple[JsonObject, SealedArguments]:
    """(the arguments that may stand in plain, the others)."""
    plain, hidden = personal.marks.split(action.arguments)
    beside = kept_beside(action)
    if not personal.key.id:
        return plain, SealedArguments()
    if beside is not None:
        return plain, SealedArguments(personal.key.id, blob=sha256_hex(beside))
    return plain, SealedArguments(personal.key.id, b64url(personal.key.seal(jcs(hidden), ARGUMENTS)))


def is_inline(action: Action) -> bool:
    return len(action.payload.body) <= MAX_INLINE_ARGUMENTS


def kept_beside(action: Action) -> bytes | None:
    """What must lie beside the log before an entry speaks of *action*: arguments that are too large for one."""
    if is_inline(action) or (action.personal is not None and not action.personal.key.id):
        return None
    if action.personal is None:
        return action.canonical_arguments
    return action.personal.key.seal(action.canonical_arguments, ARGUMENTS)


QUOTING = frozenset(
    {
        Reason.MALFORMED_REQUEST,
        Reason.AMBIGUOUS_JSON,
        Reason.AMBIGUOUS_HEADERS,
        Reason.HEADER_MISMATCH,
        Reason.DELEGATION_INVALID,
        Reason.ARGUMENTS_INVALID,
        Reason.AUTHORITY_EXCEEDED,
        Reason.POLICY_ERROR,
        Reason.PERMIT_INVALID,
        Reason.UPSTREAM_FAILED,
        Reason.INTERNAL_ERROR,
    }
)
"""Reasons whose detail may quote what was sent, or what somebody made of it."""


def detail(no: No, *, personal: bool = False) -> str:
    """What an entry says of a refusal: nothing that may quote what is personal."""
    return QUIET if (personal or no.personal) and no.reason in QUOTING else no.detail[:2000]


def judgement(bundle: str, decision: Decision, facts: Facts, finding: Finding, *, personal: bool) -> Judgement:
    """How it was decided, as an entry says it; an error quotes values: of a *personal* call only whose it is stays."""
    errors = [cedar.policy_of_error(error) or QUIET for error in finding.errors] if personal else list(finding.errors)
    recorded: dict[str, Any] = judge.recorded_facts(facts)
    return Judgement(
        bundle=bundle,
        decision=decision,
        facts=recorded,
        policies=list(finding.policies),
        errors=errors,
        shadow=list(finding.shadow),
    )


def refusal(no: No, decision_id: str, **known: Any) -> Refusal:
    """A refusal as an entry says it; *known*: deed, judgement, caller, approval. Without a deed nobody knows whether
    what came was personal."""
    asked: Deed | None = known.get("deed")
    said = detail(no, personal=asked is None or asked.sealed is not None)
    return Refusal(no.step, str(no.reason), said, decision_id, **known)
