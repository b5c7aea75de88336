"""What a node asks of a tool server, however it is reached."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from trust.action import Payload

MAX_TOOLS: Final = 2000
"""A server that lists more is not offered."""


class UpstreamFailed(Exception):
    """The server could not be asked, or its answer makes no sense."""


@dataclass(frozen=True, slots=True)
class Replied:
    """``chunks`` is there for a stream, else ``body`` is complete. ``cpu_us`` and ``memory_bytes``: what the server's
    process used for this alone, if that could be told."""

    status: int
    headers: dict[str, str]
    body: bytes
    chunks: AsyncIterator[bytes] | None = None
    cpu_us: int | None = None
    memory_bytes: int | None = None


class Upstream(Protocol):
    """One MCP server."""

    generation: int
    """Rises when what was listed may not hold any more: another process, a lost session."""

    async def start(self) -> None:
        """Reach the server, or :class:`UpstreamFailed`."""

    async def list_tools(self) -> list[dict[str, Any]]:
        """All tools as the server lists them, every page; no further than :data:`MAX_TOOLS` are passed."""

    def exchange(self, payload: Payload, added: dict[str, str]) -> AbstractAsyncContextManager[Replied]:
        """Send exactly *payload*; over HTTP with the headers *added*: credentials, and which trace this belongs to."""

    async def close(self) -> None: ...


def result_of(response: object) -> dict[str, Any]:
    """The result of a JSON-RPC response, or :class:`UpstreamFailed`."""
    if isinstance(response, dict) and isinstance(response.get("result"), dict):
        result: dict[str, Any] = response["result"]
        return result
    error = response.get("error") if isinstance(response, dict) else response
    raise UpstreamFailed(f"the server answered {str(error)[:300]}")
