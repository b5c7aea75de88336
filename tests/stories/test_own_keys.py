"""Agents that hold their key themselves: with httpx, httpx2 and aiohttp, at the gateway and at a shared sidecar."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import httpx2
import msgspec
import pytest

from edge import keyservice
from licet.client import Credentials, SignAiohttp, SignHttpx, delegate, enroll, narrow
from sidecar.app import Sidecar
from tests.mesh import Mesh
from trust.identity.keys import PublicKey
from trust.ledger.entries import Dispatch, Intent, Refusal

pytestmark = pytest.mark.slow
READ, NOTES = "workbench/read_file", {"path": "notes.txt"}
ASK = {"tool": READ, "args": NOTES}
MCP_CALL = {
    "jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "read_file", "arguments": {"path": "notes.txt"}},
}  # fmt: skip
MCP_HEADERS = {"Mcp-Protocol-Version": "2025-06-18", "Accept": "application/json, text/event-stream"}


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path) as made:
        (made.sandbox / "notes.txt").write_text("hello")
        await made.stop("sidecar")
        made.sidecar = Sidecar(made_config(made))
        await made.sidecar.start()
        made.url = f"http://127.0.0.1:{made.sidecar.port}"
        await made.ready()
        yield made


def made_config(mesh: Mesh) -> Any:
    from sidecar.config import SidecarConfig

    return SidecarConfig(
        home=mesh.home / "sidecar", port=0, gateway_url=mesh.gateway_url, segment_bytes=1 << 20, guests=("guest",)
    )


async def guest(mesh: Mesh, name: str = "guest", via: str = "demo") -> Credentials:
    answer = await mesh.admin("POST", "/v1/agents", {"name": name, "owner": "gail", "via": via})
    assert answer.status == 201, answer.body
    home = mesh.home / name
    await asyncio.to_thread(enroll, mesh.gateway_url, answer.json["enrolment_token"], home)
    assert (home / "identity.key").stat().st_mode & 0o777 == 0o600
    return Credentials.load(home, "wimse://licet.local/sidecar/demo")


async def by_httpx(credentials: Credentials, url: str, **more: Any) -> tuple[int, Any]:
    async with httpx.AsyncClient(auth=SignHttpx(credentials), trust_env=False) as client:
        answer = await client.post(url, **more)
        return answer.status_code, answer.json()


async def by_httpx2(credentials: Credentials, url: str, **more: Any) -> tuple[int, Any]:
    async with httpx2.AsyncClient(auth=SignHttpx(credentials), trust_env=False) as client:
        answer = await client.post(url, **more)
        return answer.status_code, answer.json()


async def by_aiohttp(credentials: Credentials, url: str, **more: Any) -> tuple[int, Any]:
    async with aiohttp.ClientSession(middlewares=(SignAiohttp(credentials),)) as session:
        async with session.post(url, **more) as answer:
            return answer.status, await answer.json(content_type=None)


async def by_blocking_httpx(credentials: Credentials, url: str, **more: Any) -> tuple[int, Any]:
    def ask() -> tuple[int, Any]:
        with httpx.Client(auth=SignHttpx(credentials), trust_env=False) as client:
            answer = client.post(url, **more)
            return answer.status_code, answer.json()

    return await asyncio.to_thread(ask)


CLIENTS = [by_httpx, by_httpx2, by_aiohttp, by_blocking_httpx]


@pytest.mark.parametrize("post", CLIENTS, ids=lambda f: f.__name__)
async def test_each_client_signs_for_a_shared_sidecar_and_for_the_gateway(mesh: Mesh, post: Any) -> None:
    credentials = await guest(mesh)
    status, told = await post(credentials, f"{mesh.url}/v1/actions", json=ASK)
    assert (status, told.get("decision")) == (200, "allow"), told
    status, told = await post(credentials, f"{mesh.url}/mcp/workbench", json=MCP_CALL, headers=MCP_HEADERS)
    assert told["result"]["content"][0]["text"] == "hello"
    intents = [e for e in mesh.entries() if isinstance(e, Intent)]
    assert [(i.deed.agent, i.deed.principal, i.deed.authn) for i in intents] == [("guest", "gail", "wit")] * 2
    sent = [e for e in mesh.entries("gateway") if isinstance(e, Dispatch)]
    assert {(e.agent, e.principal) for e in sent} == {("guest", "gail")}
    at_the_gateway = Credentials.load(mesh.home / "guest")
    status, told = await post(at_the_gateway, f"{mesh.gateway_url}/v1/wit")
    assert (status, sorted(told)) == (200, ["wit"])


async def test_a_guest_is_another_agent_in_everything(mesh: Mesh) -> None:
    credentials = await guest(mesh)
    forbid = '@id("no-guests") forbid (principal == Agent::"guest", action in Action::"read", resource);'
    from tests.mesh import policy_files

    assert (await by_httpx(credentials, f"{mesh.url}/v1/actions", json=ASK))[0] == 200
    assert (await mesh.activate({**policy_files(), "x.cedar": forbid})).status == 200
    await mesh.ready()
    status, told = await by_httpx(credentials, f"{mesh.url}/v1/actions", json=ASK)
    assert (status, told["reason"], told["policy_ids"]) == (403, "policy_forbids", ["no-guests"])
    assert (await mesh.call(READ, NOTES)).status == 200
    await mesh.admin("POST", "/v1/kills", {"target": "guest", "reason": "x"})
    await asyncio.sleep(0.3)
    status, told = await by_httpx(credentials, f"{mesh.url}/v1/actions", json=ASK)
    assert told["reason"] == "killed"
    assert (await mesh.call(READ, NOTES)).status == 200
    await asyncio.sleep(2.5)
    standing = (await mesh.admin("GET", "/v1/agents/guest/standing")).json
    rules = [m["rule"] for m in standing["moved"]]
    assert rules == ["registered", "outcome"], "what a shared sidecar says of a guest proves nothing"
    own = (await mesh.admin("GET", "/v1/agents/demo/standing")).json
    assert {m["rule"] for m in own["moved"]} == {"registered", "outcome"}


async def test_a_guest_holds_waits_and_claims_with_its_own_signature(mesh: Mesh) -> None:
    credentials = await guest(mesh)
    ask = {"tool": "workbench/delete_file", "args": NOTES}
    status, told = await by_httpx(credentials, f"{mesh.url}/v1/actions", json=ask)
    assert status == 202
    approval = told["approval"]
    assert (await mesh.claim(approval)).status == 403, "the sidecar's own agent cannot claim it"
    assert (await mesh.vote(approval)).status == 200
    assert (await mesh.claim(approval)).json["reason"] in ("not_yours", "approval_mismatch", "permit_invalid")
    status, told = await by_httpx(credentials, f"{mesh.url}/v1/approvals/{approval}/claim")
    assert status == 200, told
    assert not (mesh.sandbox / "notes.txt").exists()


async def test_who_is_no_guest_here_is_refused(mesh: Mesh) -> None:
    stranger = await guest(mesh, "stranger")
    status, told = await by_httpx(stranger, f"{mesh.url}/v1/actions", json=ASK)
    assert (status, told["reason"]) == (403, "not_yours"), "not in the sidecar's configuration"
    elsewhere = await guest(mesh, "guest", via="")
    status, told = await by_httpx(elsewhere, f"{mesh.url}/v1/actions", json=ASK)
    assert (status, told["reason"]) == (503, "stale_facts"), "not registered as reached through this sidecar"


async def test_a_guests_request_is_accepted_once_for_this_sidecar_as_it_was_signed(mesh: Mesh) -> None:
    import json

    credentials = await guest(mesh)
    url, body = f"{mesh.url}/v1/actions", json.dumps(ASK).encode()
    headers = {"content-type": "application/json"}

    async def post(signed: dict[str, str], data: bytes = body) -> Any:
        return await mesh.request("POST", url, data=data, headers={**headers, **signed})

    signed = credentials.sign("POST", url, headers, body)
    assert (await post(signed)).status == 200
    assert (await post(signed)).json["reason"] == "replayed"
    other = json.dumps({**ASK, "args": {"path": "other.txt"}}).encode()
    assert (await post(credentials.sign("POST", url, headers, body), other)).json["reason"] == "unauthenticated"
    wrong = credentials.sign("POST", url, headers, body, "wimse://licet.local/sidecar/other")
    assert (await post(wrong)).json["reason"] == "unauthenticated"
    assert (await post(credentials.sign("GET", url, headers, body))).json["reason"] == "unauthenticated"


async def test_a_compromised_sidecar_cannot_act_for_its_guest(mesh: Mesh) -> None:
    """It has the key of its own agent and an old request of the guest; neither is the guest's word for another action."""
    import json

    from tests.attacks.test_forgery import dispatch, statement
    from trust.wire import Proof

    credentials = await guest(mesh)
    assert (await by_httpx(credentials, f"{mesh.url}/v1/actions", json=ASK))[0] == 200

    def made(args: Any, proof: Proof | None) -> tuple[Any, bytes]:
        asked, body = statement(mesh, args=args)
        known = mesh.sidecar.pipeline.shown.tool("workbench", "read_file")
        from trust.wire import action_of

        action = action_of(asked, body)[0]
        digest = action.digest("guest", "gail", (), known.digest if known else "")
        return msgspec.structs.replace(asked, agent="guest", principal="gail", action_digest=digest, proof=proof), body

    def proof(args: Any, **changed: Any) -> Proof:
        from trust.identity import httpsig
        from trust.identity.keys import b64url

        url, body = f"{mesh.url}/v1/actions", json.dumps({"tool": READ, "args": args}).encode()
        headers = {"content-type": "application/json"}
        signed = credentials.sign("POST", url, headers, body, changed.get("audience", ""))
        request = httpsig.Request(
            "POST", url.split("/")[2], "/v1/actions", httpsig.headers_of({**headers, **signed}), body
        )
        claim = httpsig.read(request, audience=changed.get("audience") or credentials.audience, now=time.time())
        return Proof(credentials.enrolment.wit, claim.base.decode(), b64url(claim.signature), body.decode())

    good = proof(NOTES)
    assert (await dispatch(mesh, *made(NOTES, good))).status == 200
    own = Credentials.load(mesh.home / "sidecar")
    for name, bad in {
        "none": None,
        "the same again": good,
        "for other arguments": proof({"path": "server.pem"}),
        "for another sidecar": proof(NOTES, audience="wimse://licet.local/sidecar/other"),
        "its own": msgspec.structs.replace(proof(NOTES), wit=own.enrolment.wit),
        "another body": msgspec.structs.replace(proof(NOTES), body="{}"),
        "an edited base": msgspec.structs.replace(proof(NOTES), base=proof(NOTES).base.replace("POST", "PUT")),
        "no base": msgspec.structs.replace(proof(NOTES), base="x"),
    }.items():
        answer = await dispatch(mesh, *made(NOTES, bad))
        assert answer.status in (401, 403), name
    refusals = [e for e in mesh.entries("gateway") if isinstance(e, Refusal)]
    assert len(refusals) >= 8


