"""A streamed answer on its way to the agent: passed on as it comes, measured, and ended exactly once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edge.client import Broken, Reply
from trust.mcp import MAX_TAIL_BYTES

Ending = Literal["complete", "broken", "abandoned"]


@dataclass(frozen=True, slots=True)
class End:
    """``digest`` (SHA-256, hexadecimal) and ``size`` are of what was passed on, ``tail`` is the last of it."""

    how: Ending
    digest: str
    size: int
    tail: bytes


class Stream:
    """Iterate, then :meth:`aclose`; *on_end* hears how it ended even if nobody ever iterated. *salt* begins what the
    digest is of."""

    def __init__(self, reply: Reply, on_end: Callable[[End], None], salt: bytes = b"") -> None:
        self._chunks = reply.chunks()
        self._reply = reply
        self._on_end = on_end
        self._digest = hashlib.sha256(salt)
        self._size = 0
        self._tail = bytearray()
        self._ended = False

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            await self._end("complete")
            raise
        except Broken as bad:
            await self._end("broken")
            raise ConnectionError(str(bad)) from None
        self._digest.update(chunk)
        self._size += len(chunk)
        self._tail += chunk
        del self._tail[:-MAX_TAIL_BYTES]
        return chunk

    async def aclose(self) -> None:
        await self._end("abandoned")

    async def _end(self, how: Ending) -> None:
        if not self._ended:
            self._ended = True
            self._on_end(End(how, self._digest.hexdigest(), self._size, bytes(self._tail)))
            self._reply.close()
