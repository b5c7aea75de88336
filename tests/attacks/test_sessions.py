"""Sessions on the running mesh: used when they suffice, never when a signature is needed, never by another."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from edge.clock import new_nonce
from sidecar.app import Sidecar
from sidecar.config import SidecarConfig
from tests.attacks.test_forgery import dispatch, statement
from tests.mesh import SEGMENT, Answer, Mesh
from trust import wire
from trust.identity import httpsig
from trust.ledger.entries import Dispatch, Session

pytestmark = pytest.mark.slow


async def in_session(mesh: Mesh) -> Any:
    async with asyncio.timeout(30):
        while mesh.sidecar.identity.session is None:
            await asyncio.sleep(0.02)
    return mesh.sidecar.identity.session


def maced(mesh: Mesh, data: bytes, session: Any, nonce: str = "") -> dict[str, str]:
    given = {"content-type": wire.DISPATCH_TYPE}
    authority = mesh.gateway_url.removeprefix("http://")
    request = httpsig.Request("POST", authority, "/v1/dispatch", httpsig.headers_of(given), data)
    identity = mesh.sidecar.identity
    return given | httpsig.mac(
        request,
        session=session.name,
        key=session.secret,
        audience=identity.enrolment.audience,
        created=int(identity.clock.now()),
        nonce=nonce or new_nonce(),
    )


def refused(answer: Answer, reason: str, detail: str = "") -> None:
    assert (answer.status, answer.json["reason"]) == (401, reason), answer.body
    assert detail in answer.json["detail"]


def authn(mesh: Mesh, tool: str) -> list[str]:
    return [e.authn for e in mesh.entries("gateway") if isinstance(e, Dispatch) and e.tool == tool]


async def test_actions_go_by_session_and_high_risk_goes_by_signature(mesh: Mesh) -> None:
    session = await in_session(mesh)
    assert (await mesh.call("workbench/read_file", {"path": "notes.txt"})).status == 200
    approval = (await mesh.call("workbench/delete_file", {"path": "notes.txt"})).json["approval"]
    await mesh.vote(approval)
    assert (await mesh.claim(approval)).status == 200
    assert authn(mesh, "read_file") == [f"session:{session.name}"]
    assert authn(mesh, "delete_file") == ["wit"]


async def test_the_signature_that_opened_a_session_is_in_the_ledger(mesh: Mesh) -> None:
    from trust.identity.keys import PublicKey, unb64url

    session = await in_session(mesh)
    (entry,) = [e for e in mesh.entries("gateway") if isinstance(e, Session) and e.session == session.name]
    PublicKey(unb64url(entry.key)).verify(unb64url(entry.signature), entry.base.encode())
    assert entry.subject == mesh.sidecar.identity.subject
    assert '"@request-target": /v1/session' in entry.base


async def test_high_risk_within_a_session_is_refused(mesh: Mesh) -> None:
    session = await in_session(mesh)
    made, body = statement(mesh, "delete_file", {"path": "notes.txt"})
    data = wire.encode(made, body)
    answer = await dispatch(mesh, made, body, headers=maced(mesh, data, session))
    refused(answer, "unauthenticated", "must be signed with the key")


async def test_a_replay_within_a_session_is_refused(mesh: Mesh) -> None:
    session = await in_session(mesh)
    made, body = statement(mesh)
    headers = maced(mesh, wire.encode(made, body), session)
    assert (await dispatch(mesh, made, body, headers=headers)).status == 200
    refused(await dispatch(mesh, made, body, headers=headers), "replayed")


async def test_another_agents_session_speaks_only_for_that_agent(mesh: Mesh, tmp_path: Path) -> None:
    body = {"name": "other", "owner": "bob"}
    token = (await mesh.admin("POST", "/v1/agents", body)).json["enrolment_token"]
    other = Sidecar(
        SidecarConfig(
            home=tmp_path / "other", port=0, gateway_url=mesh.gateway_url, enrolment_token=token, segment_bytes=SEGMENT
        )
    )
    await other.start()
    try:
        await other.identity.open_session_when_due()
        theirs, mine = other.identity.session, await in_session(mesh)
        made, payload = statement(mesh)
        data = wire.encode(made, payload)
        stolen = await dispatch(mesh, made, payload, headers=maced(mesh, data, theirs))
        assert (stolen.status, stolen.json["reason"]) == (403, "not_yours")
        import msgspec

        mixed = msgspec.structs.replace(theirs, name=mine.name)
        refused(await dispatch(mesh, made, payload, headers=maced(mesh, data, mixed)), "unauthenticated", "MAC")
    finally:
        await other.stop()


async def test_a_session_does_not_open_sessions_nor_renew_tokens(mesh: Mesh) -> None:
    await in_session(mesh)
    identity = mesh.sidecar.identity
    for target, body in (("/v1/session", b'{"key":"AA"}'), ("/v1/wit", b"")):
        given = {"content-type": "application/json"}
        headers = given | identity._signature(mesh.gateway_url, "POST", target, given, body, identity.session)
        answer = await mesh.request("POST", mesh.gateway_url + target, data=body, headers=headers)
        refused(answer, "unauthenticated", "not within a session")


async def test_after_a_restart_of_the_gateway_the_key_speaks_until_a_new_session_is_open(mesh: Mesh) -> None:
    before = await in_session(mesh)
    await mesh.stop("gateway")
    await asyncio.sleep(1.1)  # signatures count whole seconds
    await mesh.start_gateway()
    await mesh.stop("node")
    await mesh.start_node()
    await mesh.ready()
    assert (await mesh.call("workbench/read_file", {"path": "notes.txt"})).status == 200
    async with asyncio.timeout(30):
        while (now := mesh.sidecar.identity.session) is None or now.name == before.name:
            await asyncio.sleep(0.05)
    assert (await mesh.call("workbench/read_file", {"path": "notes.txt"})).status == 200
    assert authn(mesh, "read_file")[-1] == f"session:{now.name}"


async def test_of_one_workload_only_the_last_sessions_are_open(mesh: Mesh) -> None:
    first = await in_session(mesh)
    identity = mesh.sidecar.identity
    for _ in range(8):
        identity.session = None
        await identity.open_session_when_due()
    made, body = statement(mesh)
    answer = await dispatch(mesh, made, body, headers=maced(mesh, wire.encode(made, body), first))
    refused(answer, "unauthenticated", "not open")
