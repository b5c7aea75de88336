"""The approvals queue with 1,000 pending requests and 50 open consoles: ``python -m loadtests.queue``.

Ten agents ask for a hundred things each through sidecars of their own; fifty browsers' worth of clients (signed in, with
an event stream each) load the page again whenever they are told to. Everything runs in one process on loopback, so the
figures are those of the gateway, the clients and ten sidecars together.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import aiohttp
from rich.console import Console

from tests.mesh import Mesh
from tests.stories.test_approvals import bank_mesh

AGENTS: Final = 10
EACH: Final = 100
CONSOLES: Final = 50
CHANGES: Final = 30


class Screen:
    """One signed-in console: a stream, and the page whenever the stream says so."""

    def __init__(self, mesh: Mesh, person: str) -> None:
        self.mesh = mesh
        self.person = person
        self.took: list[float] = []
        self.seen: dict[str, float] = {}
        self.again = asyncio.Event()

    async def open(self) -> None:
        link = (await self.mesh.admin("POST", "/v1/console/links", who=self.person)).json["url"]
        code = link.partition("code=")[2]
        base = f"http://127.0.0.1:{self.mesh.gateway.port}"
        self.host = {"Host": self.mesh.gateway.console.partition("://")[2]}
        self.http = aiohttp.ClientSession(base, headers=self.host, cookie_jar=aiohttp.DummyCookieJar())
        origin = {"Origin": self.mesh.gateway.console, "Sec-Fetch-Site": "same-origin"}
        async with self.http.post(
            "/console/enter", data={"code": code}, headers=origin, allow_redirects=False
        ) as entered:
            self.cookie = {"Cookie": entered.headers["Set-Cookie"].partition(";")[0]}
        self.tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._load())]

    async def _listen(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None)
        async with self.http.get("/console/events", headers=self.cookie, timeout=timeout) as stream:
            async for line in stream.content:
                if line.startswith(b"event: queue"):
                    self.again.set()

    async def _load(self) -> None:
        """At most once a second, as the page does."""
        while True:
            await self.again.wait()
            self.again.clear()
            began = time.monotonic()
            async with self.http.get("/console/queue-cards", headers=self.cookie) as answer:
                text = await answer.text()
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status}: {text[:200]}")
            ended = time.monotonic()
            self.took.append(ended - began)
            for line in text.split('id="apr_')[1:]:
                self.seen.setdefault("apr_" + line.partition('"')[0], ended)
            await asyncio.sleep(max(0.0, 1.0 - (ended - began)))

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await self.http.close()


async def run() -> dict[str, Any]:
    """The figures."""
    with tempfile.TemporaryDirectory() as home:
        async with bank_mesh(Path(home)) as mesh:
            await _ask(mesh)
            screens = [Screen(mesh, ("fay", "finn", "flo", "oz", "gus")[n % 5]) for n in range(CONSOLES)]
            for screen in screens:
                await screen.open()
            await asyncio.sleep(2)
            for screen in screens:
                screen.took.clear()
            decided: list[float] = []
            for _ in range(CHANGES):
                mine, _others = mesh.gateway.desk.waiting_for(mesh.gateway.desk.electorate().people["fay"])
                began = time.monotonic()
                answer = await mesh.vote(mine[0].id, "deny", "fay", "enough")
                if answer.status != 200:
                    raise RuntimeError(answer.body)
                decided.append(time.monotonic() - began)
                await asyncio.sleep(0.5)
            began = time.monotonic()
            kill = await mesh.admin("POST", "/v1/kills", {"target": "agent-9", "reason": "a test"})
            killed = time.monotonic() - began
            if kill.status >= 300:
                raise RuntimeError(kill.body)
            loads = [took for screen in screens for took in screen.took]
            for screen in screens:
                await screen.close()
            return {
                "pending": mesh.gateway.desk.pending,
                "loads": len(loads),
                "load_ms": _spread(loads),
                "vote_ms": _spread(decided),
                "kill_ms": round(killed * 1000, 1),
            }


async def _ask(mesh: Mesh) -> None:
    async def asks(number: int) -> None:
        sidecar = await mesh.add_agent(f"agent-{number}", "ben")
        for cents in range(EACH):
            answer = await mesh.act(sidecar, "bank/refund", {"to": f"somebody {number}", "cents": cents + 1})
            if answer.status != 202:
                raise RuntimeError(answer.body)

    for number in range(AGENTS):
        await asks(number)


def _spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "p50": round(statistics.median(ordered) * 1000, 1),
        "p95": round(ordered[int(len(ordered) * 0.95)] * 1000, 1),
        "max": round(ordered[-1] * 1000, 1),
    }


if __name__ == "__main__":
    Console().print_json(json.dumps(asyncio.run(run())))
