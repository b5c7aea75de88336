"""Every reason for which Licet says no, in one table.

A reason is a stable code that agents, people and programs can act on. Its row says which HTTP status
carries it, of which class it is (RFC 9457 member ``class``), whether the same call may be tried again,
and one sentence for whoever reads it. Nothing refuses with a text of its own: a refusal names a row here
and adds detail.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class NoClass(StrEnum):
    """What would have to change for the answer to change."""

    STRUCTURAL = "structural"
    """Nothing the agent or an approver does will help: the request itself, or policy, must change."""
    GRANTABLE = "grantable"
    """A person with the right authority could allow it."""
    TRANSIENT = "transient"
    """The same request may succeed later."""


class Reason(StrEnum):
    """Stable codes; the wire, the ledger and the tests use these strings."""

    # 1 receive
    MALFORMED_REQUEST = "malformed_request"
    AMBIGUOUS_PATH = "ambiguous_path"
    AMBIGUOUS_HEADERS = "ambiguous_headers"
    AMBIGUOUS_JSON = "ambiguous_json"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    HEADER_MISMATCH = "header_mismatch"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    # 2 identify
    UNAUTHENTICATED = "unauthenticated"
    REPLAYED = "replayed"
    REPLAY_UNKNOWN = "replay_unknown"
    NOT_YOURS = "not_yours"
    REVOKED = "revoked"
    KILLED = "killed"
    DELEGATION_INVALID = "delegation_invalid"
    AUTHORITY_EXCEEDED = "authority_exceeded"
    # 3 recall
    STALE_FACTS = "stale_facts"
    STALE_BUNDLE = "stale_bundle"
    NO_BUNDLE = "no_bundle"
    UNKNOWN_SERVER = "unknown_server"
    UNKNOWN_TOOL = "unknown_tool"
    TOOL_QUARANTINED = "tool_quarantined"
    ARGUMENTS_INVALID = "arguments_invalid"
    CIRCUIT_OPEN = "circuit_open"
    # 4 evaluate, 5 decide
    POLICY_FORBIDS = "policy_forbids"
    NO_POLICY_PERMITS = "no_policy_permits"
    POLICY_ERROR = "policy_error"
    # 6 record
    LEDGER_UNAVAILABLE = "ledger_unavailable"
    # 7 hold
    APPROVAL_PENDING = "approval_pending"
    APPROVAL_DENIED = "approval_denied"
    APPROVAL_EXPIRED = "approval_expired"
    APPROVAL_CANCELLED = "approval_cancelled"
    APPROVAL_CONSUMED = "approval_consumed"
    APPROVAL_MISMATCH = "approval_mismatch"
    # 8 route, 9 execute, 10 answer
    PERMIT_INVALID = "permit_invalid"
    NO_ELIGIBLE_NODE = "no_eligible_node"
    SLO_UNSATISFIABLE = "slo_unsatisfiable"
    GATEWAY_UNREACHABLE = "gateway_unreachable"
    NODE_UNREACHABLE = "node_unreachable"
    TICKET_INVALID = "ticket_invalid"
    UPSTREAM_FAILED = "upstream_failed"
    OUTCOME_UNKNOWN = "outcome_unknown"
    OVERLOADED = "overloaded"
    UNWITNESSED = "unwitnessed"
    FORKED = "forked"
    INTERNAL_ERROR = "internal_error"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    status: int
    no_class: NoClass
    retryable: bool
    rpc_code: int
    sentence: str


_STRUCTURAL, _GRANTABLE, _TRANSIENT = NoClass.STRUCTURAL, NoClass.GRANTABLE, NoClass.TRANSIENT

# JSON-RPC codes −32060 … −32069 are ours in MCP and A2A; −32020 and −32700 … −32600 are the protocols' own.
_POLICY, _IDENTITY, _FACTS, _LEDGER, _APPROVAL, _ROUTE, _BUG = range(-32060, -32067, -1)
_INVALID_REQUEST, _PARSE_ERROR, _MCP_HEADER_MISMATCH = -32600, -32700, -32020

TABLE: dict[Reason, Row] = {
    Reason.MALFORMED_REQUEST: Row(400, _STRUCTURAL, False, _INVALID_REQUEST, "the request is not well formed"),
    Reason.AMBIGUOUS_PATH: Row(400, _STRUCTURAL, False, _INVALID_REQUEST, "the path can be read in more than one way"),
    Reason.AMBIGUOUS_HEADERS: Row(
        400, _STRUCTURAL, False, _INVALID_REQUEST, "the headers can be read in more than one way"
    ),
    Reason.AMBIGUOUS_JSON: Row(
        400, _STRUCTURAL, False, _PARSE_ERROR, "the JSON is broken, or can be read in more than one way"
    ),
    Reason.BODY_TOO_LARGE: Row(413, _STRUCTURAL, False, _INVALID_REQUEST, "the body is larger than the limit"),
    Reason.UNSUPPORTED_ENCODING: Row(
        415, _STRUCTURAL, False, _INVALID_REQUEST, "content codings are not accepted; send the bytes plain"
    ),
    Reason.UNSUPPORTED_MEDIA_TYPE: Row(
        415, _STRUCTURAL, False, _INVALID_REQUEST, "the content type is not accepted here"
    ),
    Reason.HEADER_MISMATCH: Row(400, _STRUCTURAL, False, _MCP_HEADER_MISMATCH, "a header disagrees with the body"),
    Reason.NOT_FOUND: Row(404, _STRUCTURAL, False, _INVALID_REQUEST, "there is nothing at this address"),
    Reason.METHOD_NOT_ALLOWED: Row(405, _STRUCTURAL, False, _INVALID_REQUEST, "this method is not accepted here"),
    Reason.UNAUTHENTICATED: Row(401, _STRUCTURAL, False, _IDENTITY, "the caller could not be identified"),
    Reason.REPLAYED: Row(401, _STRUCTURAL, False, _IDENTITY, "this signed request was seen before"),
    Reason.REPLAY_UNKNOWN: Row(
        503, _TRANSIENT, True, _IDENTITY, "whether this request was seen before cannot be known now"
    ),
    Reason.NOT_YOURS: Row(403, _STRUCTURAL, False, _IDENTITY, "this belongs to somebody else"),
    Reason.REVOKED: Row(403, _STRUCTURAL, False, _IDENTITY, "the identity or its authority was revoked"),
    Reason.KILLED: Row(
        403, _STRUCTURAL, False, _IDENTITY, "a person stopped whoever asks, or whose authority this uses"
    ),
    Reason.DELEGATION_INVALID: Row(403, _STRUCTURAL, False, _IDENTITY, "the delegation chain does not hold"),
    Reason.AUTHORITY_EXCEEDED: Row(
        403, _STRUCTURAL, False, _IDENTITY, "this is more than was delegated to whoever asks"
    ),
    Reason.STALE_FACTS: Row(503, _TRANSIENT, True, _FACTS, "the facts needed to decide are too old"),
    Reason.STALE_BUNDLE: Row(503, _TRANSIENT, True, _FACTS, "the policy bundle is past its not_after"),
    Reason.NO_BUNDLE: Row(503, _TRANSIENT, True, _FACTS, "no verified policy bundle is active yet"),
    Reason.UNKNOWN_SERVER: Row(403, _STRUCTURAL, False, _POLICY, "no such server is in the inventory"),
    Reason.UNKNOWN_TOOL: Row(403, _STRUCTURAL, False, _POLICY, "no such tool is in the inventory"),
    Reason.TOOL_QUARANTINED: Row(
        403, _GRANTABLE, False, _POLICY, "the tool changed since it was admitted and waits for acceptance"
    ),
    Reason.ARGUMENTS_INVALID: Row(
        403, _STRUCTURAL, False, _POLICY, "the arguments do not fit the tool's pinned schema"
    ),
    Reason.CIRCUIT_OPEN: Row(503, _TRANSIENT, True, _FACTS, "a circuit breaker is open; nothing is sent meanwhile"),
    Reason.POLICY_FORBIDS: Row(403, _STRUCTURAL, False, _POLICY, "a policy forbids this"),
    Reason.NO_POLICY_PERMITS: Row(403, _STRUCTURAL, False, _POLICY, "no policy permits this"),
    Reason.POLICY_ERROR: Row(403, _STRUCTURAL, False, _POLICY, "a policy could not be evaluated, so the answer is no"),
    Reason.LEDGER_UNAVAILABLE: Row(
        503, _TRANSIENT, True, _LEDGER, "the ledger cannot be written, so nothing may happen"
    ),
    Reason.APPROVAL_PENDING: Row(202, _GRANTABLE, True, _APPROVAL, "a person must decide; ask again later or claim it"),
    Reason.APPROVAL_DENIED: Row(403, _STRUCTURAL, False, _APPROVAL, "a person denied this"),
    Reason.APPROVAL_EXPIRED: Row(403, _GRANTABLE, False, _APPROVAL, "nobody decided in time"),
    Reason.APPROVAL_CANCELLED: Row(403, _GRANTABLE, False, _APPROVAL, "the request is over; it can be asked anew"),
    Reason.APPROVAL_CONSUMED: Row(403, _STRUCTURAL, False, _APPROVAL, "this approval was already used"),
    Reason.APPROVAL_MISMATCH: Row(
        403, _STRUCTURAL, False, _APPROVAL, "the approval is for another action, agent or state"
    ),
    Reason.PERMIT_INVALID: Row(403, _STRUCTURAL, False, _ROUTE, "the permit does not cover this request"),
    Reason.NO_ELIGIBLE_NODE: Row(
        403, _TRANSIENT, True, _ROUTE, "no node may and can run this now; constraints are never relaxed"
    ),
    Reason.SLO_UNSATISFIABLE: Row(
        403, _TRANSIENT, True, _ROUTE, "no eligible node answers as soon as it must; the objective is strict"
    ),
    Reason.GATEWAY_UNREACHABLE: Row(503, _TRANSIENT, True, _ROUTE, "the gateway cannot be reached"),
    Reason.NODE_UNREACHABLE: Row(503, _TRANSIENT, True, _ROUTE, "the chosen node could not be reached"),
    Reason.TICKET_INVALID: Row(403, _STRUCTURAL, False, _ROUTE, "the ticket does not cover this request"),
    Reason.UPSTREAM_FAILED: Row(502, _TRANSIENT, False, _ROUTE, "the tool's server failed"),
    Reason.OUTCOME_UNKNOWN: Row(
        502, _TRANSIENT, False, _ROUTE, "the action left, but whether it happened is not known"
    ),
    Reason.OVERLOADED: Row(503, _TRANSIENT, True, _ROUTE, "too much is already in flight"),
    Reason.UNWITNESSED: Row(
        503,
        _TRANSIENT,
        True,
        _LEDGER,
        "the ledger was not witnessed for too long; nothing of high risk may happen",
    ),
    Reason.FORKED: Row(409, _STRUCTURAL, False, _LEDGER, "the log contradicts what was witnessed of it"),
    Reason.INTERNAL_ERROR: Row(500, _TRANSIENT, False, _BUG, "a fault in Licet itself; the answer is no"),
}


NOTHING_HAPPENED: Final = frozenset(
    {
        Reason.KILLED,
        Reason.REVOKED,
        Reason.UNAUTHENTICATED,
        Reason.REPLAYED,
        Reason.REPLAY_UNKNOWN,
        Reason.NOT_YOURS,
        Reason.DELEGATION_INVALID,
        Reason.AUTHORITY_EXCEEDED,
        Reason.STALE_FACTS,
        Reason.CIRCUIT_OPEN,
        Reason.NO_BUNDLE,
        Reason.UNKNOWN_SERVER,
        Reason.UNKNOWN_TOOL,
        Reason.TOOL_QUARANTINED,
        Reason.ARGUMENTS_INVALID,
        Reason.POLICY_FORBIDS,
        Reason.NO_POLICY_PERMITS,
        Reason.POLICY_ERROR,
        Reason.LEDGER_UNAVAILABLE,
        Reason.APPROVAL_PENDING,
        Reason.APPROVAL_DENIED,
        Reason.APPROVAL_EXPIRED,
        Reason.APPROVAL_CANCELLED,
        Reason.APPROVAL_CONSUMED,
        Reason.APPROVAL_MISMATCH,
        Reason.NOT_FOUND,
        Reason.PERMIT_INVALID,
        Reason.NO_ELIGIBLE_NODE,
        Reason.SLO_UNSATISFIABLE,
        Reason.GATEWAY_UNREACHABLE,
        Reason.NODE_UNREACHABLE,
        Reason.TICKET_INVALID,
        Reason.OVERLOADED,
        Reason.UNWITNESSED,
        Reason.FORKED,
    }
)
"""Refusals that precede execution. After any other, what happened is not known, and the outcome says so."""


class Unverifiable(Exception):
    """Input from outside that cannot be believed: malformed, badly signed, expired, ambiguous.

    Whoever reads from a socket translates it into a recorded refusal. ``caller``: who was refused, where that is known.
    ``personal``: its detail may quote what is personal, and is told but not recorded.
    """

    def __init__(self, reason: Reason, detail: str, retry_after_s: int | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.caller = ""
        self.personal = False


def visible(text: str, limit: int = 200) -> str:
    """Text from outside made harmless to show: control, bidi and invisible characters escaped, cut at *limit*."""
    shown = "".join(c if c.isprintable() and ord(c) < 0x7F else f"\\u{{{ord(c):x}}}" for c in text[:limit])
    return shown if len(text) <= limit else shown + "…"
