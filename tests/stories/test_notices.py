"""People hear that something waits, by every way, with a link and a digest and nothing of what was asked."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiosmtpd.controller import Controller
from standardwebhooks import Webhook

from edge.webhooks import signature
from gateway.config import NotifyConfig
from sidecar.config import WebhookConfig
from tests.stories.test_approvals import PAY, BankMesh, bank_mesh, edit, held, state

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes ...").decode()


class Heard:
    """A real HTTP server that hears webhooks and chat messages; *refuse*: so many are answered with 503 first."""

    def __init__(self, refuse: int = 0) -> None:
        self.refuse = refuse
        self.messages: list[tuple[str, dict[str, str], bytes]] = []

    async def start(self) -> str:
        self.runner = web.ServerRunner(web.Server(self._hear))
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def _hear(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        if self.refuse:
            self.refuse -= 1
            return web.Response(status=503)
        self.messages.append((request.path, dict(request.headers), body))
        return web.Response(text="ok")

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.messages) < count:
                await asyncio.sleep(0.02)


class Mails:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        self.heard.append(envelope)
        return "250 taken"


async def notified(home: Path, **config: Any) -> BankMesh:
    mesh = bank_mesh(home)
    assert isinstance(mesh, BankMesh)
    mesh.notify = NotifyConfig(**config)
    await mesh.__aenter__()
    return mesh


def test_the_signature_is_that_of_the_standard() -> None:
    body = json.dumps({"type": "approval.requested"}).encode()
    now = str(int(time.time()))
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": now,
        "webhook-signature": signature(base64.b64decode(SECRET.removeprefix("whsec_")), "msg_1", now, body),
    }
    assert Webhook(SECRET).verify(body, headers) == {"type": "approval.requested"}
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(SECRET).verify(body + b" ", headers)


@pytest.mark.slow
async def test_webhook_and_chat_hear_it_signed_and_without_what_was_asked(tmp_path: Path) -> None:
    heard = Heard(refuse=1)
    url = await heard.start()
    (tmp_path / "secret").write_text(SECRET)
    mesh = await notified(tmp_path, webhook=f"{url}/hook", webhook_secret_file=tmp_path / "secret", slack=f"{url}/chat")
    try:
        approval = await held(mesh, "close")
        await heard.wait_for(4)  # asked, and escalated after a second
        hooks = [(headers, body) for path, headers, body in heard.messages if path == "/hook"]
        told = [Webhook(SECRET).verify(body, {k.lower(): v for k, v in headers.items()}) for headers, body in hooks]
        assert [one["type"] for one in told] == ["approval.requested", "approval.escalated"]
        assert told[0]["data"]["url"] == f"{mesh.gateway.console}/console/queue/{approval}"
        assert told[1]["data"]["groups"] == ["operations", "team:leads"]
        chats = [json.loads(body)["text"] for path, _, body in heard.messages if path == "/chat"]
        assert f"/console/queue/{approval}" in chats[0]
        everything = b"".join(body for _, _, body in heard.messages)
        assert not [value for value in (PAY["to"], str(PAY["cents"])) if str(value).encode() in everything]
        assert mesh.sidecar.token.encode() not in everything
    finally:
        await mesh.__aexit__()
        await heard.runner.cleanup()


@pytest.mark.slow
async def test_mail_comes_and_nobody_waits_for_a_server_that_is_away(tmp_path: Path) -> None:
    mails = Mails()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Controller(mails, hostname="127.0.0.1", port=port)
    server.start()
    mesh = await notified(
        tmp_path, smtp=f"127.0.0.1:{port}", smtp_tls=False, smtp_from="licet@example.org", smtp_to=["fay@example.org"],
        slack="http://127.0.0.1:9/nobody",
    )  # fmt: skip
    try:
        approval = await held(mesh)
        assert (await mesh.vote(approval, who="fay")).status == 200
        assert (await mesh.claim(approval)).status == 200
        async with asyncio.timeout(30):
            while not mails.heard:
                await asyncio.sleep(0.02)
        (mail,) = mails.heard
        text = mail.content.decode()
        assert mail.rcpt_tos == ["fay@example.org"]
        assert "Subject: A request waits for a decision" in text
        assert approval in text
        assert "landlord" not in text
        assert state(mesh, approval) == "consumed"
    finally:
        await mesh.__aexit__()
        server.stop()


@pytest.mark.parametrize(
    "given",
    [
        {"webhook": "http://x/y"},
        {"smtp": "mail:25"},
        {"smtp": "mail"},
        {"smtp_from": "a@b"},
        {"smtp": "mail:25", "smtp_from": "a b", "smtp_to": ["c@d"]},
    ],
)
def test_half_a_way_is_no_way(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"together|pattern"):
        NotifyConfig(**given)


@pytest.mark.slow
async def test_the_agents_program_hears_what_was_decided_even_after_a_restart(tmp_path: Path) -> None:
    heard = Heard(refuse=2)
    url = await heard.start()
    (tmp_path / "secret").write_text(SECRET)
    mesh = bank_mesh(tmp_path)
    mesh.webhook = WebhookConfig(url=f"{url}/decided", secret_file=tmp_path / "secret")
    async with mesh:
        denied, edited = await held(mesh), await held(mesh, args={**PAY, "cents": 1})
        await mesh.vote(denied, "deny", "fay", "not today")
        await heard.wait_for(1)
        assert (tmp_path / "sidecar/awaited" / edited).exists()
        await mesh.stop("sidecar")
        await edit(mesh, edited, "flo", {**PAY, "cents": 2})
        await mesh.vote(edited, who="fay")
        await mesh.start_sidecar()
        await heard.wait_for(2)
        hooks = [(headers, body) for _, headers, body in heard.messages]
        told = [Webhook(SECRET).verify(body, {k.lower(): v for k, v in headers.items()}) for headers, body in hooks]
        assert [one["type"] for one in told] == ["approval.denied", "approval.approved"]
        assert [one["data"]["edited"] for one in told] == [False, True]
        assert "not today" in told[0]["data"]["reason"]
        assert [headers["webhook-id"] for headers, _ in hooks] == [f"msg_{denied}", f"msg_{edited}"]
        everything = b"".join(body for _, body in hooks)
        assert PAY["to"].encode() not in everything
        async with asyncio.timeout(30):
            while list((tmp_path / "sidecar/awaited").iterdir()):
                await asyncio.sleep(0.02)
        assert (await mesh.claim(edited)).status == 200
    await heard.runner.cleanup()
