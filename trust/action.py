"""An action: one thing that an agent asks to do, with the exact bytes that will do it."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import msgspec

from trust.canonical import JsonObject, jcs, sha256_hex
from trust.personal import Personal
from trust.trace import NO_TRACE, Trace

Protocol = Literal["native", "mcp"]


class Payload(msgspec.Struct, frozen=True):
    """What the tool's server will receive: an HTTP method, the protocol's own headers, and the body.

    Header names are lowercase and sorted; nothing else of the agent's request travels.
    """

    method: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def digest(self, salt: bytes = b"") -> str:
        """SHA-256 over the salt, then the count of texts, method, header names and values, and body, each of these
        behind its length."""
        texts = [self.method, *(text for pair in self.headers for text in pair)]
        parts = [len(texts).to_bytes(8, "big"), *(text.encode() for text in texts), self.body]
        return sha256_hex(salt + b"".join(len(part).to_bytes(8, "big") + part for part in parts))


class Action(msgspec.Struct, frozen=True, dict=True):
    """``tool`` is the tool's name, or ``mcp:<method>`` for what MCP offers beside tools. ``personal``: what of it may
    not stand in a ledger in plain; then every digest of it is salted."""

    id: str
    decision_id: str
    protocol: Protocol
    server: str
    tool: str
    arguments: JsonObject
    payload: Payload
    run: str
    idempotency_key: str = ""
    trace: Trace = NO_TRACE
    personal: Personal | None = None

    @cached_property
    def salt(self) -> bytes:
        return b"" if self.personal is None else self.personal.key.salt(self.canonical_arguments)

    @cached_property
    def payload_digest(self) -> str:
        return self.payload.digest(self.salt)

    @cached_property
    def canonical_arguments(self) -> bytes:
        return jcs(self.arguments)

    @cached_property
    def arguments_digest(self) -> str:
        return sha256_hex(self.salt + self.canonical_arguments)

    @cached_property
    def name(self) -> str:
        """The id of the Cedar action."""
        return f"{self.server}/{self.tool}"

    def digest(self, agent: str, principal: str, authority: tuple[str, ...], tool_digest: str) -> str:
        """What an approval is bound to: SHA-256 of the JCS form of everything that matters. Prose is left out."""
        everything = {
            "action": self.name,
            "agent": agent,
            "arguments": msgspec.Raw(self.canonical_arguments),
            "authority": authority,
            "principal": principal,
            "resource": f'Server::"{self.server}"',
            **({"salt": self.salt.hex()} if self.salt else {}),
            "server": self.server,
            "tool_schema": tool_digest,
        }
        # In the order and form of JCS already: names sorted, strings, and canonical bytes.
        return sha256_hex(msgspec.json.encode(everything))
