"""The processes of a benchmark, each pinned to a core (or ``any``): ``python -m loadtests.parts NAME CORE ARGUMENTS…``."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import uvloop
from aiohttp import web

from edge import run
from edge.client import Client
from edge.http import Incoming, Response
from gateway.app import Gateway
from gateway.config import BreakerConfig, GatewayConfig
from sidecar.app import Sidecar
from sidecar.config import NodeConfig, SidecarConfig, ToolServer
from sidecar.node.app import Node
from trust import wire

RESULT = b'{"id":"x","jsonrpc":"2.0","result":{"content":[{"text":"ok","type":"text"}],"isError":false,"resultType":"complete"}}'
TOOLS = [
    {
        "name": "echo",
        "description": "Echo.",
        "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}},
    }
]


def announce(part: run.Part) -> None:
    print(part.port, flush=True)


class Serving:
    """A bare aiohttp low-level server as a part."""

    def __init__(self) -> None:
        self.port = 0

    async def start(self) -> None:
        self.runner = web.ServerRunner(web.Server(self.answer, access_log=None))
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0, backlog=1024).start()
        self.port = int(self.runner.addresses[0][1])

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        raise NotImplementedError

    async def drain(self) -> None:
        """Nothing here takes long."""

    async def stop(self) -> None:
        await self.runner.cleanup()


class Tool(Serving):
    """An MCP server that answers at once."""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        message = json.loads(await request.read())
        match message["method"]:
            case "tools/list":
                result: dict[str, object] = {"tools": TOOLS}
            case "server/discover":
                result = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
            case _:
                return web.Response(body=RESULT, content_type="application/json")
        return web.json_response({"jsonrpc": "2.0", "id": message["id"], "result": result})


class PassThrough(Serving):
    """What one writes first: an aiohttp server that sends the body on with one shared aiohttp client."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target

    async def start(self) -> None:
        self.client = Client()
        await super().start()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        async with self.client.send("POST", self.target, {"Content-Type": "application/json"}, body) as reply:
            return web.Response(status=reply.status, body=await reply.read(), content_type="application/json")


class InstantGateway(Gateway):
    """A real gateway whose dispatch answers at once: the next hop that costs nothing."""

    async def start(self) -> None:
        await super().start()
        headers = {"Content-Type": "application/json", wire.UPSTREAM_STATUS_HEADER: "200", wire.NODE_HEADER: "instant"}

        async def instant(_incoming: Incoming) -> Response:
            return Response(body=RESULT, headers=headers)

        self._api.routes.add("POST", "/v1/dispatch", instant)


def _config(home: Path) -> GatewayConfig:
    """No circuit breakers: a benchmark is just what they are there to stop."""
    return GatewayConfig(home=home, port=0, breaker=BreakerConfig(loop=0, burst=0))


def make(name: str, arguments: list[str]) -> run.Part:
    given = json.loads(arguments[0]) if arguments else {}
    home = Path(given.get("home", "."))
    match name:
        case "tool":
            return Tool()
        case "pass":
            return PassThrough(given["target"])
        case "gateway":
            return Gateway(_config(home))
        case "instant":
            return InstantGateway(_config(home))
        case "sidecar":
            return Sidecar(
                SidecarConfig(home=home, port=0, gateway_url=given["gateway"], enrolment_token=given["token"])
            )
        case "node":
            server = ToolServer(name="bench", url=given["tool"], manifest=Path(given["manifest"]))
            return Node(
                NodeConfig(
                    home=home, port=0, gateway_url=given["gateway"], enrolment_token=given["token"], servers=(server,)
                )
            )
    raise SystemExit(f"unknown part {name}")


class Connection(asyncio.Protocol):
    """One keep-alive connection that sends the same request again as soon as it is answered."""

    def __init__(self, request: bytes, until: float, took: list[float], done: asyncio.Future[None]) -> None:
        self.request, self.until, self.took, self.done = request, until, took, done
        self.buffer = b""
        self.bad = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._send()

    def _send(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        now = time.perf_counter()
        self.took.append(now - self.sent)
        self.bad += not head.startswith(b"HTTP/1.1 200")
        self.buffer = b""
        if now < self.until:
            self._send()
        else:
            self.transport.close()
            if not self.done.done():
                self.done.set_result(None)


async def load(port: int, request: bytes, connections: int, seconds: float) -> dict[str, float]:
    """Requests per second, latency in milliseconds, and how many were not answered with 200."""
    loop = asyncio.get_running_loop()
    took: list[float] = []
    made: list[Connection] = []
    waiting = []
    begin = time.perf_counter()
    for _ in range(connections):
        done: asyncio.Future[None] = loop.create_future()
        connection = Connection(request, begin + seconds, took, done)
        made.append(connection)
        waiting.append(done)
        await loop.create_connection(lambda c=connection: c, "127.0.0.1", port)
    async with asyncio.timeout(seconds + 30):
        await asyncio.gather(*waiting)
    elapsed = time.perf_counter() - begin
    took.sort()
    return {
        "rate": len(took) / elapsed,
        "p50_ms": took[len(took) // 2] * 1000,
        "p99_ms": took[int(len(took) * 0.99)] * 1000,
        "count": len(took),
        "bad": sum(c.bad for c in made),
    }


def main() -> None:
    name, core, *arguments = sys.argv[1:]
    if core != "any":
        os.sched_setaffinity(0, {int(core) % (os.cpu_count() or 1)})
    if name == "load":
        given = json.loads(arguments[0])
        request = bytes.fromhex(given["request"])
        print(json.dumps(uvloop.run(load(given["port"], request, given["connections"], given["seconds"]))))
        return
    part = make(name, arguments)
    run.run(part, lambda: announce(part))


if __name__ == "__main__":
    main()
