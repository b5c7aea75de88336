"""What a node offers: its tool servers, started and kept running, and the tools that each of them lists now."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from edge.client import Client
from sidecar.config import ToolServer
from sidecar.node.admission import inventory_of, unlisted
from sidecar.node.http_upstream import HttpUpstream
from sidecar.node.kept import Kept
from sidecar.node.stdio_upstream import StdioUpstream
from sidecar.node.upstream import Upstream, UpstreamFailed
from trust.identity.ticket import Ticket
from trust.policy.inventory import Server, Tool
from trust.reasons import Reason, Unverifiable

LIST_TIMEOUT_S: Final = 20.0
START_TIMEOUT_S: Final = 35.0
_log = logging.getLogger("licet.node")


class _Offer(msgspec.Struct, frozen=True):
    """What a server listed, and which of its processes or sessions said so."""

    generation: int
    server: Server


class Offers:
    """Of one node. ``look_again`` is set when what was listed may not hold any more."""

    def __init__(self, servers: Sequence[ToolServer], to_tools: Client, home: Path) -> None:
        self._servers = {server.name: server for server in servers}
        self._to_tools = to_tools
        self._home = home
        self._kept = {
            server.name: Kept(server.name, partial(_child, server, home), time.monotonic)
            for server in servers
            if server.stateful
        }
        self.upstreams: dict[str, Upstream] = {}
        self._offers: dict[str, _Offer] = {}
        self.look_again = asyncio.Event()

    async def start(self) -> None:
        """Every server answers and lists its tools, or :class:`UpstreamFailed`."""
        await asyncio.gather(*(self._start(server) for server in self._servers.values()))
        await self.look()
        silent = [name for name in self._servers if name not in self._offers]
        if silent:
            raise UpstreamFailed(f"{', '.join(silent)}: no list of tools (the reason was logged)")
        for name, server in self._servers.items():
            for tool in unlisted(server, self._offers[name].server):
                _log.warning("%s: [tools.%s]: %s lists no such tool", server.manifest, tool, name)

    async def _start(self, server: ToolServer) -> None:
        upstream: Upstream = HttpUpstream(server.url, self._to_tools) if server.url else _child(server, self._home)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await upstream.start()
        except TimeoutError:
            raise UpstreamFailed(f"{server.name} did not answer within {START_TIMEOUT_S:.0f} s") from None
        self.upstreams[server.name] = upstream

    async def look(self) -> dict[str, Server]:
        """What each server offers now; one that does not say is not offered."""
        await asyncio.gather(*(self._look_at(server) for server in self._servers.values()))
        return self.now()

    def now(self) -> dict[str, Server]:
        """What was offered when this node looked last."""
        return {name: found.server for name, found in self._offers.items()}

    async def _look_at(self, server: ToolServer) -> None:
        upstream = self.upstreams[server.name]
        generation = upstream.generation
        try:
            async with asyncio.timeout(LIST_TIMEOUT_S):
                listed = await upstream.list_tools()
            self._offers[server.name] = _Offer(generation, inventory_of(server, listed))
        except Exception as bad:
            # Whatever it is, what was listed before may not hold any more.
            self._offers.pop(server.name, None)
            _log.warning("%s is not offered: %s: %s", server.name, type(bad).__name__, bad)

    def as_judged(self, entitled: Ticket) -> tuple[Upstream, Tool]:
        """The server, if what runs now was looked at, and offers the tool exactly as it was judged."""
        upstream, offer = self.upstreams.get(entitled.server), self._offers.get(entitled.server)
        if upstream is None:
            raise Unverifiable(Reason.TICKET_INVALID, f"{entitled.server} is not offered here")
        if offer is None or offer.generation != upstream.generation:
            self.look_again.set()
            again = f"{entitled.server} was started again; its tools are compared first"
            raise Unverifiable(Reason.NO_ELIGIBLE_NODE, again)
        tool = offer.server.tools.get(entitled.tool)
        if tool is None or tool.digest != entitled.tool_digest:
            name, todo = f"{entitled.server}/{entitled.tool}", f"`licet servers diff {entitled.server}`"
            told = f"{name} is not offered here as it was judged: an operator looks at it with {todo}"
            raise Unverifiable(Reason.TOOL_QUARANTINED, told)
        return upstream, tool

    def bound(self, server: str) -> bool:
        """Whether the server looks at the ticket of each call itself."""
        return self._servers[server].bound

    @asynccontextmanager
    async def serving(self, entitled: Ticket, upstream: Upstream) -> AsyncIterator[Upstream]:
        """The process or session that answers: *upstream* itself, or the run's own of a server that keeps state."""
        kept = self._kept.get(entitled.server)
        if kept is None:
            yield upstream
            return
        async with kept.of(entitled.agent, entitled.run) as own:
            yield own

    async def keep_children(self, every_s: float) -> None:
        """Start dead children again, each on its own: one that cannot start takes nothing else away."""
        while True:
            await asyncio.sleep(every_s)
            await asyncio.gather(*(kept.tidy() for kept in self._kept.values()))
            dead = [n for n, u in self.upstreams.items() if isinstance(u, StdioUpstream) and not u.alive]
            await asyncio.gather(*(self._revive(name) for name in dead))

    async def _revive(self, name: str) -> None:
        """What it offers then may have changed, so nothing of it is called before a look."""
        self._offers.pop(name, None)
        try:
            await self.upstreams[name].close()
            await self.upstreams[name].start()
        except Exception as bad:
            _log.warning("%s could not be started again, trying on: %s", name, bad)
        self.look_again.set()

    async def close(self) -> None:
        await asyncio.gather(*(kept.close() for kept in self._kept.values()))
        await asyncio.gather(*(upstream.close() for upstream in self.upstreams.values()))


def _child(server: ToolServer, home: Path) -> StdioUpstream:
    return StdioUpstream(server.command, server.env, server.cwd, server.sandbox, home)
