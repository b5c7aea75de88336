"""Holes that an attack on an earlier state of this code found; each stays closed."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import msgspec
import pytest

from edge.blobs import Blobs
from gateway.state import LogRecord, NodeRecord, ServerRecord
from sidecar.identity import NotEnrolled
from tests.attacks.test_bad_input import mcp
from tests.attacks.test_forgery import executed, refused
from tests.mesh import Mesh, policy_files
from tests.trust.test_ledger import fill, open_ledger, rewrite
from trust.ledger.entries import Admin, Approval, Intent, Outcome
from trust.ledger.log import LedgerDamaged
from trust.policy.inventory import Manifest, Server, Tool, pin
from trust.reasons import Reason, Unverifiable

pytestmark = pytest.mark.slow
DELETE = ("workbench/delete_file", {"path": "notes.txt"})


async def test_an_empty_token_file_does_not_switch_authentication_off(mesh: Mesh) -> None:
    await mesh.stop("sidecar")
    (mesh.home / "sidecar" / "agent.token").write_text("\n")
    with pytest.raises(NotEnrolled, match="holds no token"):
        await mesh.start_sidecar()
    await mesh.sidecar.ledger.close()
    mesh.sidecar = None


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_body_that_nobody_judges_is_not_carried(mesh: Mesh, method: str) -> None:
    call = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "delete_file", "arguments": {"path": "notes.txt"}},
    }
    answer = await mesh.request(
        method, mesh.url + "/mcp/workbench", token=mesh.sidecar.token, data=json.dumps(call).encode()
    )
    assert answer.status == 400
    assert executed(mesh) == []


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("tools/call", {"name": "read_file", "arguments": {"path": "notes.txt"}, "inputResponses": {"confirm": "yes"}}),
        ("tools/call", {"name": "read_file", "arguments": {"path": "notes.txt"}, "_meta": {"cargo": "x" * 2000}}),
        ("ping", {"exfil": "secret"}),
        ("tools/list", {"cursor": "a", "more": "b"}),
        ("server/discover", {"x": 1}),
    ],
)
async def test_params_that_no_policy_sees_do_not_ride_along(mesh: Mesh, method: str, params: dict[str, Any]) -> None:
    answer = await mcp(mesh, {"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    assert answer.status == 400
    assert executed(mesh) == []


async def test_completion_is_not_part_of_the_open_protocol(mesh: Mesh) -> None:
    params = {"ref": {"type": "ref/prompt", "name": "x"}, "argument": {"name": "a", "value": "secret"}}
    answer = await mcp(mesh, {"jsonrpc": "2.0", "id": 1, "method": "completion/complete", "params": params})
    assert answer.json["error"]["data"]["reason"] == "no_policy_permits"


OPEN: dict[str, Any] = {"type": "object", "additionalProperties": True}


def offer(name: str = "workbench", **tool: Any) -> Server:
    given = {"name": "x", "digest": pin("x", "", OPEN), "input_schema": OPEN, "manifest": Manifest()} | tool
    return Server(name, {given["name"]: Tool(**given)})


BAD_OFFERS = {
    "a server that the node was not bound to": offer("evil"),
    "a digest that is not the schema's": offer(digest="0" * 64),
    "a tool under another name": Server("workbench", {"y": offer().tools["x"]}),
    "a tool that calls itself protocol": offer(manifest=Manifest(category="protocol", effect="read", privileged=False)),
    "a group that is another tool": offer(manifest=Manifest(groups=("workbench/read_file",))),
    "a deceptive name": offer(name="read\u200bfile", digest=pin("read\u200bfile", "", OPEN)),
    "a redefined protocol method": offer(name="mcp:tools/list", digest=pin("mcp:tools/list", "", OPEN)),
}


@pytest.mark.parametrize("server", BAD_OFFERS.values(), ids=BAD_OFFERS.keys())
async def test_a_node_that_lies_about_its_tools_does_not_join_and_bricks_nothing(mesh: Mesh, server: Server) -> None:
    async with asyncio.timeout(30):  # both logs are met in the first second, and nothing else happens then
        while len(list(mesh.gateway._store.all(LogRecord))) < 2:
            await asyncio.sleep(0.01)
    before = mesh.gateway._store.dump()
    body = msgspec.json.encode({"url": "http://127.0.0.1:1", "servers": [server]})
    async with mesh.node.identity.send(
        "POST", "/v1/nodes/join", body, {"Content-Type": "application/json"}, strong=True
    ) as reply:
        assert reply.status in (400, 403)
    assert mesh.gateway._store.dump() == before
    assert (await mesh.call("workbench/read_file", {"path": "notes.txt"})).status == 200


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {}, "required": [[]]},
        {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/N"}},
            "$defs": {"N": {"type": "object", "properties": {f"n{i}": {"$ref": "#/$defs/N"} for i in range(20)}}},
        },
    ],
    ids=["odd required", "recursive with fan-out"],
)
async def test_an_odd_schema_is_admitted_or_refused_but_harms_nothing(mesh: Mesh, schema: dict[str, Any]) -> None:
    servers = mesh.gateway._api.services.servers
    known = servers.admitted(mesh.gateway._store.get(ServerRecord, "workbench"))
    odd = offer(input_schema=schema, digest=pin("x", "", schema)).tools["x"]
    server = msgspec.structs.replace(known, tools={**known.tools, "x": odd})
    body = msgspec.json.encode({"url": "http://127.0.0.1:1", "servers": [server]})
    async with (
        asyncio.timeout(30),
        mesh.node.identity.send("POST", "/v1/nodes/join", body, {"Content-Type": "application/json"}, strong=True),
    ):
        pass
    assert (await mesh.activate(policy_files())).status == 200


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.test:80",
        "https://127.0.0.1",
        "http://169.254.169.254/",
        "file:///etc/passwd",
        "http://root:pw@127.0.0.1:9",
        "http://127.0.0.1:9/admin/drop?x=",
    ],
)
async def test_a_node_cannot_send_the_gateway_elsewhere(mesh: Mesh, url: str) -> None:
    body = msgspec.json.encode({"url": url, "servers": []})
    async with mesh.node.identity.send(
        "POST", "/v1/nodes/join", body, {"Content-Type": "application/json"}, strong=True
    ) as reply:
        assert reply.status == 403
    assert mesh.gateway._store.get(NodeRecord, "node-1").url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    "path", ["secret.pem/", "secret.pem/.", "./secret.pem/", "secret.pem//", "./secret.pem", "x/../secret.pem"]
)
async def test_a_second_way_to_write_a_path_is_no_way_around(mesh: Mesh, path: str) -> None:
    (mesh.sandbox / "secret.pem").write_text("SECRET")
    answer = await mesh.call("workbench/read_file", {"path": path})
    assert b"SECRET" not in answer.body


async def test_an_approval_runs_the_bytes_that_people_saw(tmp_path: Path) -> None:
    """The same arguments in other bytes find the approval, and the stored bytes run."""
    async with Mesh(tmp_path, hold_wait_s=0.1) as mesh:
        (mesh.sandbox / "notes.txt").write_text("hello")
        call = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": "delete_file", "arguments": {"path": "notes.txt"}},
        }
        pending = await mcp(mesh, call)
        approval = json.loads(pending.body.split(b"data: ")[-1])["result"]["structuredContent"]["approval"]
        shown = mesh.gateway.desk.get(approval).request["payload_sha256"]
        await mesh.vote(approval)
        other = {**call, "id": 77, "params": {**call["params"], "_meta": {"vendor": "x"}}}  # type: ignore[dict-item]
        done = await mcp(mesh, other)
        assert done.json["id"] == 77
        assert done.json["result"]["content"][0]["text"] == "deleted notes.txt"
        assert executed(mesh)[-1].payload_sha256 == shown


async def test_an_old_approval_does_not_meet_new_stricter_terms(mesh: Mesh) -> None:
    approval = (await mesh.call(*DELETE)).json["approval"]
    await mesh.vote(approval)
    files = {k: v.replace("of=operations ttl=15m", "of=finance quorum=2 ttl=15m") for k, v in policy_files().items()}
    assert (await mesh.activate(files)).status == 200
    await mesh.ready()
    refused(await mesh.claim(approval), "approval_mismatch")
    assert (mesh.sandbox / "notes.txt").exists()


async def test_step_up_is_not_promised_before_it_can_be_kept(mesh: Mesh) -> None:
    files = {k: v.replace("of=operations ttl=15m", "of=operations step_up") for k, v in policy_files().items()}
    answer = await mesh.activate(files)
    assert answer.status == 422
    assert "step_up" in answer.json["rejected"]


@pytest.mark.parametrize("name", ["approver-1", "operator", "Approver-1", "approver\u200b", "", "a b"])
async def test_nobody_takes_over_anothers_name(mesh: Mesh, name: str) -> None:
    answer = await mesh.admin("POST", "/v1/people", {"name": name, "roles": ["operations"]})
    assert answer.status == 400


async def test_a_state_that_cannot_follow_the_ledger_stops_the_gateway_instead_of_forgetting(mesh: Mesh) -> None:
    approval = (await mesh.call(*DELETE)).json["approval"]
    await mesh.vote(approval)

    def broken(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    mesh.gateway._store.commit = broken
    refused(await mesh.claim(approval), "ledger_unavailable")
    for _ in range(2):
        assert (await mesh.claim(approval)).status != 200
    await mesh.stop("gateway")
    await mesh.start_gateway()
    await mesh.ready()
    assert mesh.gateway.desk.get(approval).state == "consumed"
    assert [e.event for e in mesh.entries("gateway") if isinstance(e, Approval)].count("claimed") == 1
    assert executed(mesh) == []


async def test_denials_are_not_shed_by_a_new_run(mesh: Mesh) -> None:
    approval = (await mesh.call(*DELETE, run="r1")).json["approval"]
    await mesh.vote(approval, "deny", reason="no")
    refused(await mesh.call(*DELETE, run="r2"), "approval_denied")
    await mesh.call("workbench/list_directory", {"path": "."}, run="r3")
    run = [e for e in mesh.entries() if isinstance(e, Intent)][-1].judgement.facts["context"]["run"]
    assert run["denied"] >= 1


async def test_an_outage_is_held_against_nobody_and_a_refusal_outlives_a_restart(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied() -> int:
        return mesh.sidecar._journal.memories.of("demo").run("r", time.time()).denied

    await mesh.stop("node")
    for _ in range(3):
        away = await mesh.call("workbench/list_directory", {"path": "."})
        assert away.json["retryable"], away.json
    assert denied() == 0, "refused by the gateway, which had nowhere to send it"
    monkeypatch.setattr("trust.feed.SIDE_EFFECTS_STALE_S", -1.0)
    for _ in range(2):
        refused(await mesh.call("workbench/write_file", {"path": "x", "content": "x"}), "stale_facts")
    assert denied() == 0, "refused by the sidecar, which knew too little"
    monkeypatch.undo()

    refused(await mesh.call("workbench/read_file", {"path": "/etc/passwd"}), "policy_forbids")
    assert denied() == 1
    only_here = Unverifiable(Reason.AUTHORITY_EXCEEDED, "the gateway knows better")
    monkeypatch.setattr("gateway.dispatch.Dispatcher._decide_and_route", AsyncMock(side_effect=only_here))
    refused(await mesh.call("workbench/list_directory", {"path": "."}), "authority_exceeded")
    assert denied() == 2
    monkeypatch.undo()
    await mesh.stop("sidecar")
    await mesh.start_sidecar()
    assert denied() == 2


async def test_an_agent_cannot_fill_the_queue(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.approvals.desk.MAX_PENDING", 3)
    answers = [await mesh.call("workbench/delete_file", {"path": f"f{n}"}) for n in range(5)]
    assert [a.status for a in answers] == [202, 202, 202, 503, 503]


async def test_an_answer_that_cannot_be_passed_on_is_an_unknown_outcome_not_a_refusal(mesh: Mesh) -> None:
    upstream: Any = mesh.node.offers.upstreams["workbench"]

    async def odd(*_: object) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "id": 1, "result": {"id": 2**53 + 1, "f": 1.5}}

    upstream._ask = odd
    answer = await mesh.call("workbench/read_file", {"path": "notes.txt"})
    assert answer.json["reason"] == "outcome_unknown"
    assert [e.status for e in mesh.entries() if isinstance(e, Outcome)][-1] == "unknown"
    assert [e.status for e in mesh.entries("node") if isinstance(e, Outcome)][-1] == "unknown"


async def test_an_agent_that_hangs_up_during_a_claim_leaves_an_outcome(tmp_path: Path) -> None:
    async with Mesh(tmp_path, hold_wait_s=20) as mesh:
        (mesh.sandbox / "notes.txt").write_text("hello")
        call = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": "run_process", "arguments": {"argv": ["sleep", "1"]}},
        }
        calling = asyncio.create_task(mcp(mesh, call))
        async with asyncio.timeout(30):
            while not mesh.gateway.desk.all():
                await asyncio.sleep(0.02)
            await mesh.vote(mesh.gateway.desk.all()[0].id)
            while not executed(mesh):
                await asyncio.sleep(0.02)
            calling.cancel()
            while not [e for e in mesh.entries() if isinstance(e, Outcome)]:
                await asyncio.sleep(0.05)


def test_a_deleted_checkpoint_and_a_cut_log_are_noticed(tmp_path: Path) -> None:
    fill(tmp_path, 20)
    rewrite(lambda e: e[:5])(tmp_path)
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(LedgerDamaged, match="is missing"):
        open_ledger(tmp_path)


async def test_a_gateway_does_not_start_on_an_older_ledger(mesh: Mesh) -> None:
    await mesh.stop("gateway")
    shutil.rmtree(mesh.home / "gateway" / "ledger")
    with pytest.raises(LedgerDamaged, match="an older ledger was put in its place"):
        await mesh.start_gateway()
    await mesh.gateway.ledger.close()
    mesh.gateway = None


def test_acknowledged_entries_behind_a_flipped_bit_are_not_cut_off_quietly(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger._sealer._seal = lambda: None  # a crash within the second before the next checkpoint
    for number in range(15):
        ledger.append(Admin(f"e{number}", "me", "operator"))
    ledger.close()
    segment = next((tmp_path / "wal").glob("0*.segment"))
    data = bytearray(segment.read_bytes())
    data[data.index(b"e6") + 1] ^= 1
    segment.write_bytes(bytes(data))
    with pytest.raises(LedgerDamaged, match="acknowledged would be lost"):
        open_ledger(tmp_path, boot="b2")


async def test_equal_blobs_at_once_are_one_blob(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    data = b"x" * 1_000_000
    digests = await asyncio.gather(*(blobs.add(data) for _ in range(16)))
    assert len(set(digests)) == 1
    assert blobs.get(digests[0]) == data
    assert len(list(tmp_path.iterdir())) == 1


async def test_a_program_that_leaves_its_session_does_not_outlive_its_time(mesh: Mesh) -> None:
    approval = (
        await mesh.call("workbench/run_process", {"argv": ["sh", "-c", "setsid sleep 30 & sleep 30"], "timeout_s": 1})
    ).json["approval"]
    await mesh.vote(approval)
    async with asyncio.timeout(30):
        answer = await mesh.claim(approval)
    result = answer.json["result"]["structuredContent"]
    assert result["timed_out"] is True
    assert result["sandboxed"] is True


async def test_a_signature_with_odd_bytes_is_refused_without_a_fault(mesh: Mesh) -> None:
    identity = mesh.sidecar.identity
    headers = {
        "Workload-Identity-Token": identity.enrolment.wit,
        "Idempotency-Key": "ü",
        "Signature-Input": "x",
        "Signature": "y",
    }
    answer = await mesh.request("POST", mesh.gateway_url + "/v1/wit", data=b"", headers=headers)
    refused(answer, "unauthenticated")
