"""Found by an attack on packs, index and console: each lie that verified, each entry that blinded, each way around."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from gateway.index import Index
from gateway.questions import Filter
from tests.console.test_door import get, host, link, post, signed_in
from tests.gateway.test_index import Log, deed, filled, some
from tests.mesh import Mesh
from tests.stories.test_asking import settled
from tests.verifier.test_packs import entry_of, files, pack_of, verified
from trust.identity.keys import SecretKey, b64url
from trust.ledger import checkpoint, entries
from trust.ledger.checkpoint import Checkpoint
from trust.ledger.entries import Approval, Intent, Judgement, Line, Refusal, Stamp, decode, encode, stamped
from trust.ledger.merkle import EMPTY_ROOT, leaf_hash
from trust.ledger.mirror import Mirror
from trust.ledger.rows import row
from trust.ledger.words import moment
from trust.reasons import Unverifiable

READ, NOTES = "workbench/read_file", {"path": "notes.txt"}


@pytest.fixture
async def told(mesh: Mesh) -> Mesh:
    held = await mesh.call("workbench/delete_file", NOTES, run="r1")
    await mesh.vote(held.json["approval"])
    assert (await mesh.claim(held.json["approval"])).status == 200
    await settled(mesh)
    return mesh


def changed(found: dict[str, bytes], name: str, **more: Any) -> dict[str, bytes]:
    """The pack with members of one entry's body changed, its proof as it was: only what follows is looked at."""
    line = json.loads(found[name])
    for path, value in more.items():
        *way, last = path.split("__")
        at = line["entry"]
        for step in way:
            at = at[step]
        at[last] = value
    return {**found, name: json.dumps(line).encode()}


