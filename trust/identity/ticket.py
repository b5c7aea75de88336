"""Tickets: the gateway's word to one node that it may execute one action, once, now.

In two forms, as requests: signed with the gateway's key, which proves it to anybody, or with a MAC within the session
that the node opened, which costs a tenth. What can do great harm is always signed.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Final

import msgspec

from trust.canonical import sha256_hex
from trust.identity import jws
from trust.identity.keys import PublicKey, Signer, b64url, unb64url
from trust.reasons import Reason, Unverifiable

TYP: Final = "licet-ticket+jwt"
MAX_LIFE_S: Final = 30
CLOCK_SKEW_S: Final = 5


class Ticket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``payload`` is the SHA-256 of the exact bytes to execute, ``credentials`` of what the gateway injects,
    ``tool_digest`` pins the tool as it was judged; ``epoch`` is the node's lease, ``key`` the public key (base64url)
    that the node holds; ``authority`` are the tokens of a delegation chain; ``attempt``: which one of the action's this
    is; ``holds``: for data that asks for it, which capabilities the node has, and how that is known; ``body``: the
    SHA-256 of what is brought there."""

    id: str
    action_id: str
    node: str
    key: str
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
    authority: tuple[str, ...] = ()
    attempt: int = 1
    holds: tuple[str, ...] = ()
    body: str = ""


def seal(ticket: Ticket, key: Signer) -> str:
    return jws.seal(msgspec.json.encode(ticket), TYP, key)


def seal_within(ticket: Ticket, session: str, key: bytes) -> str:
    """``session~payload~mac``, under the *key* of the *session* for this direction."""
    signed = f"{session}~{b64url(msgspec.json.encode(ticket))}"
    return f"{signed}~{b64url(hmac.digest(key, signed.encode('ascii'), 'sha256'))}"


def is_signed(token: str) -> bool:
    """Whether *token* is in the form that proves itself to third parties."""
    return "~" not in token


def open_ticket(
    token: str,
    *,
    gateway: PublicKey,
    sessions: Callable[[str], bytes | None],
    node: str,
    key: str,
    epoch: int,
    payload: str,
    credentials: str,
    now: float,
) -> Ticket:
    """The ticket in *token* if it lets *node*, with its *key*, in this *epoch* execute *payload* now. *sessions*: the
    key of an open session by its id, or None. Spending it (once per ``id``) is the caller's.
    """
    ticket = _read(jws.open_sealed(token, TYP, gateway) if is_signed(token) else _within(token, sessions), now)
    if ticket.node != node:
        raise _refuse("made for another node")
    if ticket.key != key:
        raise _refuse("made for another key than this node has")
    if ticket.epoch != epoch:
        raise _refuse(f"made for epoch {ticket.epoch} of this node, which is in epoch {epoch}")
    if ticket.payload != payload:
        raise _refuse("made for other bytes")
    if ticket.credentials != credentials:
        raise _refuse("made for other credentials")
    return ticket


def use(token: str, body: bytes, key: Signer) -> str:
    """The node's own word (base64url) that it brings exactly *body* under this ticket: for data that takes it from
    nobody else."""
    return b64url(key.sign(_use_of(token, body)))


def open_used(token: str, proof: str, body: bytes, *, gateway: PublicKey, now: float) -> Ticket:
    """The ticket in *token*, if the *gateway* signed it for exactly *body*, it holds now, and the node for whose key it
    was made brings it; else :class:`Unverifiable`. Spending it (once per ``id``) is the caller's."""
    if not is_signed(token):
        raise _refuse("it proves itself to the node only; expected one that the gateway signed")
    ticket = _read(jws.open_sealed(token, TYP, gateway), now)
    if ticket.body != sha256_hex(body):
        raise _refuse("made for other bytes")
    PublicKey(unb64url(ticket.key)).verify(unb64url(proof), _use_of(token, body))
    return ticket


def _use_of(token: str, body: bytes) -> bytes:
    return f"licet-ticket-use {sha256_hex(token.encode())} {sha256_hex(body)}".encode()


def _read(content: bytes, now: float) -> Ticket:
    """The ticket that *content* is, if it holds now."""
    try:
        ticket = msgspec.json.decode(content, type=Ticket)
    except msgspec.DecodeError as bad:
        raise _refuse(str(bad)) from None
    if not ticket.issued_at - CLOCK_SKEW_S <= now < ticket.deadline:
        raise _refuse("outside of its time")
    if ticket.deadline - ticket.issued_at > MAX_LIFE_S:
        raise _refuse("lives too long")
    return ticket


def _within(token: str, sessions: Callable[[str], bytes | None]) -> bytes:
    session, _, rest = token.partition("~")
    payload, _, mac = rest.partition("~")
    key = sessions(session)
    if key is None:
        raise _refuse("made within a session that is not open")
    expected = hmac.digest(key, f"{session}~{payload}".encode(), "sha256")
    if not hmac.compare_digest(unb64url(mac), expected):
        raise _refuse("the MAC does not verify")
    return unb64url(payload)


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.TICKET_INVALID, f"ticket: {detail}")
