"""A browser driven through the mesh by an existing MCP server, with its state; and servers that a sandbox holds."""

from __future__ import annotations

import json
import re
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from licet.workbench import BROWSER, BROWSER_MANIFEST
from sidecar.config import SandboxConfig, ToolServer
from sidecar.node import sandbox
from sidecar.node.upstream import UpstreamFailed
from tests.mesh import Answer, Mesh
from tests.stories.test_routing import policies, refused

pytestmark = pytest.mark.slow

PAGE = """<!doctype html><title>Desk</title><h1>Reports</h1>
<button onclick="n.textContent = +n.textContent + 1">Count</button> <p>so far <b id="n">0</b></p>"""


@asynccontextmanager
async def page() -> AsyncIterator[str]:
    async def answer(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=PAGE, content_type="text/html")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    await runner.cleanup()


def browser(cwd: Path, *more: str) -> ToolServer:
    """What it writes by itself it writes there."""
    cwd.mkdir(exist_ok=True)
    chromium = shutil.which("chromium") or "chromium"
    command = (str(BROWSER), "--executable-path", chromium, "--headless", "--isolated", "--no-sandbox", *more)
    return ToolServer(name="browser", command=command, cwd=cwd, manifest=BROWSER_MANIFEST, stateful=True)


def said(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return "\n".join(part.get("text", "") for part in answer.json["result"]["content"])


async def test_what_one_run_did_on_a_page_is_there_at_its_next_call_and_not_in_another_run(tmp_path: Path) -> None:
    async with page() as url, Mesh(tmp_path) as mesh:
        await mesh.add_node("desk", browser(tmp_path / "browser"), kind="cloud_pc")
        await mesh.ready()

        async def call(tool: str, run: str = "run_a", **args: Any) -> Answer:
            return await mesh.call(f"browser/{tool}", args, run=run)

        said(await call("browser_navigate", url=url))
        looked = said(await call("browser_snapshot"))
        [button] = re.findall(r'button "Count" \[ref=(\w+)\]', looked)
        for _ in range(2):
            said(await call("browser_click", element="the button", target=button))
        assert re.search(r"so far.*\n?.*2", said(await call("browser_snapshot")))
        assert "Reports" not in said(await call("browser_snapshot", run="run_b")), (
            "another run has a browser of its own"
        )
        held = await call("browser_evaluate", function="() => document.title")
        assert held.status == 202, "a script can do anything in a page"
        (mesh.sandbox / "notes.txt").write_text("private")
        await mesh.call("workbench/read_file", {"path": "notes.txt"}, run="run_a")
        held = await call("browser_click", element="the button", target=button)
        assert (held.status, "carry it out" in held.json["because"][0]) == (202, True)


# Sandboxes

SERVER = """
import ctypes, json, os, socket, sys
def try_to(what):
    try:
        kind, _, about = what.partition(" ")
        if kind == "read":
            return open(about).read()[:20]
        if kind == "write":
            open(about, "w").write("x")
            return "wrote"
        if kind == "connect":
            socket.create_connection(("127.0.0.1", int(about)), 1).close()
            return "connected"
        if kind == "remount":
            libc = ctypes.CDLL(None, use_errno=True)
            done = libc.mount(None, about.encode(), None, 32 | 4096, None)
            return "mounted" if done == 0 else os.strerror(ctypes.get_errno())
        return str(sorted(os.listdir(about)))
    except OSError as bad:
        return type(bad).__name__
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "f", "version": "1"}}
    if asked["method"] == "tools/list":
        schema = {"type": "object", "properties": {"what": {"type": "string"}}}
        result = {"tools": [{"name": "attempt", "description": "x", "inputSchema": schema}]}
    elif asked["method"] == "tools/call":
        result = {"content": [{"type": "text", "text": try_to(asked["params"]["arguments"]["what"])}]}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""
MANIFEST = '[tools.attempt]\ncategory = "data"\neffect = "read"\nprivileged = false\nrisk = 0\n'


@pytest.mark.parametrize("network", [False, True])
async def test_a_server_in_a_sandbox_reaches_what_was_named_and_nothing_else(tmp_path: Path, network: bool) -> None:
    code, given, kept = tmp_path / "code", tmp_path / "given", tmp_path / "kept"
    for folder in (code, given, kept):
        folder.mkdir()
    (code / "server.py").write_text(SERVER)
    (tmp_path / "manifest.toml").write_text(MANIFEST)
    (given / "a.txt").write_text("for it")
    config = SandboxConfig(read=(code, given), write=(kept,), network=network)
    server = ToolServer(
        name="held",
        command=(sys.executable, str(code / "server.py")),
        manifest=tmp_path / "manifest.toml",
        sandbox=config,
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with Mesh(tmp_path, policies=policies()) as mesh:
            await mesh.add_node("node-2", server)
            await mesh.ready()

            async def attempt(what: str) -> str:
                return said(await mesh.call("held/attempt", {"what": what}))

            assert await attempt(f"read {given / 'a.txt'}") == "for it"
            assert await attempt(f"write {kept / 'b.txt'}") == "wrote"
            assert (kept / "b.txt").exists()
            assert await attempt(f"write {given / 'a.txt'}") in ("OSError", "PermissionError")
            for folder in (given, "/usr", "/etc/ssl/certs"):
                assert await attempt(f"remount {folder}") == "Operation not permitted", "root or not"
            assert await attempt("list /etc/ssl/private") == "FileNotFoundError"
            for key in (mesh.home / "node-2", mesh.home / "gateway"):
                assert key.exists()
                assert await attempt(f"list {key}") == "FileNotFoundError", "no key of this machine is there"
            assert await attempt("read /etc/shadow") == "FileNotFoundError"
            reached = await attempt(f"connect {listening.getsockname()[1]}")
            assert reached == ("connected" if network else "ConnectionRefusedError")
            told = json.loads((await mesh.call("held/attempt", {"what": "list /proc"})).body)
            processes = [p for p in json.loads(told["result"]["content"][0]["text"].replace("'", '"')) if p.isdigit()]
            assert len(processes) <= 3, "it sees its own processes only"


def test_without_bubblewrap_nothing_starts_outside_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UpstreamFailed, match="install bubblewrap"):
        sandbox.prefix(SandboxConfig(), None, Path("home"))


@pytest.mark.parametrize("inside", ["", "ledger"])
def test_a_sandbox_that_shows_the_nodes_own_home_is_none(tmp_path: Path, inside: str) -> None:
    shown = tmp_path / "node" / inside
    shown.mkdir(parents=True)
    with pytest.raises(UpstreamFailed, match="its key, is none"):
        sandbox.prefix(SandboxConfig(read=(shown,)), None, tmp_path / "node")
    around = sandbox.prefix(SandboxConfig(read=(tmp_path,)), None, tmp_path / "node")
    assert around[around.index(str(tmp_path / "node")) - 1] == "--tmpfs", "what lies around it shows it empty"


def test_a_sandbox_is_for_commands_only() -> None:
    with pytest.raises(ValueError, match="sandbox with a command only"):
        ToolServer(name="x", url="http://127.0.0.1:1/mcp", sandbox=SandboxConfig())


async def test_a_page_that_is_not_asked_for_by_a_permit_is_not_opened(tmp_path: Path) -> None:
    forbids = '@id("no-net") forbid (principal, action in Action::"net", resource);'
    async with page() as url, Mesh(tmp_path, policies=policies(forbids)) as mesh:
        await mesh.add_node("desk", browser(tmp_path / "browser"))
        await mesh.ready()
        refused(await mesh.call("browser/browser_navigate", {"url": url}), "policy_forbids")
