"""Live pages: a stream that says that something is new, and never what: that, a page asks for itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

from edge.http import Incoming, StreamResponse, relay
from trust.reasons import Reason, Unverifiable

BEAT_S: Final = 15.0
MAX_STREAMS: Final = 500
MAX_OF_ONE: Final = 25
"""Of one person, who must not take the live pages of all."""


class Signals:
    """One stream for each open page; topics are told once however often they occurred meanwhile."""

    def __init__(self) -> None:
        self._streams: set[_Stream] = set()
        self._of: Counter[str] = Counter()
        self._closed = False

    def tell(self, topic: str) -> None:
        """Something about *topic* is new."""
        for stream in self._streams:
            stream.tell(topic)

    def close(self) -> None:
        """End all streams: nothing may hold up a stop."""
        self._closed = True
        for stream in self._streams:
            stream.tell("")

    async def serve(self, incoming: Incoming, name: str) -> StreamResponse:
        """To a page of the person *name*, until it goes away, or we do; or :class:`Unverifiable`."""
        if len(self._streams) >= MAX_STREAMS or self._of[name] >= MAX_OF_ONE:
            raise Unverifiable(Reason.OVERLOADED, "too many pages are live already")
        stream = _Stream()
        self._streams.add(stream)
        self._of[name] += 1
        try:
            headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            response, _ = await relay(incoming, self._chunks(stream), 200, headers, lambda: self._closed)
            return response
        finally:
            self._streams.discard(stream)
            self._of[name] -= 1
            if not self._of[name]:
                del self._of[name]

    async def _chunks(self, stream: _Stream) -> AsyncIterator[bytes]:
        yield b"retry: 1000\n\n"
        while True:
            topics = await stream.next(BEAT_S)
            if self._closed:
                return
            told = "".join(f"event: {topic}\ndata:\n\n" for topic in sorted(topics))
            yield told.encode() or b": still here\n\n"


class _Stream:
    def __init__(self) -> None:
        self._topics: set[str] = set()
        self._wake = asyncio.Event()

    def tell(self, topic: str) -> None:
        self._topics.add(topic)
        self._wake.set()

    async def next(self, seconds: float) -> set[str]:
        """What is new since the last time; nothing after *seconds* of silence."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return set()
        self._wake.clear()
        topics, self._topics = self._topics, set()
        return topics
