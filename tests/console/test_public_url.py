"""The console behind a proxy that ends TLS and tells who came, as an Ingress does: HAProxy, and a real browser."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from loadtests.servers import await_port, free_port
from tests.console.conftest import screen
from tests.deploy.test_deploy import certificate
from tests.mesh import Mesh
from trust.ledger.entries import Refusal

pytestmark = pytest.mark.slow
NAME = "console.localhost"
"""A browser finds it by itself, and it is not the name that the console has without a proxy."""
HAPROXY = """
defaults
  mode http
  timeout connect 1s
  timeout client 1m
  timeout server 1m
frontend ingress
  bind 127.0.0.1:{port} ssl crt {pem}
  option forwardfor
  http-request set-header X-Forwarded-Proto https
  http-request set-header X-Forwarded-Host %[req.hdr(Host)]
  http-request set-header X-Real-IP %[src]
  http-request set-header Forwarded for=%[src];proto=https
  default_backend gateway
backend gateway
  server gateway 127.0.0.1:{gateway}
"""


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    port, gateway = free_port(), free_port()
    crt, key = certificate(tmp_path, NAME)
    (tmp_path / "pem").write_bytes(crt.read_bytes() + key.read_bytes())
    config = tmp_path / "haproxy.cfg"
    config.write_text(HAPROXY.format(port=port, pem=tmp_path / "pem", gateway=gateway))
    binary = shutil.which("haproxy")
    assert binary, "make debian installs haproxy"
    made = Mesh(tmp_path / "mesh", public_url=f"https://{NAME}:{port}")
    made.gateway_port = gateway
    with subprocess.Popen([binary, "-f", str(config), "-db"]) as proxy:
        try:
            await_port(port, proxy, "haproxy")
            async with made:
                yield made
        finally:
            proxy.kill()


async def test_people_decide_through_it(mesh: Mesh, browser: Browser) -> None:
    approval = (await mesh.call("workbench/delete_file", {"path": "notes.txt"})).json["approval"]
    desk = await screen(mesh, browser, "approver-1")
    assert desk.page.url == f"{mesh.public_url}/console/queue"
    [cookie] = await desk.context.cookies()
    assert (cookie["name"], cookie["secure"], cookie["domain"]) == ("__Host-licet", True, NAME)
    await desk.page.locator(f"#{approval}").get_by_role("button", name="Approve").click()
    await expect(desk.page.get_by_role("status").first).to_contain_text("approved")
    assert [vote.by for vote in mesh.gateway.desk.get(approval).votes] == ["approver-1"]
    assert desk.complaints == []


async def test_only_its_own_pages_may_call_and_nobody_is_who_a_header_says(mesh: Mesh) -> None:
    public = mesh.public_url.partition("://")[2]

    async def ask(**headers: str) -> int:
        url, sent = f"{mesh.gateway_url}/v1/nothing", {name.replace("_", "-"): value for name, value in headers.items()}
        async with mesh.http.get(url, headers=sent) as answer:
            return answer.status

    assert await ask(Host=public, Origin=mesh.public_url) == 404
    assert await ask(Host=public, Origin=f"http://{public}") == 400, "a page of that name that came without TLS"
    assert await ask(Host="elsewhere.localhost") == 400
    assert await ask(X_Forwarded_For="6.6.6.6", X_Forwarded_Host="elsewhere.localhost") == 404
    assert await ask(X_Forwarded_For="6.6.6.6", X_Request_ID="1", licet_ticket="x") == 400
    callers = [entry.caller for entry in mesh.entries("gateway") if isinstance(entry, Refusal)]
    assert all("6.6.6.6" not in caller and "127.0.0.1" in caller for caller in callers[-5:])
