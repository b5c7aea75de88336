"""Personal values: nowhere in plain, opened while there is a key, erased when it is destroyed, and nothing else breaks."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edge.judging import Judge
from gateway.subjects import FILE, keys_below
from sidecar.config import ToolServer
from tests.mesh import Answer, Mesh, policy_files
from tests.stories.test_agents_cli import as_json, fine, licet
from tests.stories.test_asking import asked, settled
from trust import mcp
from trust.canonical import digest_of, sha256_hex
from trust.ledger.entries import Approval, Dispatch, Intent, Outcome, Refusal, Subject
from trust.ledger.verify import verify
from trust.personal import QUIET, principal_id, subject_id

pytestmark = pytest.mark.slow

SHOP = """
import json, sys
number = {"type": "integer"}
text = {"type": "string"}
properties = {
    "customer": text, "street": {"type": "string", "x-licet-personal": True}, "note": text, "cents": number,
    "kind": {"type": "string", "enum": ["letter", "parcel"]},
}
SEND = {"type": "object", "properties": properties, "required": ["customer"]}
KEEP, PING = {"type": "object", "properties": {"text": text}}, {"type": "object", "properties": {}}
for line in sys.stdin:
    asked = json.loads(line)
    match asked.get("method"):
        case "initialize":
            result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "shop"}}
        case "tools/list":
            tools = (("send", SEND), ("refund", SEND), ("keep", KEEP), ("ping", PING))
            result = {"tools": [{"name": n, "description": n, "inputSchema": s} for n, s in tools]}
        case "tools/call":
            arguments = asked["params"]["arguments"]
            if arguments.get("note") == "die":
                sys.exit(str(arguments))
            result = {"content": [{"type": "text", "text": "sent to " + str(arguments.get("street"))}]}
        case _:
            continue
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""
PLAIN = 'category = "data"\neffect = "read"\nprivileged = false\nrisk = 1\nlabels = []\n'
MANIFEST = f"""
[tools.send]
{PLAIN}personal = ["note"]
subject = "customer"
[tools.refund]
{PLAIN}personal = ["note"]
subject = "customer"
[tools.keep]
{PLAIN}personal = ["text"]
[tools.ping]
{PLAIN}"""
POLICY = """
@id("shop") permit(principal, action in Action::"server/shop", resource)
unless { action == Action::"shop/refund" };
@id("shop-dear") forbid(principal, action == Action::"shop/send", resource)
when { context.args has cents && context.args.cents > 1000 };
@id("refunds") @approval("of=operations") permit(principal, action == Action::"shop/refund", resource)
when { context.approved };
"""
WHO, STREET, NOTE = "customer-Qx71Kp", "Zimtweg-4Vb9Rt", "allergic-8Wm2Lf"
GIVEN = {"customer": WHO, "street": STREET, "note": NOTE, "cents": 7}
SECRETS = (WHO, STREET, NOTE)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    (tmp_path / "shop.toml").write_text(MANIFEST)
    shop = ToolServer(name="shop", command=(sys.executable, "-c", SHOP), manifest=tmp_path / "shop.toml")
    files = {k: v for k, v in policy_files().items() if not k.startswith("cases/")} | {"shop.cedar": POLICY}
    async with Mesh(tmp_path, servers=(shop,)) as running:
        answer = await running.activate(files)
        assert answer.status == 200, answer.body
        await running.ready()
        yield running


def written(home: Path) -> dict[str, bytes]:
    """Every file of every process, but for the keys of subjects."""
    parts = ("gateway", "sidecar", "node")
    files = [path for part in parts for path in (home / part).rglob("*") if path.is_file() and path.name != FILE]
    return {str(path): path.read_bytes() for path in files}


def leaks(home: Path) -> list[tuple[str, str]]:
    return [(path, secret) for path, data in written(home).items() for secret in SECRETS if secret.encode() in data]


def entries_of(mesh: Mesh, kind: type, part: str = "sidecar") -> list[Any]:
    return [entry for entry in mesh.entries(part) if isinstance(entry, kind)]


async def erase(mesh: Mesh, who: str = WHO, by: str = "operator") -> Answer:
    return await mesh.admin("POST", "/v1/subjects/erase", {"subject": subject_id(who), "reason": "asked"}, by)


def verified(mesh: Mesh, *, keys: bool) -> Any:
    judge = Judge(mesh.home / "sidecar", keys_below(mesh.home / "gateway")) if keys else Judge(mesh.home / "sidecar")
    return verify(mesh.sidecar.ledger.root, judge=judge)