def without_proofs(pack: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is wrong beside the proofs: as for somebody who can seal what they like."""
    monkeypatch.setattr("trust.verifier.pack.Pack._proofs", lambda *_: None)
    return verified(pack).faults


@pytest.mark.slow
async def test_what_a_compromised_sidecar_could_seal_does_not_verify(
    told: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = files(await pack_of(told))
    assert without_proofs(found, monkeypatch) == []
    intent, claimed = entry_of(found, "intent"), entry_of(found, "approval", lambda e: e["event"] == "claimed")
    requested = entry_of(found, "approval", lambda e: e["event"] == "requested")
    vote = entry_of(found, "approval", lambda e: e["event"] == "vote")
    person = entry_of(found, "person", lambda e: e["person"] == "approver-1")
    arguments = {"path": "payroll.db"}
    from trust.canonical import digest_of

    other = {"deed__arguments": arguments, "deed__arguments_sha256": digest_of(arguments)}
    lies: list[tuple[dict[str, bytes], str]] = [
        (changed(found, intent, **other), "the digest that people approve is not the one of this action"),
        (changed(found, intent, deed__agent="somebody"), "decided with the facts of demo"),
        (changed(found, intent, deed__principal="eve"), "nobody handed that on: its owner is ada"),
        (changed(found, claimed, claim="act_other"), "not used exactly once, for this action"),
        (changed(found, requested, action_digest="0" * 64), "asked for something else"),
        (changed(found, vote, by="ada"), "0 of 1 people of the role operations approved"),
        (changed(found, person, roles=["finance"]), "0 of 1 people of the role operations approved"),
        (changed(found, vote, decision="deny"), "0 of 1 people"),
        (changed(found, claimed, event="denied"), "it was denied"),
    ]
    for pack, said in lies:
        faults = without_proofs(pack, monkeypatch)
        assert [one for one in faults if said in one], (said, faults)
    bundles = [n for n in found if n.startswith("entries/") and json.loads(found[n])["entry"]["kind"] == "bundle"]
    late = found
    for name in bundles:
        line = json.loads(late[name])
        line["stamp"]["wall_us"] += 10**12
        late = {**late, name: json.dumps(line).encode()}
    assert [one for one in without_proofs(late, monkeypatch) if "policies that were not active then" in one]


@pytest.mark.slow
async def test_a_gateway_of_ones_own_invention_proves_nothing(told: Mesh) -> None:
    """Without the witness's key nobody makes a log that stands in a pack."""
    found = files(await pack_of(told))
    manifest = json.loads(found["manifest.json"])
    forger, origin = SecretKey.generate(), "licet.local/gateway/standby"
    first = manifest["entries"][0]
    line = json.loads(found[first["file"]])
    line["stamp"] |= {"origin": origin, "seq": 0}
    data = json.dumps(line).encode()
    note = checkpoint.seal(Checkpoint(origin, 1, leaf_hash(data), 1), forger)
    proof = b"c2sp.org/tlog-proof@v1\nindex 0\n\n" + note
    logs = {**manifest["logs"], origin: checkpoint.vkey(origin, forger.public)}
    listed = [{"origin": origin, "index": 0, "file": "entries/x.json", "proof": "proofs/x"}]
    forged = {**found, "entries/x.json": data, "proofs/x": proof}
    for gateway, witness, key in (
        (origin, manifest["witness"], manifest["gateway_key"]),
        (manifest["gateway"], manifest["witness"], manifest["gateway_key"]),
        (origin, checkpoint.witness_vkey(origin, forger.public), b64url(forger.public.raw)),
    ):
        new = {**manifest, "gateway": gateway, "witness": witness, "gateway_key": key, "logs": logs, "entries": listed}
        report = verified({**forged, "manifest.json": json.dumps(new).encode()})
        assert report.faults, gateway


@pytest.mark.slow
async def test_decisions_that_cannot_be_made_again_are_not_called_verified(mesh: Mesh, tmp_path: Path) -> None:
    """A plain agent could send arguments that are too large for an entry."""
    await mesh.call("workbench/write_file", {"path": "big.txt", "content": "x" * 100_000}, run="r1")
    await settled(mesh)
    found = files(await pack_of(mesh))
    report = verified(found)
    assert report.faults == []
    assert report.words().startswith("VERIFIED IN PART")
    assert [one for one in report.partly if "its arguments are not in the pack" in one]


KEY = SecretKey.generate()


def sealed(origin: str, *said: entries.AnyEntry, wall_us: int = 1_000) -> list[bytes]:
    return [stamped(Stamp(origin, n, "b", wall_us, 1), encode(one)) for n, one in enumerate(said)]


@pytest.mark.parametrize(
    ("origin", "entry"),
    [
        ("t/sidecar/a", Approval("vote", "apr_1", by="approver-1", decision="approve")),
        ("t/sidecar/a", entries.Kill("lifted", "all", "operator", "x")),
        ("t/sidecar/a", entries.Dispatch("a", "d", "r", "a", "p", "s", "t", "n", "x", "y", "i", "k")),
        ("t/sidecar/a", entries.Bundle("activated", 9, "d" * 64)),
        ("t/sidecar/a", entries.Outcome("a", "d", "r", "done", step=8)),
        ("t/sidecar/a", entries.Person("registered", "eve", "operator", ["operator"])),
        ("t/node/n", Approval("approved", "apr_1")),
        ("t/node/n", Intent(deed(1), Judgement("d", "allow", {}))),
        ("t/node/n", entries.Dispatch("a", "d", "r", "a", "p", "s", "t", "n", "x", "y", "i", "k")),
    ],
)
def test_the_witness_takes_no_entry_that_its_writer_may_not_write(
    tmp_path: Path, origin: str, entry: entries.AnyEntry
) -> None:
    mirror = Mirror(tmp_path, origin, KEY.public, Checkpoint(origin, 0, EMPTY_ROOT, 0))
    with pytest.raises(Unverifiable, match="is one that no"):
        mirror.take(0, sealed(origin, entry))


@pytest.mark.parametrize("wall_us", [-1, -5_000_000, 253_402_300_800_000_000, 2**63, 2**70])
def test_the_witness_takes_no_time_that_is_none(tmp_path: Path, wall_us: int) -> None:
    origin = "t/sidecar/a"
    mirror = Mirror(tmp_path, origin, KEY.public, Checkpoint(origin, 0, EMPTY_ROOT, 0))
    good = sealed(origin, some(0), wall_us=7)[0]
    with pytest.raises(Unverifiable):
        mirror.take(0, [good.replace(b'"wall_us":7,', b'"wall_us":%d,' % wall_us)])
    mirror.take(0, [good])


async def test_one_log_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    logs = [*filled(40, 2), Log("t/sidecar/z")]
    logs[0].data.insert(0, b"no entry at all")
    index = Index(tmp_path / "index.sqlite", lambda: logs)
    logs[2].add(some(0), 5_000)
    assert await index.follow() == 21
    assert set(index.stuck) == {logs[0].origin}
    logs[2].add(some(1), 6_000)
    assert await index.follow() == 1
    assert len((await index.find(Filter(limit=100))).rows) == 22
    del logs[0].data[0]
    assert await index.follow() == 20
    assert index.stuck == {}
    index.close()


@pytest.mark.parametrize("facts", [{"agent": "x"}, {"agent": None}, {"agent": {"owner": 5}}, {}])
def test_a_row_is_made_of_whatever_an_entry_says(facts: Any) -> None:
    line = decode(stamped(Stamp("t/sidecar/a", 0, "b", 1, 1), encode(Refusal(
        5, "policy_forbids", "no", "dec_1", deed(1), Judgement("d", "deny", facts)
    ))))  # fmt: skip
    assert isinstance(line, Line)
    assert isinstance(row(line).owner, str)


def test_any_number_is_a_moment() -> None:
    for number in (-(2**63), -1, 0, 253_402_300_799_000_000, 10**18, 2**80):
        assert moment(number)


@pytest.mark.slow
async def test_a_cookie_is_for_the_consoles_own_name(mesh: Mesh) -> None:
    """A browser sends what belongs to 127.0.0.1 to every port there; behind another may be an agent."""
    cookie, csrf = await signed_in(mesh)
    for name in ("127.0.0.1", "localhost"):
        there = {"Host": f"{name}:{mesh.gateway.port}"}
        answer = await get(mesh, "/console/ledger", cookie, **there)
        assert (answer.status, answer.headers["Location"]) == (303, f"{mesh.gateway.console}/console/ledger")
        body = f"csrf={csrf}&name=x&asked="
        sent = {**there, "Origin": f"http://{name}:{mesh.gateway.port}"}
        assert (await post(mesh, "/console/ledger/saved", body, cookie, **sent)).status == 403
    assert host(mesh).startswith("licet.localhost:")


@pytest.mark.slow
async def test_pages_are_not_looked_at_from_elsewhere(mesh: Mesh) -> None:
    cookie, _ = await signed_in(mesh)
    for site in ("cross-site", "same-site"):
        for more in ({}, {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, {"Sec-Fetch-Mode": "navigate"}):
            answer = await get(mesh, "/console/ledger/export?format=csv", cookie, **{"Sec-Fetch-Site": site}, **more)
            assert answer.status == 403, (site, more)
        there = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        assert (await get(mesh, "/console/gaps", cookie, **there)).status == 200


@pytest.mark.slow
async def test_one_person_cannot_use_up_the_sign_ins_of_all(mesh: Mesh) -> None:
    first = (await link(mesh, "approver-1")).partition("?")[2]
    for _ in range(5):
        last = (await link(mesh, "approver-1")).partition("?")[2]
    assert (await post(mesh, "/console/enter", first)).status == 401
    assert (await post(mesh, "/console/enter", last)).status == 303
    assert (await post(mesh, "/console/enter", (await link(mesh)).partition("?")[2])).status == 303


@pytest.mark.slow
async def test_a_page_shows_only_as_much_as_a_person_reads(mesh: Mesh) -> None:
    cookie, csrf = await signed_in(mesh)
    for question in ("SELECT repeat(chr(769), 10000) FROM range(1600)", "SELECT range, range FROM range(10000)"):
        answer = await post(mesh, "/console/sql", urlencode({"csrf": csrf, "sql": question}), cookie)
        assert answer.status == 200
        assert len(answer.body) < 2_000_000
        assert b"there are more" in answer.body


@pytest.mark.slow
async def test_numbers_that_are_too_large_are_refused_and_no_fault_of_ours(mesh: Mesh) -> None:
    for path in (
        "/v1/runs/r1/timeline?after=9999999999999999999.1.1",
        "/v1/ledger/entries?after=9999999999999999999.1.1",
        f"/v1/ledger/entry?origin={mesh.gateway.ledger.origin}&index={'9' * 500}",
    ):
        assert (await mesh.admin("GET", path)).status == 400, path
    for text in ("😀" * 16_000, "\x01" * 15_000):
        assert (await mesh.admin("POST", "/v1/ledger/sql", {"sql": text})).status == 400
