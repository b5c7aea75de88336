"""What a sidecar tells of an action when it is recorded and answered: numbers, and a span with the steps below it."""

from __future__ import annotations

from edge.telemetry import Telemetry
from edge.tracing import UNSEEN, Marks
from sidecar.answers import Allowed, Answer, Held
from trust.action import Action


def tell(telemetry: Telemetry, action: Action, answer: Answer, marks: Marks, took_s: float) -> None:
    """Once for each action. No argument and no answer leaves the ledger by this way."""
    decision, reason, failed = _of(answer)
    telemetry.tally.count("licet_actions", (("decision", decision), ("reason", reason)))
    telemetry.tally.took("licet_action_seconds", took_s, (("decision", decision),))
    if marks is UNSEEN:
        return
    marks.at("10 answer")
    attributes: dict[str, str | int | bool] = {
        "licet.decision": decision,
        "licet.decision_id": answer.decision_id,
        "licet.action_id": action.id,
        "licet.run": action.run,
        "licet.tool": action.name,
        "licet.protocol": action.protocol,
        "licet.audit": str(answer.audit) if answer.audit else "",
    }
    if reason:
        attributes["licet.reason"] = reason
    telemetry.tracer.told("licet act", action.trace, marks, attributes, failed=failed)


def _of(answer: Answer) -> tuple[str, str, bool]:
    """(decision, reason, whether something failed): a no is an answer, and no failure."""
    if isinstance(answer, Allowed):
        return "allow", "", answer.status >= 400
    if isinstance(answer, Held):
        return "hold", "", False
    no = answer.refusal
    return "deny", str(no.reason), no.reason in _FAULTS


_FAULTS = frozenset({"internal_error", "ledger_unavailable", "outcome_unknown", "upstream_failed", "policy_error"})