async def test_what_is_personal_stands_nowhere_in_plain(mesh: Mesh) -> None:
    """Whatever becomes of the call: allowed, refused for any reason, held, approved, claimed, too large, broken."""
    assert (await mesh.call("shop/send", GIVEN, run="r1")).status == 200
    assert (await mesh.call("shop/send", {**GIVEN, "cents": 2000})).status == 403
    assert (await mesh.call("shop/send", {**GIVEN, "cents": STREET})).status == 403
    assert (await mesh.call("shop/send", {**GIVEN, "kind": NOTE})).status == 403
    assert (await mesh.call("shop/send", {**GIVEN, "more": NOTE})).status == 403
    assert (await mesh.call("shop/send", {**GIVEN, "note": NOTE * 3000})).status == 200
    held = await mesh.call("shop/refund", GIVEN)
    assert (await mesh.call("shop/refund", {**GIVEN, "note": NOTE + " too"})).status == 202
    assert (await mesh.vote(held.json["approval"])).status == 200
    assert (await mesh.claim(held.json["approval"])).status == 200
    broken = await mesh.call("shop/send", {**GIVEN, "note": "die"})
    assert broken.status >= 500
    await settled(mesh)
    assert leaks(mesh.home) == []
    sent = entries_of(mesh, Intent)[0].deed
    assert sent.arguments == {"cents": 7}
    assert sent.sealed.key.startswith("sub_")
    invalid = [e for e in entries_of(mesh, Refusal) if e.reason == "arguments_invalid"]
    assert [e.detail for e in invalid] == [QUIET] * 3
    assert QUIET in [e.detail for e in entries_of(mesh, Outcome, "node")]
    assert verified(mesh, keys=True).faults == []


async def test_the_agent_is_told_what_was_wrong(mesh: Mesh) -> None:
    answer = await mesh.call("shop/send", {**GIVEN, "cents": STREET})
    assert STREET in answer.json["detail"]


async def test_equal_calls_have_equal_digests_and_nobody_can_guess_them(mesh: Mesh) -> None:
    for _ in range(2):
        await mesh.call("shop/send", GIVEN)
    await mesh.call("shop/send", {**GIVEN, "note": "x"})
    first, again, other = (e.deed for e in entries_of(mesh, Intent))
    for name in ("arguments_sha256", "action_digest"):
        values = [getattr(deed, name) for deed in (first, again, other)]
        assert values[0] == values[1] != values[2], name
    assert first.arguments_sha256 != digest_of(GIVEN)
    gateway, node = entries_of(mesh, Dispatch, "gateway"), entries_of(mesh, Dispatch, "node")
    assert [e.payload_sha256 for e in gateway] == [e.payload_sha256 for e in node] != []
    assert gateway[0].action_digest == first.action_digest


