"""A part that is told to end finishes what it has in hand, and takes nothing new on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from loadtests.bench import MANIFEST
from loadtests.parts import Tool
from sidecar.config import ToolServer
from tests.mesh import Answer, Mesh, policy_files

pytestmark = pytest.mark.slow
PERMIT = '@id("bench") permit(principal, action in Action::"server/bench", resource);'
PARTS = ("gateway", "node", "sidecar")


class Slow(Tool):
    """A tool that answers when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.may = asyncio.Event(), asyncio.Event()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if b"tools/call" in await request.read():
            self.asked.set()
            await self.may.wait()
        return await super().answer(request)


class Running:
    """A mesh with one call that runs."""

    def __init__(self, mesh: Mesh, tool: Slow) -> None:
        self.mesh, self.tool = mesh, tool

    def call(self) -> asyncio.Task[Answer]:
        return asyncio.create_task(self.mesh.call("bench/echo", {"text": "x"}))

    async def warm(self) -> None:
        """Two connections everywhere."""
        self.tool.may.set()
        assert [answer.status for answer in await asyncio.gather(self.call(), self.call())] == [200, 200]
        self.tool.may.clear()
        self.tool.asked.clear()

    def draining(self, part: str, seconds: float) -> asyncio.Task[None]:
        told = getattr(self.mesh, part)
        told.config = told.config.model_copy(update={"drain_s": seconds})
        return asyncio.create_task(told.drain())


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    tool = Slow()
    await tool.start()
    (tmp_path / "bench.toml").write_text(MANIFEST)
    server = ToolServer(name="bench", url=f"http://127.0.0.1:{tool.port}/mcp", manifest=tmp_path / "bench.toml")
    plain = {name: text for name, text in policy_files().items() if not name.startswith("cases/")}
    async with Mesh(tmp_path / "mesh", servers=[server], policies=plain) as mesh:
        assert (await mesh.activate({**plain, "bench.cedar": PERMIT})).status == 200
        await mesh.ready()
        try:
            yield Running(mesh, tool)
        finally:
            tool.may.set()
            await tool.stop()


@pytest.mark.parametrize("part", PARTS)
async def test_what_runs_ends_well_and_nothing_new_begins(running: Running, part: str) -> None:
    await running.warm()
    first = running.call()
    await running.tool.asked.wait()
    draining = running.draining(part, 30.0)
    await asyncio.sleep(0.2)
    assert not draining.done()
    if part == "sidecar":
        with pytest.raises(OSError, match="onnect"):
            await asyncio.open_connection("127.0.0.1", running.mesh.sidecar.port)
    elif part == "node":
        for reason in ("overloaded", "no_eligible_node"):  # by the connection that there is, and by none
            new = (await asyncio.wait_for(running.call(), 10)).json
            assert (new["reason"], new["retryable"]) == (reason, True), new
    running.tool.may.set()
    assert (await first).status == 200
    async with asyncio.timeout(30):
        await draining


@pytest.mark.parametrize("part", PARTS)
async def test_nobody_waits_for_longer_than_is_said(running: Running, part: str) -> None:
    first = running.call()
    await running.tool.asked.wait()
    async with asyncio.timeout(30):
        await running.draining(part, 0.3)
    assert not first.done()
    running.tool.may.set()
    assert (await first).status == 200


async def test_who_asks_a_gateway_that_ends_is_answered_and_asks_another_next(running: Running) -> None:
    await running.warm()
    held = running.call()
    await running.tool.asked.wait()
    draining = running.draining("gateway", 30.0)
    await asyncio.sleep(0.1)
    async with running.mesh.http.get(f"{running.mesh.gateway_url}/readyz") as known:
        assert known.headers["Connection"] == "close", "whoever was connected connects elsewhere next"
    with pytest.raises(OSError, match="Connect"):
        await running.mesh.http.get(f"{running.mesh.gateway_url}/readyz")
    running.tool.may.set()
    assert (await held).status == 200
    await draining
