"""The other workers of one sidecar, each behind a socket in a directory that only their user can enter.

An idempotency key belongs to one worker, by its digest, so that the same key is never in two hands: whoever gets a
request with another's key passes it on, with the caller that it has identified. Metrics are those of all workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec

from edge.client import Broken, Client, Unreachable, over_socket
from edge.http import Border, Incoming, Listener, Response, Server, StreamResponse
from edge.tally import Tally, Told
from sidecar.pipeline import Caller
from trust import http as rules
from trust.canonical import sha256_hex
from trust.reasons import Reason, Unverifiable
from trust.trace import HEADER as TRACEPARENT
from trust.verdict import Refusal

NAME: Final = "sibling"
ACTIONS: Final = "/actions"
TALLY: Final = "/tally"
READ_BY_ACTIONS: Final = frozenset({"content-type", "prefer", TRACEPARENT})
OF_THE_HOP: Final = frozenset({"content-length", "date", "server", "connection"})
TALLY_WITHIN_S: Final = 1.0
Act = Callable[[str, Incoming, Caller], Awaitable[StreamResponse]]
"""(agent, its request, who sent it) → the answer; whatever it raises is answered by it."""


class _Passed(msgspec.Struct, frozen=True):
    """A request on its way to the worker that its key belongs to."""

    agent: str
    caller: Caller
    headers: list[tuple[str, str]]
    body: bytes


class Siblings:
    """As one of *workers* sees them; it is *worker* itself, from 1."""

    def __init__(self, directory: Path, worker: int, workers: int) -> None:
        self.worker = worker
        self._workers = workers
        self._path = directory / str(worker)
        self._to = {
            one: Client(total_timeout_s=None, connector=over_socket(directory / str(one)))
            for one in range(1, workers + 1)
            if one != worker
        }

    def owner(self, key: str) -> int | None:
        """Which other worker *key* belongs to; None: this one."""
        owner = 1 + int(sha256_hex(key.encode())[:8], 16) % self._workers
        return None if owner == self.worker else owner

    async def open(self, act: Act, refuse: Callable[[Refusal, str], Awaitable[StreamResponse]], tally: Tally) -> None:
        """Answer what other workers pass on, and what they ask."""

        async def serve(incoming: Incoming) -> StreamResponse:
            if incoming.path == TALLY:
                return Response(body=msgspec.msgpack.encode(tally.told()))
            passed = msgspec.msgpack.decode(incoming.body, type=_Passed)
            meant = msgspec.structs.replace(incoming, headers=tuple(passed.headers), body=passed.body)
            return await act(passed.agent, meant, passed.caller)

        border = Border({NAME}, max_body=4 * rules.MAX_BODY_BYTES)
        self._listener = Listener(Server(serve, refuse, border))
        self._path.unlink(missing_ok=True)
        await self._listener.open_socket(self._path)

    async def ask(self, owner: int, agent: str, caller: Caller, incoming: Incoming) -> StreamResponse:
        """What *owner* answers to *incoming*; or :class:`Unverifiable`."""
        headers = [(name, value) for name, value in incoming.headers if name in READ_BY_ACTIONS]
        body = msgspec.msgpack.encode(_Passed(agent, caller, headers, incoming.body))
        try:
            async with self._to[owner].send("POST", f"http://{NAME}{ACTIONS}", {}, body) as reply:
                told = await reply.read()
        except Unreachable:
            away = f"worker {owner}, which knows this idempotency_key, is being started again; try again"
            raise Unverifiable(Reason.OVERLOADED, away) from None
        except Broken as bad:
            unheard = f"worker {owner}, which knows this idempotency_key, ended before it answered: {bad}"
            raise Unverifiable(Reason.OUTCOME_UNKNOWN, unheard) from None
        kept = {name: value for name, value in reply.headers.items() if name.lower() not in OF_THE_HOP}
        return Response(status=reply.status, headers=kept, body=told)

    async def tallies(self, own: Tally) -> dict[str, Told]:
        """What each worker has counted, by its number; without those that do not answer."""
        told = {str(self.worker): own.told()}
        for number, heard in zip(self._to, await asyncio.gather(*map(self._tally, self._to.values())), strict=True):
            if heard is not None:
                told[str(number)] = heard
        return told

    async def _tally(self, client: Client) -> Told | None:
        try:
            async with client.send("GET", f"http://{NAME}{TALLY}", {}, timeout_s=TALLY_WITHIN_S) as reply:
                return msgspec.msgpack.decode(await reply.read(), type=Told)
        except (Unreachable, Broken):
            return None

    async def close(self) -> None:
        """Answer nobody any more."""
        await self._listener.close()
        for client in self._to.values():
            await client.close()