async def test_a_guest_uses_what_was_delegated_to_it(mesh: Mesh) -> None:
    credentials = await guest(mesh)
    root = await asyncio.to_thread(delegate, Credentials.load(mesh.home / "sidecar"), mesh.gateway_url, {READ: {}})
    only = {READ: {"path": {"constraint_type": "exact", "value": "notes.txt"}}}
    chain = narrow(Credentials.load(mesh.home / "sidecar"), root, credentials.key.public, only)
    headers = {"Licet-Delegation": chain}
    status, told = await by_httpx(credentials, f"{mesh.url}/v1/actions", json=ASK, headers=headers)
    assert status == 200, told
    intent = [e for e in mesh.entries() if isinstance(e, Intent)][-1]
    assert (intent.deed.agent, intent.deed.principal, len(intent.deed.authority)) == ("guest", "ada", 2)
    ask = {"tool": READ, "args": {"path": "other.txt"}}
    status, told = await by_httpx(credentials, f"{mesh.url}/v1/actions", json=ask, headers=headers)
    assert told["reason"] == "authority_exceeded"


# A key service


@pytest.fixture
def agent_socket(tmp_path: Path) -> Any:
    """A real ssh-agent with one Ed25519 key."""
    binary = shutil.which("ssh-agent")
    assert binary, "make debian installs openssh-client"
    path = tmp_path / "agent.sock"
    process = subprocess.Popen([binary, "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    while not path.exists():
        time.sleep(0.01)
    add_key(tmp_path, path, "one")
    yield path
    process.kill()
    process.wait()


def add_key(home: Path, socket: Path, name: str, kind: str = "ed25519") -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(home / name)], check=True)
    subprocess.run(["ssh-add", "-q", str(home / name)], check=True, env={**os.environ, "SSH_AUTH_SOCK": str(socket)})


