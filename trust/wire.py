"""What travels between sidecar, gateway and node: a statement in JSON, then the payload's bytes untouched.

Body of a dispatch or an execution: length of the statement (u32, big-endian), the statement, the payload body.
The whole body is covered by the content digest of the signed request, or by the ticket's payload digest.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from trust.action import Action, Payload
from trust.canonical import MAX_DEPTH, read_object
from trust.mcp import Message, read_message
from trust.reasons import Reason, Unverifiable
from trust.trace import Trace

OUTBOUND: Final = "outbound:"
"""The address of a node that cannot be reached: it connects, and gets its work on its own connections."""
DISPATCH_TYPE: Final = "application/licet-dispatch"
EXECUTE_TYPE: Final = "application/licet-execute"
TICKET_HEADER: Final = "licet-ticket"
USE_HEADER: Final = "licet-ticket-use"
USED_HEADER: Final = "licet-used"
NODE_HEADER: Final = "Licet-Node"
TRACE_HEADER: Final = "licet-trace"
UPSTREAM_STATUS_HEADER: Final = "licet-upstream-status"
DECISION_HEADER: Final = "Licet-Decision"
EDITED_HEADER: Final = "Licet-Edited"
DECISION_ID_HEADER: Final = "Licet-Decision-Id"
AUDIT_HEADER: Final = "Licet-Audit"

MAX_STATEMENT_BYTES: Final = 1 << 20
_LENGTH_BYTES: Final = 4
_encoder = msgspec.json.Encoder()


Id = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")]
"""What is remembered, recorded and shown of one action: short and plain."""


NodeKind = Literal["on_prem", "cloud_pc", "edge", "cloud"]


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a caller may narrow: a node by name, nodes of a kind, and how soon it wants an answer (milliseconds);
    ``strict``: or none at all."""

    pin: Id | None = None
    kind: NodeKind | None = None
    slo_ms: Annotated[int, msgspec.Meta(ge=1, le=3_600_000)] | None = None
    strict: bool = False


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The agent's own signature under what it asked of a sidecar that others share: its token, the signature's base
    (RFC 9421) and value (base64url), and the ``body`` of the request, if that is not the payload itself."""

    wit: str
    base: str
    signature: str
    body: str = ""


class Dispatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A permitted action on its way to the gateway. ``facts`` are those of the decision; ``intent`` is
    ``<origin>#<index>`` of its entry; ``chain`` is the delegation chain whose tokens ``authority`` names; ``subject``:
    the key under which it was recorded, if it is personal; ``idempotency_key``: whatever has it happens once."""

    action_id: Id
    decision_id: Id
    run: Id
    agent: str
    principal: str
    protocol: str
    server: str
    tool: str
    method: str
    headers: list[tuple[str, str]]
    action_digest: str
    facts: dict[str, Any]
    intent: Annotated[str, msgspec.Meta(max_length=320)]
    bundle: Annotated[str, msgspec.Meta(max_length=64)]
    authority: tuple[str, ...] = ()
    chain: str = ""
    proof: Proof | None = None
    approval: Id | None = None
    subject: Annotated[str, msgspec.Meta(max_length=64)] = ""
    terms: dict[str, Any] | None = None
    place: Place = Place()
    trace_id: Annotated[str, msgspec.Meta(max_length=64)] = ""
    span_id: Annotated[str, msgspec.Meta(max_length=64)] = ""
    idempotency_key: Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]{0,128}$")] = ""


class Execute(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A ticketed action on its way to a node. ``credentials`` are headers for the upstream, injected by the gateway.
    ``salt`` (hexadecimal): of its payload's digest, if it is personal."""

    server: str
    method: str
    headers: list[tuple[str, str]]
    credentials: dict[str, str] = {}
    salt: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""
    trace_id: Annotated[str, msgspec.Meta(max_length=64)] = ""
    span_id: Annotated[str, msgspec.Meta(max_length=64)] = ""


Statement = TypeVar("Statement", Dispatch, Execute)


def encode(statement: Dispatch | Execute, body: bytes) -> bytes:
    head = _encoder.encode(statement)
    return len(head).to_bytes(_LENGTH_BYTES, "big") + head + body


def decode(data: bytes, kind: type[Statement]) -> tuple[Statement, bytes]:
    """Inverse of :func:`encode`, or :class:`Unverifiable`."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "big")
    head = data[_LENGTH_BYTES : _LENGTH_BYTES + length]
    if len(data) < _LENGTH_BYTES or len(head) < length or length > MAX_STATEMENT_BYTES:
        raise Unverifiable(Reason.MALFORMED_REQUEST, "the statement is cut short")
    try:
        statement = msgspec.json.decode(head, type=kind)
    except (msgspec.DecodeError, RecursionError) as bad:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f"statement: {bad}") from None
    if _encoder.encode(statement) != head or head.count(b"{") + head.count(b"[") > MAX_DEPTH:
        read_object(head)  # not as our encoder writes it: refuse duplicate keys, which msgspec would not notice
    return statement, data[_LENGTH_BYTES + length :]


def payload_of(statement: Dispatch | Execute, body: bytes) -> Payload:
    return Payload(statement.method, tuple(statement.headers), body)


def message_of(payload: Payload) -> Message:
    """Which MCP message *payload* is: the body decides, and for GET and DELETE the method."""
    if payload.method != "POST" and payload.body:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f"{payload.method} with a body: nobody would judge it")
    match payload.method:
        case "POST":
            return read_message(payload.body)
        case "GET":
            return Message("listen", None, "", "mcp:listen", {}, False)
        case "DELETE":
            return Message("close", None, "", "mcp:close", {}, False)
    raise Unverifiable(Reason.METHOD_NOT_ALLOWED, f"MCP uses POST, GET and DELETE, not {payload.method}")


def action_of(dispatch: Dispatch, body: bytes) -> tuple[Action, Message]:
    """The action as the bytes say it, and the message that they are; :class:`Unverifiable` (``permit_invalid``)
    if the statement says another."""
    payload = payload_of(dispatch, body)
    message = message_of(payload)
    if message.tool != dispatch.tool:
        raise Unverifiable(Reason.PERMIT_INVALID, f"the statement names {dispatch.tool}, the bytes are {message.tool}")
    action = Action(
        id=dispatch.action_id,
        decision_id=dispatch.decision_id,
        protocol="native" if dispatch.protocol == "native" else "mcp",
        server=dispatch.server,
        tool=message.tool,
        arguments=message.arguments,
        payload=payload,
        run=dispatch.run,
        trace=Trace(dispatch.trace_id, dispatch.span_id),
    )
    return action, message
