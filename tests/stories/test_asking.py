"""The security team asks: all logs together, a run across every hop, who approved, and the proof of each row."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.mesh import Mesh
from tests.stories.test_agents_cli import as_json, fine, licet
from trust.ledger import checkpoint, proofs
from trust.ledger.entries import Query
from trust.reasons import Unverifiable

pytestmark = pytest.mark.slow
READ, NOTES = "workbench/read_file", {"path": "notes.txt"}


async def settled(mesh: Mesh) -> None:
    """Until everything so far is sealed, witnessed and searchable."""
    async with asyncio.timeout(30):
        for part in (mesh.sidecar, mesh.node):
            while part.shipper.cosigned < part.ledger.size:
                await asyncio.sleep(0.05)
        size = mesh.gateway.ledger.size
        while (await mesh.gateway.ledgers.index.reach()).get(mesh.gateway.ledger.origin, 0) < size:
            await asyncio.sleep(0.05)
        await mesh.gateway.ledgers.index.follow()


async def asked(mesh: Mesh, who: str = "operator", **given: Any) -> Any:
    return await mesh.admin("GET", f"/v1/ledger/entries?{urlencode(given)}", who=who)


async def test_a_held_action_from_request_to_outcome(mesh: Mesh) -> None:
    held = await mesh.call("workbench/delete_file", NOTES, run="r1")
    assert (await mesh.vote(held.json["approval"], reason="fine")).status == 200
    done = await mesh.claim(held.json["approval"])
    assert done.status == 200
    await mesh.call(READ, {"path": "server.pem"}, run="r1")
    await settled(mesh)
    told = (await mesh.admin("GET", "/v1/runs/r1/timeline")).json["rows"]
    assert [(r["kind"], r["decision"], r["origin"].split("/")[1]) for r in told] == [
        ("hold", "hold", "sidecar"),
        ("approval", "requested", "gateway"),
        ("approval", "vote", "gateway"),
        ("approval", "approved", "gateway"),
        ("intent", "allow", "sidecar"),
        ("approval", "claimed", "gateway"),
        ("dispatch", "", "gateway"),
        ("dispatch", "", "node"),
        ("outcome", "done", "node"),
        ("outcome", "done", "gateway"),
        ("outcome", "done", "sidecar"),
        ("refusal", "deny", "sidecar"),
    ]
    refused = (await asked(mesh, decision="deny", agent="demo", policy="no-key-files")).json["rows"]
    assert [row["reason"] for row in refused] == ["policy_forbids"]
    shown = await as_json(mesh, "audit", "who-approved", held.json["approval"])
    assert [step["by"] for step in shown["steps"]] == ["demo", "approver-1", "approver-1", "demo"]
    assert (shown["shown"]["tool"], shown["shown"]["agent"]) == ("delete_file", "demo")
    by_decision = await as_json(mesh, "audit", "who-approved", done.json["decision_id"])
    assert by_decision["approval"] == held.json["approval"]


async def test_every_row_can_be_proved_and_another_entry_cannot(mesh: Mesh) -> None:
    await mesh.call(READ, NOTES)
    await settled(mesh)
    for row in (await asked(mesh, limit=1000)).json["rows"]:
        place = urlencode({"origin": row["origin"], "index": row["index"]})
        told = (await mesh.admin("GET", f"/v1/ledger/entry?{place}")).json
        origin, key = checkpoint.parse_vkey(told["vkey"])
        entry, proof = base64.b64decode(told["entry"]), told["proof"].encode()
        index, _ = proofs.require_proved(proof, entry, origin, key)
        assert (origin, index, json.loads(entry)["stamp"]["seq"]) == (row["origin"], row["index"], row["index"])
        if "gateway" not in origin:
            witness, its_key = checkpoint.parse_witness_vkey(told["witness"])
            assert checkpoint.cosigned_at(proofs.read(proof)[2], witness, its_key)
        for wrong in (entry[:-2] + b" }", entry + b" "):
            with pytest.raises(Unverifiable):
                proofs.require_proved(proof, wrong, origin, key)
        with pytest.raises(Unverifiable):
            proofs.require_proved(proof.replace(b"index ", b"index 9"), entry, origin, key)


async def test_only_those_who_may_read_and_that_they_read_is_recorded(mesh: Mesh) -> None:
    token = (await mesh.admin("POST", "/v1/people", {"name": "aud", "roles": ["auditor"]})).json["token"]
    mesh.tokens["aud"] = token
    assert (await asked(mesh, who="approver-1")).json["reason"] == "not_yours"
    assert (await asked(mesh, who="aud", agent="demo")).status == 200
    found = [e for e in mesh.entries("gateway") if isinstance(e, Query)]
    assert [(e.by, e.asked) for e in found] == [("aud", "agent=demo")]
    renew = await mesh.admin("POST", "/v1/ledger/renew", {"origin": "x", "reason": "y"}, who="aud")
    assert renew.json["reason"] == "not_yours"


BAD = ["agent=a&agent=b", "colour=red", "limit=0", "limit=1001", "since_us=x", "since_us=-1", "after=x", "until_us=1e9"]


@pytest.mark.parametrize("query", BAD)
async def test_a_question_that_cannot_be_asked_says_why(mesh: Mesh, query: str) -> None:
    told = await mesh.admin("GET", f"/v1/ledger/entries?{query}")
    assert (told.status, told.json["reason"]) == (400, "malformed_request"), told.body
    assert "expected" in told.json["detail"]


async def test_the_index_is_made_again_and_a_restart_leaves_nothing_out(mesh: Mesh) -> None:
    await mesh.call(READ, NOTES)
    await settled(mesh)
    before = await mesh.gateway.ledgers.index.dump()
    await mesh.stop("gateway")
    (mesh.home / "gateway" / "index.sqlite").unlink()
    await mesh.start_gateway()
    await settled(mesh)
    after = await mesh.gateway.ledgers.index.dump()
    assert [row for row in after if row in before] == before


async def test_the_commands(mesh: Mesh, tmp_path: Path) -> None:
    await mesh.call(READ, NOTES, run="r1")
    await mesh.call(READ, {"path": "server.pem"}, run="r1")
    await settled(mesh)
    assert "refused by no-key-files" in await fine(mesh, "audit", "query", "--decision", "deny", "--since", "1h")
    assert "nothing in the ledger" in await fine(mesh, "audit", "query", "--agent", "nobody")
    assert "goes to node-1" in await fine(mesh, "audit", "timeline", "r1")
    assert "licet.local/sidecar/demo" in await fine(mesh, "audit", "logs")
    told = await fine(mesh, "audit", "prove", "licet.local/sidecar/demo#2", "-o", str(tmp_path / "out" / "x"))
    assert "the proof was checked" in told
    origin, key = checkpoint.parse_vkey((mesh.home / "sidecar" / "ledger" / "vkey").read_text())
    proof, entry = (tmp_path / "out" / "x.tlog-proof").read_bytes(), (tmp_path / "out" / "x.json").read_bytes()
    assert proofs.require_proved(proof, entry, origin, key)[0] == 2
    for words, code, says in (
        (["timeline", "nothing"], 1, "no log has a run nothing"),
        (["who-approved", "dec_x"], 1, "no approval belongs to dec_x"),
        (["prove", "x"], 2, "expected ORIGIN#INDEX"),
        (["prove", "licet.local/sidecar/demo#999"], 1, "there is no 999"),
        (["prove", "nobody#1"], 1, "here are: licet.local/gateway/main"),
        (["query", "--since", "yesterday"], 2, "expected how long ago"),
        (["renew", "nobody", "--reason", "x"], 1, "witnessed: licet.local/node/node-1"),
    ):
        found, _, err = await licet(mesh, "audit", *words)
        assert (found, says in " ".join(err.split())) == (code, True), (words, err)


async def test_a_changed_copy_is_found_by_whoever_asks_for_a_proof(mesh: Mesh) -> None:
    await mesh.call(READ, NOTES)
    await settled(mesh)
    path = mesh.gateway.witness.path("licet.local/sidecar/demo")
    bundle = next((path / "tile" / "entries").rglob("000.p/*"))
    bundle.write_bytes(bundle.read_bytes().replace(b"notes.txt", b"votes.txt"))
    _, found, err = await licet(mesh, "audit", "prove", "licet.local/sidecar/demo#2")
    assert "does not show that this is entry 2" in err, found
