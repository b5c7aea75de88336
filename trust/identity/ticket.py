"""Tickets: the gateway's word to one node that it may execute one action, once, now."""

from __future__ import annotations

from typing import Final

import msgspec

from trust.identity import jws
from trust.identity.keys import PublicKey, Signer
from trust.reasons import Reason, Unverifiable

TYP: Final = "licet-ticket+jwt"
MAX_LIFE_S: Final = 30
CLOCK_SKEW_S: Final = 5


class Ticket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``payload`` is the SHA-256 of the exact bytes to execute, ``credentials`` of what the gateway injects,
    ``tool_digest`` pins the tool as it was judged; ``epoch`` is the node's lease."""

    id: str
    action_id: str
    node: str
    epoch: int
    server: str
    tool: str
    agent: str
    principal: str
    run: str
    payload: str
    tool_digest: str
    action_digest: str
    approval: str | None
    credentials: str
    issued_at: int
    deadline: int


def seal(ticket: Ticket, key: Signer) -> str:
    return jws.seal(msgspec.json.encode(ticket), TYP, key)


def open_ticket(
    token: str, *, gateway: PublicKey, node: str, epoch: int, payload: str, credentials: str, now: float
) -> Ticket:
    """The ticket in *token* if it lets *node* in this *epoch* execute *payload* now.

    Spending it (once per ``id``) is the caller's.
    """
    content = jws.open_sealed(token, TYP, gateway)
    try:
        ticket = msgspec.json.decode(content, type=Ticket)
    except msgspec.DecodeError as bad:
        raise _refuse(str(bad)) from None
    if ticket.node != node:
        raise _refuse("made for another node")
    if ticket.epoch != epoch:
        raise _refuse(f"made for epoch {ticket.epoch} of this node, which is in epoch {epoch}")
    if not ticket.issued_at - CLOCK_SKEW_S <= now < ticket.deadline:
        raise _refuse("outside of its time")
    if ticket.deadline - ticket.issued_at > MAX_LIFE_S:
        raise _refuse("lives too long")
    if ticket.payload != payload:
        raise _refuse("made for other bytes")
    if ticket.credentials != credentials:
        raise _refuse("made for other credentials")
    return ticket


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.TICKET_INVALID, f"ticket: {detail}")
