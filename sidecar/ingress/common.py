"""What every protocol's answer carries, and how runs are named."""

from __future__ import annotations

import re
from typing import Any, Final

from sidecar.answers import Allowed, Answer, Held, Refused
from trust import wire
from trust.reasons import Reason, Unverifiable, visible

_RUN: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def require_run(run: str) -> str:
    if _RUN.fullmatch(run) is None:
        raise Unverifiable(
            Reason.MALFORMED_REQUEST, f'run "{visible(run)}": expected 1 to 64 of letters, digits, "_.:-"'
        )
    return run


def decision_headers(answer: Answer) -> dict[str, str]:
    """The three headers that tell, in every protocol, what was decided and where it is recorded."""
    match answer:
        case Allowed():
            decision = "allow"
        case Held():
            decision = "hold"
        case Refused():
            decision = "deny"
    headers = {wire.DECISION_HEADER: decision, wire.DECISION_ID_HEADER: answer.decision_id}
    if isinstance(answer, Allowed) and answer.node:
        headers[wire.NODE_HEADER] = answer.node
    if answer.audit is not None:
        headers[wire.AUDIT_HEADER] = str(answer.audit)
    return headers


def audit_member(answer: Answer) -> dict[str, Any] | None:
    """The same for JSON bodies."""
    return None if answer.audit is None else {"origin": answer.audit.origin, "index": answer.audit.index}