def test_an_ssh_agent_signs_what_rfc_8032_says(agent_socket: Path, tmp_path: Path) -> None:
    key = keyservice.connect(f"ssh-agent:{agent_socket}")
    PublicKey(key.public.raw).verify(key.sign(b"message"), b"message")
    add_key(tmp_path, agent_socket, "rsa", "rsa")
    assert keyservice.connect(f"ssh-agent:{agent_socket}").public == key.public, "keys of other kinds are passed over"
    add_key(tmp_path, agent_socket, "two")
    with pytest.raises(keyservice.KeyServiceFailed, match="exactly one"):
        keyservice.connect(f"ssh-agent:{agent_socket}")
    listed = subprocess.run(
        ["ssh-add", "-l"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "SSH_AUTH_SOCK": str(agent_socket)},
    ).stdout.splitlines()
    named = next(line.split()[1] for line in listed if line.endswith("(ED25519)"))
    assert keyservice.connect(f"ssh-agent:{agent_socket}#{named}").public == key.public


@pytest.mark.parametrize("name", ["", "file:/x", "ssh-agent:", "ssh-agent:/nowhere", "ssh-agent:/dev/null"])
def test_a_key_service_that_is_none_says_what_was_expected(name: str) -> None:
    with pytest.raises(keyservice.KeyServiceFailed):
        keyservice.connect(name)


async def test_a_sidecar_whose_key_is_with_an_ssh_agent(mesh: Mesh, agent_socket: Path) -> None:
    sidecar = await mesh.add_agent("served", "sam", key_service=f"ssh-agent:{agent_socket}")
    assert (await mesh.act(sidecar, READ, NOTES)).status == 200
    assert not (sidecar.config.home / "identity.key").exists()
    async with asyncio.timeout(30):
        while sidecar.identity.session is None:
            await asyncio.sleep(0.02)
    assert (await mesh.admin("POST", "/v1/agents/served/rotate", {})).status == 202
    await asyncio.sleep(1.5)
    assert (await mesh.act(sidecar, READ, NOTES)).status == 200, "it cannot replace that key, and goes on"
