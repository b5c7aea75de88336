"""Step 5, decide: from an action and a finding to Permit, Hold or Refusal. Plain and pure.

This is the only place that makes a :class:`Permit`, and nothing is forwarded without one; the architecture
test holds both.
"""

from __future__ import annotations

from typing import Literal, assert_never

import msgspec

from trust.action import Action
from trust.policy.engine import Finding
from trust.policy.terms import Terms
from trust.reasons import NOTHING_HAPPENED, Reason, Unverifiable

Step = Literal[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


class Permit(msgspec.Struct, frozen=True):
    """The action with this ``decision_id`` may leave, as exactly the bytes with digest ``payload_digest``."""

    decision_id: str
    payload_digest: str
    policies: tuple[str, ...]
    shadow: tuple[str, ...]
    approval: str | None


class Hold(msgspec.Struct, frozen=True):
    """A person must decide, on these terms."""

    terms: Terms
    policies: tuple[str, ...]
    sentences: tuple[str, ...]


class Refusal(msgspec.Struct, frozen=True):
    """No, at ``step``, for ``reason``. ``personal``: its detail may quote what is personal: told, and not recorded."""

    step: Step
    reason: Reason
    detail: str
    policies: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    retry_after_s: int | None = None
    personal: bool = False

    @classmethod
    def of(cls, step: Step, bad: Unverifiable) -> Refusal:
        return cls(step, bad.reason, bad.detail, retry_after_s=bad.retry_after_s, personal=bad.personal)

    def unrecorded(self, fault: Exception) -> Refusal:
        """What is said when this could not be recorded: never that nothing happened when something may have."""
        if self.reason not in NOTHING_HAPPENED:
            return msgspec.structs.replace(self, detail=f"{self.detail} (and it could not be recorded: {fault})")
        return msgspec.structs.replace(self, reason=Reason.LEDGER_UNAVAILABLE, detail=str(fault))


Verdict = Permit | Hold | Refusal


def decide(action: Action, finding: Finding, approval: str | None) -> Verdict:
    """The verdict on *action*; *approval* is the id of the one that *finding* took into account, if any."""
    match finding.outcome:
        case "permit":
            return Permit(action.decision_id, action.payload_digest, finding.policies, finding.shadow, approval)
        case "hold" if finding.terms is not None:
            return Hold(finding.terms, finding.policies, finding.sentences)
        case "hold" | "refuse":
            reason = finding.reason or Reason.POLICY_ERROR
            by = f"forbidden by {', '.join(finding.policies)}" if finding.policies else f"nothing permits {action.name}"
            errors = "; ".join(finding.errors) if reason is Reason.POLICY_ERROR else ""
            detail = "; ".join(finding.sentences) or errors or by
            return Refusal(5, reason, detail, finding.policies, finding.errors)
        case _:
            assert_never(finding.outcome)