@pytest.mark.parametrize("tool", ["send", "ping"])
async def test_what_came_back_of_a_personal_call_cannot_be_guessed_either(mesh: Mesh, tool: str) -> None:
    message, body = mcp.call("x", tool, {"street": STREET, "customer": WHO} if tool == "send" else {})
    headers = {"mcp-protocol-version": mcp.MODERN, "mcp-method": message.method, "mcp-name": tool}
    headers |= {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    answer = await mesh.request("POST", f"{mesh.url}/mcp/shop", token=mesh.sidecar.token, data=body, headers=headers)
    assert answer.status == 200, answer.body
    async with asyncio.timeout(30):
        while not entries_of(mesh, Outcome):
            await asyncio.sleep(0.01)
    digests = {e.response_sha256 for part in ("sidecar", "node") for e in entries_of(mesh, Outcome, part)}
    assert len(digests) == 1
    assert (sha256_hex(answer.body) in digests) is (tool == "ping")


async def test_erased_is_erased_and_every_proof_still_holds(mesh: Mesh) -> None:
    await mesh.call("shop/send", GIVEN, run="r1")
    await mesh.call("shop/send", {**GIVEN, "note": NOTE * 3000})
    await mesh.call("shop/send", {**GIVEN, "customer": "another"})
    await settled(mesh)
    before = verified(mesh, keys=True)
    assert (before.faults, before.decided_again) == ([], 3)
    origin = mesh.sidecar.ledger.origin
    found = (await asked(mesh, kind="intent")).json["rows"]
    place = f"/v1/ledger/entry?origin={origin}&index={found[-1]['index']}"
    told = (await mesh.admin("GET", place)).json
    assert told["arguments"] == GIVEN

    answer = await erase(mesh)
    assert answer.status == 200, answer.body
    key = answer.json["erased"]
    told = (await mesh.admin("GET", place)).json
    assert told["arguments"] is None
    assert "destroyed" in told["missing"]
    assert key.encode() not in (mesh.home / "gateway" / FILE).read_bytes()
    after = verified(mesh, keys=True)
    assert (after.faults, after.decided_again, after.not_decidable) == ([], 1, before.not_decidable + 2)
    assert [e.event for e in entries_of(mesh, Subject, "gateway") if e.key == key] == ["made", "erased"]
    assert {e.reason for e in entries_of(mesh, Subject, "gateway") if e.event == "erased"} == {"asked"}

    assert (await mesh.call("shop/send", GIVEN)).status == 200  # of somebody who comes again, anew
    assert entries_of(mesh, Intent)[-1].deed.sealed.key not in ("", key)
    assert (await erase(mesh, "nobody")).status == 404
    await settled(mesh)
    assert leaks(mesh.home) == []


async def test_a_key_that_comes_back_from_a_backup_is_destroyed_again(mesh: Mesh) -> None:
    await mesh.call("shop/send", GIVEN)
    kept = (mesh.home / "gateway" / FILE).read_bytes()
    key = (await erase(mesh)).json["erased"]
    await mesh.stop("gateway")
    (mesh.home / "gateway" / FILE).write_bytes(kept)
    await mesh.start_gateway()
    assert key.encode() not in (mesh.home / "gateway" / FILE).read_bytes()
    assert mesh.gateway.ledgers._key_of(key, "demo") is None


async def test_a_crash_between_record_and_destruction_is_made_up_for(mesh: Mesh) -> None:
    await mesh.call("shop/send", GIVEN)
    key = mesh.gateway._subjects.known(subject_id(WHO)).id
    async with mesh.gateway.records.deciding:
        await mesh.gateway.records.change(Subject("erased", key, "operator", "asked"))
    await mesh.stop("gateway")
    await mesh.start_gateway()
    assert mesh.gateway._subjects.known(subject_id(WHO)) is None


async def test_what_waits_for_a_person_about_somebody_erased_is_over(mesh: Mesh) -> None:
    held = await mesh.call("shop/refund", GIVEN)
    shown = (await mesh.admin("GET", f"/v1/approvals/{held.json['approval']}", who="approver-1")).json
    assert json.loads(shown["payload"])["params"]["arguments"] == GIVEN
    requested = next(e for e in entries_of(mesh, Approval, "gateway") if e.event == "requested")
    assert requested.request["headers"] == []
    await erase(mesh)
    answer = await mesh.vote(held.json["approval"])
    assert answer.json["reason"] == "approval_cancelled"
    assert "erased" in answer.json["detail"]
    shown = (await mesh.admin("GET", f"/v1/approvals/{held.json['approval']}", who="approver-1")).json
    assert shown["payload"] == ""
    again = await mesh.call("shop/refund", GIVEN)
    assert again.status == 202
    assert again.json["approval"] != held.json["approval"]


async def test_a_call_whose_key_cannot_be_had_is_refused_and_recorded_without_it(mesh: Mesh) -> None:
    assert (await mesh.call("shop/send", {**GIVEN, "customer": "known"})).status == 200
    await mesh.stop("gateway")
    answer = await mesh.call("shop/send", GIVEN)
    assert answer.json["reason"] == "gateway_unreachable"
    refused = entries_of(mesh, Refusal)[-1]
    assert refused.deed.arguments == {}
    assert (refused.deed.sealed.key, refused.deed.sealed.box) == ("", "")
    assert leaks(mesh.home) == []


async def test_without_a_bundle_everything_is_taken_for_personal(mesh: Mesh) -> None:
    mesh.sidecar.world.bundle = None
    assert (await mesh.call("shop/send", GIVEN)).json["reason"] == "no_bundle"
    deed = entries_of(mesh, Refusal)[-1].deed
    assert (deed.arguments, deed.sealed.key) == ({}, "")
    assert leaks(mesh.home) == []


async def test_without_a_subject_it_is_about_the_principal(mesh: Mesh) -> None:
    await mesh.call("shop/keep", {"text": NOTE})
    await mesh.call("shop/send", {"customer": "ada"})
    keep, send = (e.deed.sealed.key for e in entries_of(mesh, Intent))
    assert keep != send
    body = {"subject": principal_id("ada"), "reason": "asked"}
    assert (await mesh.admin("POST", "/v1/subjects/erase", body)).json["erased"] == keep


async def test_a_sidecar_gets_keys_of_its_own_agent_only_and_no_two_agents_the_same(mesh: Mesh) -> None:
    other = await mesh.add_agent("other", "ben")
    await mesh.call("shop/send", GIVEN)
    assert (await mesh.act(other, "shop/send", GIVEN)).status == 200
    mine = entries_of(mesh, Intent)[0].deed
    theirs = next(e for _, e in ((i, line.entry) for i, line in other.ledger.lines()) if isinstance(e, Intent)).deed
    assert mine.sealed.key == theirs.sealed.key
    assert mine.sealed.box != theirs.sealed.box
    body = json.dumps({"agent": "demo", "subject": subject_id(WHO)}).encode()
    async with other.identity.send("POST", "/v1/subjects/key", body, {"Content-Type": "application/json"}) as reply:
        answer = json.loads(await reply.read())
    assert answer["reason"] == "not_yours"
    assert (await mesh.request("POST", f"{mesh.gateway_url}/v1/subjects/key", data=body)).status == 401


async def test_only_operators_erase(mesh: Mesh) -> None:
    await mesh.call("shop/send", GIVEN)
    answer = await erase(mesh, by="approver-1")
    assert (answer.status, answer.json["reason"]) == (403, "not_yours")
    assert mesh.gateway._subjects.known(subject_id(WHO)) is not None


async def test_a_sidecar_that_keeps_a_key_hears_of_the_erasure(mesh: Mesh) -> None:
    await mesh.call("shop/send", GIVEN)
    before = entries_of(mesh, Intent)[-1].deed.sealed.key
    await erase(mesh)
    async with asyncio.timeout(30):
        while mesh.sidecar.world.facts.erasures != 1:
            await asyncio.sleep(0.01)
    assert (await mesh.call("shop/send", GIVEN)).status == 200
    assert entries_of(mesh, Intent)[-1].deed.sealed.key != before


async def test_the_gateway_sends_nothing_under_a_key_that_it_destroyed(mesh: Mesh) -> None:
    """As if the sidecar had not heard yet: what it recorded is erased already, and it must ask again."""
    await mesh.call("shop/send", GIVEN)
    subjects = mesh.sidecar.pipeline._subjects
    subjects._forget_what_was_erased = lambda: None  # type: ignore[method-assign]
    await erase(mesh)
    answer = await mesh.call("shop/send", GIVEN)
    assert answer.status in (403, 503)
    assert answer.json["reason"] in ("stale_facts", "permit_invalid")


@pytest.mark.parametrize("personal", [False, True])
async def test_evidence_verifies_with_and_without_what_is_personal(mesh: Mesh, tmp_path: Path, personal: bool) -> None:
    await mesh.call("shop/send", GIVEN, run="r1")
    held = await mesh.call("shop/refund", GIVEN, run="r1")
    await mesh.vote(held.json["approval"])
    assert (await mesh.claim(held.json["approval"])).status == 200
    await settled(mesh)
    answer = await mesh.admin("GET", f"/v1/runs/r1/evidence{'?personal=true' if personal else ''}")
    pack = tmp_path / "pack.zip"
    pack.write_bytes(answer.body)
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        inside = b"".join(archive.read(name) for name in archive.namelist())
    assert (NOTE.encode() in inside) is personal
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-I", "-S", str(pack)], capture_output=True, text=True, check=False
    )
    assert ("VERIFIED IN PART" in done.stdout) is not personal, done.stdout
    assert "NOT VERIFIED" not in done.stdout
    if personal:
        changed = tmp_path / "changed.zip"
        with zipfile.ZipFile(changed, "w") as out, zipfile.ZipFile(pack) as archive:
            for name in archive.namelist():
                data = archive.read(name)
                out.writestr(name, data.replace(NOTE.encode(), b"another") if name.startswith("opened/") else data)
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-I", "-S", str(changed)], capture_output=True, text=True, check=False
        )
        assert "NOT VERIFIED" in done.stdout


async def test_the_commands(mesh: Mesh, tmp_path: Path) -> None:
    held = await mesh.call("shop/refund", GIVEN, run="r1")
    await mesh.vote(held.json["approval"])
    await settled(mesh)
    told = await as_json(mesh, "audit", "who-approved", held.json["approval"])
    assert told["arguments"] == GIVEN
    key = (await as_json(mesh, "audit", "subject", WHO))["key"]
    rows = await as_json(mesh, "audit", "query", "--subject", key)
    assert {row["kind"] for row in rows} == {"hold", "approval", "subject"}
    out = tmp_path / "ledger.jsonl"
    assert (await licet(mesh, "audit", "export", "--personal", "-o", str(out)))[0] != 0
    await fine(mesh, "audit", "export", "--format", "jsonl", "-o", str(out))
    assert NOTE not in out.read_text()
    assert "destroyed" in await fine(mesh, "audit", "erase", WHO, "--reason", "request 17")
    assert "destroyed" in await fine(mesh, "audit", "who-approved", held.json["approval"])
    code, _, error = await licet(mesh, "audit", "erase", WHO, "--reason", "request 17")
    assert code != 0
    assert "nothing personal is kept" in error
