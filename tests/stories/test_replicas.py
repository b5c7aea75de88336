"""Two gateways over one PostgreSQL and one Redis: one mesh, whichever of them is asked, and when one of them is gone."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import psutil
import pytest

from gateway.app import Gateway
from gateway.config import GatewayConfig
from gateway.people import People
from gateway.questions import Filter
from gateway.state import LogRecord, Peer
from gateway.witness import ASIDE
from licet.client import Api, Unavailable
from loadtests.servers import Redis, free_ports
from tests.mesh import REPOSITORY, SEGMENT, Answer, Mesh
from tests.stories.test_witness import shipped, witnessed
from trust.identity.keys import SecretKey
from trust.identity.wit import Workload
from trust.ledger import checkpoint, entries
from trust.ledger.checkpoint import Checkpoint
from trust.ledger.log import LedgerDamaged
from trust.ledger.merkle import leaf_hash
from trust.ledger.proofs import Tree
from trust.ledger.shipment import Shipment
from trust.ledger.tiles import read_entries
from trust.ledger.verify import verify

pytestmark = pytest.mark.slow


@pytest.fixture
async def two(tmp_path: Path, database: str, redis: Redis) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path / "mesh", database=database, redis=redis.url) as mesh:
        (mesh.sandbox / "notes.txt").write_text("hello")
        for gateway in (mesh.gateway, mesh.replicas["b"]):
            await eventually(lambda gateway=gateway: [one.alive for one in gateway.fleet.candidates()] == [True])
        yield mesh


def url(gateway: Gateway) -> str:
    return f"http://127.0.0.1:{gateway.port}"


async def ask(mesh: Mesh, gateway: Gateway, method: str, path: str, body: Any = None, who: str = "operator") -> Answer:
    return await mesh.request(method, url(gateway) + path, token=mesh.tokens[who], json=body)


async def eventually(holds: Any, within_s: float = 30.0) -> None:
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.01)


def turn_to(mesh: Mesh, gateway: Gateway) -> None:
    """The sidecar asks this gateway from now on."""
    gateways = mesh.sidecar.identity.gateways
    gateways._at = gateways.urls.index(url(gateway))


async def read(mesh: Mesh) -> Answer:
    return await mesh.call("workbench/read_file", {"path": "notes.txt"})


async def test_what_one_is_told_the_other_knows(two: Mesh) -> None:
    b = two.replicas["b"]
    assert {one.name for one in b.records.store.all(Peer)} == {"main", "b"}
    await eventually(
        lambda: b.bundles.sealed is not None and b.bundles.sealed.digest == two.gateway.bundles.sealed.digest
    )
    await eventually(lambda: b.records.store.dump() == two.gateway.records.store.dump())
    people = await ask(two, b, "GET", "/v1/people")
    assert people.status == 200
    assert (await ask(two, b, "POST", "/v1/people", {"name": "zoe", "roles": ["auditor"]})).status == 201
    await eventually(lambda: two.gateway.records.version == b.records.version)
    listed = await ask(two, two.gateway, "GET", "/v1/people")
    assert "zoe" in listed.body.decode()


async def test_an_action_goes_through_either(two: Mesh) -> None:
    for gateway in (two.gateway, two.replicas["b"]):
        turn_to(two, gateway)
        before = gateway.ledger.size
        answer = await read(two)
        assert answer.status == 200, answer.body
        assert any(isinstance(line.entry, entries.Dispatch) for _, line in gateway.ledger.lines(before))


async def test_a_session_opened_at_one_is_open_at_the_other(two: Mesh) -> None:
    turn_to(two, two.gateway)
    await eventually(lambda: two.sidecar.identity.session is not None)
    session = two.sidecar.identity.session
    turn_to(two, two.replicas["b"])
    assert (await read(two)).status == 200
    assert two.sidecar.identity.session is session
    assert two.replicas["b"]._api.services.callers.sessions.knows(session.name)


async def test_an_approval_asked_at_one_and_given_at_the_other_is_used_once(two: Mesh) -> None:
    (two.sandbox / "old.txt").write_text("x")
    turn_to(two, two.gateway)
    held = await two.call("workbench/delete_file", {"path": "old.txt"})
    assert held.status == 202, held.body
    approval, b = held.json["approval"], two.replicas["b"]
    await eventually(lambda: b.desk.find(approval) is not None)
    presented = b.desk.get(approval).presented
    ballot = {"decision": "approve", "reason": "", "presented": presented}
    voted = await ask(two, b, "POST", f"/v1/approvals/{approval}/votes", ballot, "approver-1")
    assert voted.status == 200, voted.body
    turn_to(two, b)
    answer = await two.claim(approval)
    assert answer.status == 200, answer.body
    turn_to(two, two.gateway)
    again = await two.claim(approval)
    assert (again.status, again.json["reason"]) == (403, "approval_consumed")


async def test_of_two_hundred_racing_claims_over_two_one_executes(two: Mesh) -> None:
    (two.sandbox / "old.txt").write_text("x")
    held = await two.call("workbench/delete_file", {"path": "old.txt"})
    approval, b = held.json["approval"], two.replicas["b"]
    await two.vote(approval)
    await eventually(lambda: b.desk.get(approval).state == "approved" if b.desk.find(approval) else False)
    gateways = two.sidecar.identity.gateways

    async def claim(n: int) -> int:
        gateways._at = n % 2
        return (await two.claim(approval)).status

    answers = Counter(await asyncio.gather(*(claim(n) for n in range(200))))
    assert answers[200] == 1, answers
    ran = [
        line.entry
        for _, line in two.node.ledger.lines()
        if isinstance(line.entry, entries.Dispatch) and line.entry.tool == "delete_file"
    ]
    assert len(ran) == 1
    claimed = [
        line.entry
        for gateway in (two.gateway, b)
        for _, line in gateway.ledger.lines()
        if isinstance(line.entry, entries.Approval) and line.entry.event == "claimed"
    ]
    assert len(claimed) == 1


async def test_an_action_goes_out_once_whichever_gateway_is_asked(two: Mesh) -> None:
    """A sidecar that was taken over sends the same action to both, each time signed anew; or the same signature."""
    from tests.attacks.test_forgery import dispatch, signature, statement
    from trust import wire

    made, body = statement(two)
    assert (await dispatch(two, made, body)).status == 200
    first, two.gateway_url = two.gateway_url, url(two.replicas["b"])
    try:
        again = await dispatch(two, made, body)
        assert (again.status, again.json["reason"]) == (401, "replayed")
        made, body = statement(two)
        signed = signature(two, wire.encode(made, body))
        assert (await dispatch(two, made, body, headers=signed)).status == 200
        other, body = statement(two)
        nonce = re.search(r'nonce="([^"]+)"', signed["signature-input"])
        assert nonce is not None
        reused = signature(two, wire.encode(other, body), nonce=nonce[1])
    finally:
        two.gateway_url = first
    used = signature(two, wire.encode(other, body), nonce=nonce[1])
    assert reused.keys() == used.keys()
    answer = await dispatch(two, other, body, headers=used)
    assert (answer.status, answer.json["reason"]) == (401, "replayed"), "a nonce is used once by all of them"


async def test_who_is_stopped_at_one_is_stopped_at_both(two: Mesh) -> None:
    for gateway in (two.gateway, two.replicas["b"]):
        turn_to(two, gateway)
        assert (await read(two)).status == 200
    stopped = await ask(two, two.replicas["b"], "POST", "/v1/kills", {"target": "demo", "reason": "test"})
    assert stopped.status == 200, stopped.body
    turn_to(two, two.gateway)
    await eventually(lambda: two.sidecar.world.facts.stopped is not None, 2.0)
    answer = await read(two)
    assert (answer.status, answer.json["reason"]) == (403, "killed")


async def test_a_replica_that_is_gone_is_not_missed(two: Mesh) -> None:
    turn_to(two, two.replicas["b"])
    assert (await read(two)).status == 200
    await two.stop_replica("b")
    async with asyncio.timeout(30):
        while (answer := await read(two)).status != 200:
            assert answer.json["reason"] in ("gateway_unreachable", "outcome_unknown", "no_eligible_node"), answer.body
            await asyncio.sleep(0.05)
    await eventually(lambda: two.sidecar.world.age_s() < 1.5)
    made = await ask(two, two.gateway, "POST", "/v1/people", {"name": "zoe", "roles": ["auditor"]})
    assert made.status == 201
    b = await two.start_replica("b")
    await eventually(lambda: b.records.store.dump() == two.gateway.records.store.dump())


async def test_a_node_is_known_to_both_whichever_it_tells(two: Mesh) -> None:
    b = two.replicas["b"]
    two.node.identity.gateways._at = 1
    await two.stop("gateway")
    await asyncio.sleep(0.5)
    turn_to(two, b)
    assert (await read(two)).status == 200


def copies(gateway: Gateway) -> dict[str, int]:
    return {log.origin: log.size for log in gateway.ledgers.sealed_logs()}


async def test_each_has_every_log_and_proves_it(two: Mesh) -> None:
    b = two.replicas["b"]
    turn_to(two, two.gateway)
    answer = await read(two)
    turn_to(two, b)
    assert (await read(two)).status == 200
    decision, logs = (
        answer.json["decision_id"],
        {"licet.local/gateway/main", "licet.local/gateway/b", "licet.local/sidecar/demo", "licet.local/node/node-1"},
    )
    await eventually(lambda: set(copies(two.gateway)) == set(copies(b)) == logs)
    for gateway in (two.gateway, b):
        async with asyncio.timeout(30):
            while True:
                found = await ask(two, gateway, "GET", f"/v1/ledger/entries?decision_id={decision}")
                kinds = sorted(row["kind"] for row in found.json["rows"])
                if kinds == ["dispatch", "intent", "outcome", "outcome"]:
                    break
                await asyncio.sleep(0.1)
        for row in found.json["rows"]:
            gateway.ledgers.proved(row["origin"], row["index"])


async def test_only_gateways_are_told_what_logs_say(two: Mesh) -> None:
    for path in ("/v1/peers/logs", "/v1/peers/log?origin=licet.local/sidecar/demo&first=0"):
        answer = await two.request("GET", two.gateway_url + path)
        assert (answer.status, answer.json["reason"]) == (401, "unauthenticated")
    peers = two.replicas["b"]._api.services.peers
    main = two.gateway.records.store.get(Peer, "main")
    assert main is not None
    sent: list[dict[str, str]] = []
    request = peers._client.request

    async def seen(method: str, target: str, headers: Any, *more: Any, **named: Any) -> Any:
        sent.append(dict(headers))
        return await request(method, target, headers, *more, **named)

    peers._client.request = seen  # type: ignore[method-assign]
    assert b"licet.local/gateway/main" in await peers._get(main, "/v1/peers/logs")
    shown = next(h for h in sent if "Authorization" in h)
    other = await two.request("GET", two.gateway_url + "/v1/peers/log?origin=x&first=0", headers=shown)
    assert other.status == 401
    elsewhere = await two.request("GET", url(two.replicas["b"]) + "/v1/peers/logs", headers=shown)
    assert elsewhere.status == 401


async def test_a_log_that_says_two_things_to_two_gateways_is_found_out(
    two: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has a sidecar's machine keeps two pasts: one for each gateway, of which the second heard of no first."""
    b = two.replicas["b"]

    async def nothing(*_: Any) -> None:
        return None

    monkeypatch.setattr("gateway.peers.Peers._copy", nothing)
    monkeypatch.setattr("gateway.witness.TELL_S", 0.0)
    turn_to(two, two.gateway)
    await read(two)
    sealed = await witnessed(two)
    two.sidecar._tasks[3].cancel()
    shutil.rmtree(b.witness.path(sealed.origin), ignore_errors=True)
    b.witness._mirrors.clear()
    await eventually(lambda: b.records.version == two.gateway.records.version)
    key = SecretKey.load(two.home / "sidecar" / "ledger.key")
    told = [entries.stamped(line.stamp, entries.encode(line.entry)) for _, line in two.sidecar.ledger.lines()]
    line = entries.decode(told[0])
    told[0] = entries.stamped(msgspec.structs.replace(line.stamp, wall_us=1), entries.encode(line.entry))
    longer = [*told[: sealed.size], *told[sealed.size :]]
    turn_to(two, b)
    status, said = await shipped(two, 0, b"", longer[: sealed.size])
    assert (status, b"not those that were witnessed" in said) == (409, True), said
    assert b.records.store.get(LogRecord, sealed.origin).wrong
    await eventually(lambda: two.gateway.records.store.get(LogRecord, sealed.origin).wrong)
    claim = Checkpoint(sealed.origin, sealed.size - 1, sealed.root, sealed.time_ms)
    status, said = await shipped(two, 0, checkpoint.seal(claim, key), longer[: sealed.size - 1])
    assert (status, b"now seals" in said) == (409, True), said


async def test_a_log_goes_on_at_the_other_gateway(two: Mesh) -> None:
    turn_to(two, two.gateway)
    await read(two)
    first = await witnessed(two)
    b = two.replicas["b"]
    await eventually(lambda: copies(b).get(first.origin, 0) >= first.size)
    turn_to(two, b)
    await read(two)
    second = await witnessed(two)
    assert second.size > first.size
    assert Tree(b.witness.path(first.origin), second.size).root() == second.root
    await eventually(lambda: copies(two.gateway)[first.origin] >= second.size)


async def test_a_gateway_that_begins_late_copies_what_others_have_pruned(two: Mesh) -> None:
    """By its hashes, and what is newer whole; and nothing else waits for it."""
    turn_to(two, two.gateway)
    for _ in range(140):
        assert (await read(two)).status == 200
    first, b = await witnessed(two), two.replicas["b"]
    assert (await two.gateway.ledgers.prune(10**17, "operator"))[first.origin] == 256
    await two.stop_replica("b")
    shutil.rmtree(two.home / "gateway-b" / "logs")
    (two.home / "gateway-b" / "index.sqlite").unlink()
    b = await two.start_replica("b")
    await eventually(lambda: copies(b).get(first.origin, 0) >= first.size)
    report = verify(b.witness.path(first.origin), copy=True)
    assert (report.faults, report.pruned) == ([], 256)
    assert b._api.services.peers.silent == {}
    said = [line.entry for _, line in b.ledger.lines() if isinstance(line.entry, entries.Pruned)]
    assert (first.origin, 256, "main") in [(one.origin, one.first, one.by) for one in said]
    turn_to(two, b)
    assert (await read(two)).status == 200
    assert (await witnessed(two)).size > first.size


async def test_what_all_know_of_a_log_catches_up_when_it_is_quiet(two: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Growth is told to all twice a minute, and so is the last of it."""
    monkeypatch.setattr("sidecar.shipping.IDLE_S", 0.2)
    turn_to(two, two.gateway)
    for _ in range(3):
        await read(two)
        sealed = await witnessed(two)

    def known() -> int:
        record = two.gateway.records.store.get(LogRecord, sealed.origin)
        return record.size if record else 0

    assert known() < sealed.size
    monkeypatch.setattr("gateway.witness.TELL_S", 1.0)
    await eventually(lambda: known() >= sealed.size)


async def test_one_log_that_cannot_be_copied_hides_no_other(two: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    turn_to(two, two.gateway)
    await read(two)
    first, b = await witnessed(two, "node"), two.replicas["b"]
    peers, honest = b._api.services.peers, two.gateway._api.services.peers.shipped

    async def broken(origin: str, start: int) -> bytes:
        return b"\0\0\0\2{}" if origin == first.origin else await honest(origin, start)

    monkeypatch.setattr(two.gateway._api.services.peers, "shipped", broken)
    await read(two)
    second = await witnessed(two)
    await eventually(lambda: copies(b).get(second.origin, 0) >= second.size)
    assert peers.silent == {}
    await eventually(lambda: ("main", first.origin) in peers._stuck)
    monkeypatch.undo()
    third = await witnessed(two, "node")
    await eventually(lambda: copies(b).get(third.origin, 0) >= third.size)
    await eventually(lambda: not peers._stuck)


async def test_two_keys_for_one_log_meet_one_gateway_each(two: Mesh) -> None:
    """At the same moment: one of them is that of the log, and the other is refused, wherever it came."""
    origin = two.sidecar.ledger.origin + "/pod-x"
    vkeys = [checkpoint.vkey(origin, SecretKey.generate().public) for _ in range(2)]
    witnesses = two.gateway.witness, two.replicas["b"].witness
    met = await asyncio.gather(
        *(one._meet(origin, vkey) for one, vkey in zip(witnesses, vkeys, strict=True)), return_exceptions=True
    )
    (refused,) = [one for one in met if isinstance(one, Exception)]
    assert "another key than before" in str(refused)
    kept = vkeys[0] if met[1] is refused else vkeys[1]
    for gateway in (two.gateway, two.replicas["b"]):
        await eventually(lambda gateway=gateway: gateway.records.store.get(LogRecord, origin) is not None)
        assert gateway.records.store.get(LogRecord, origin).vkey == kept


async def test_a_gateway_that_was_away_while_a_log_began_anew_keeps_the_former_copy_aside(two: Mesh) -> None:
    turn_to(two, two.gateway)
    await read(two)
    first, b = await witnessed(two), two.replicas["b"]
    await eventually(lambda: copies(b).get(first.origin, 0) >= first.size)
    await two.stop_replica("b")
    await two.stop("sidecar")
    shutil.rmtree(two.home / "sidecar" / "ledger")
    (two.home / "sidecar" / "ledger.key").unlink()
    answer = await ask(two, two.gateway, "POST", "/v1/ledger/renew", {"origin": first.origin, "reason": "a new disk"})
    assert answer.status == 201, answer.body
    await two.start_sidecar()
    await read(two)
    second = await witnessed(two)
    b = await two.start_replica("b")
    copy, vkey = b.witness.path(first.origin) / "vkey", (two.sidecar.ledger.root / "vkey").read_text()
    await eventually(lambda: copy.exists() and copy.read_text() == vkey)
    await eventually(lambda: copies(b).get(first.origin, 0) >= second.size)
    assert verify(b.witness.path(first.origin), copy=True).faults == []
    (aside,) = (b.config.home / "logs" / ASIDE).iterdir()
    assert Tree(aside, first.size).root() == first.root

    async def indexed() -> list[int]:
        page = await b.ledgers.index.find(Filter(origin=first.origin, limit=1000, oldest_first=True))
        return [row.index for row in page.rows]

    async with asyncio.timeout(30):
        while len(rows := await indexed()) < second.size:
            await asyncio.sleep(0.05)
    assert rows == list(range(len(rows))), "nothing of the former log, and all of this"


async def test_a_writer_cannot_have_a_copy_put_aside_that_is_only_a_moment_behind(
    two: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ships to one gateway, and offers the other hashes of what that has not copied yet."""
    monkeypatch.setattr("gateway.witness.TELL_S", 0.1)
    turn_to(two, two.gateway)
    await read(two)
    first, b = await witnessed(two), two.replicas["b"]
    origin, vkey = first.origin, (two.sidecar.ledger.root / "vkey").read_text().strip()
    await eventually(lambda: copies(b).get(origin, 0) >= first.size)

    async def nothing(*_: Any) -> None:
        pass

    monkeypatch.setattr(b._api.services.peers, "_copy_one", nothing)
    for _ in range(140):
        await read(two)
    await witnessed(two)
    await eventually(lambda: b.records.store.get(LogRecord, origin).size >= 256)
    have = copies(b)[origin]
    assert 0 < have < 256
    leaves = [leaf_hash(entry) for entry in read_entries(two.sidecar.ledger.root, 256)][have:]
    asked = Shipment(vkey, have, pruned=256)
    monkeypatch.setattr(b.witness, "elsewhere", lambda _origin, _have: False)
    workload = Workload("licet.local", "agent", "demo", "", SecretKey.generate().public, 0, 0)
    received = await b.witness.receive(workload, asked, leaves)
    assert received.size == have
    assert not (b.config.home / "logs" / ASIDE).exists()


async def test_who_was_not_asked_yet_may_have_more(two: Mesh) -> None:
    """Until then no writer's hashes are taken for what another gateway may have whole."""
    peers = two.replicas["b"]._api.services.peers
    origin = two.sidecar.ledger.origin
    await eventually(lambda: not peers._has_more(origin, 10**9))
    peers._heard.clear()
    assert peers._has_more(origin, 10**9)
    await eventually(lambda: not peers._has_more(origin, 10**9))
    assert peers._has_more(origin, -1)
    peers._stuck.add(("main", origin))
    assert not peers._has_more(origin, -1), "and what it does not give it has not"
    peers._stuck.clear()
    peers.silent["main"] = "it is gone"
    assert not peers._has_more(origin, -1)


async def test_a_log_that_begins_anew_does_so_at_both(two: Mesh) -> None:
    turn_to(two, two.gateway)
    await read(two)
    first = await witnessed(two)
    b = two.replicas["b"]
    await eventually(lambda: copies(b).get(first.origin, 0) >= first.size)
    body = {"origin": first.origin, "reason": "a new disk"}
    answer = await ask(two, two.gateway, "POST", "/v1/ledger/renew", body)
    assert answer.status == 201, answer.body
    await eventually(lambda: not (b.witness.path(first.origin) / "checkpoint").exists() or copies(b)[first.origin] > 0)
    assert list((b.config.home / "logs" / ASIDE).glob("*sidecar_demo.until-*"))
    await read(two)
    await eventually(lambda: copies(b).get(first.origin, 0) >= first.size)


async def test_what_both_did_is_proved_to_an_outsider(two: Mesh, tmp_path: Path) -> None:
    """A run of which one gateway was asked, the other heard the vote, and the first sent the action."""
    from trust.verifier.pack import Pack

    (two.sandbox / "old.txt").write_text("x")
    b, run = two.replicas["b"], "run_both"
    turn_to(two, two.gateway)
    held = await two.call("workbench/delete_file", {"path": "old.txt"}, run=run)
    approval = held.json["approval"]
    await eventually(lambda: b.desk.find(approval) is not None)
    ballot = {"decision": "approve", "reason": "", "presented": b.desk.get(approval).presented}
    assert (await ask(two, b, "POST", f"/v1/approvals/{approval}/votes", ballot, "approver-1")).status == 200
    turn_to(two, b)
    assert (await two.claim(approval)).status == 200
    turn_to(two, two.gateway)
    assert (await two.call("workbench/read_file", {"path": "notes.txt"}, run=run)).status == 200
    for gateway in (two.gateway, b):
        async with asyncio.timeout(30):
            while True:
                answer = await ask(two, gateway, "GET", f"/v1/runs/{run}/evidence")
                if answer.status == 200:
                    archive = zipfile.ZipFile(io.BytesIO(answer.body))
                    report = Pack(archive.read).verify()
                    whole = any("2 actions were allowed" in said for said in report.said)
                    if whole and not report.faults and len(report.open) == 1:
                        break
                await asyncio.sleep(0.2)
        assert any("approver-1" in said for said in report.said), report.said
        origins = {one["origin"] for one in json.loads(archive.read("manifest.json"))["entries"]}
        assert {"licet.local/gateway/main", "licet.local/gateway/b"} <= origins


async def test_a_trail_and_the_usage_are_whole_at_either(two: Mesh) -> None:
    run = "run_trail"
    for gateway in (two.gateway, two.replicas["b"]):
        turn_to(two, gateway)
        assert (await two.call("workbench/read_file", {"path": "notes.txt"}, run=run)).status == 200
    for gateway in (two.gateway, two.replicas["b"]):
        async with asyncio.timeout(30):
            while True:
                usage = await ask(two, gateway, "GET", "/v1/usage?by=agent")
                trail = await ask(two, gateway, "GET", f"/v1/runs/{run}/trail")
                if usage.json["sums"] and usage.json["sums"][0]["done"] == 2 and len(trail.json["hops"]) == 2:
                    break
                await asyncio.sleep(0.1)


async def test_a_node_that_is_connected_to_one_gateway_works_for_both(two: Mesh) -> None:
    """As behind a load balancer, which gave all of its connections to one."""
    b = two.replicas["b"]
    fallbacks, two.replica_ports = two.replica_ports, {}
    try:
        node = await two.add_node("far", registered={"outbound": True}, outbound=True)
    finally:
        two.replica_ports = fallbacks
    await two.stop("node")
    await eventually(lambda: two.gateway._accepted.has("far"))
    assert not b._accepted.has("far")
    await eventually(lambda: {one.node.name for one in b.fleet.candidates() if one.alive} == {"far"}, 15)
    turn_to(two, b)
    await two.ready()
    answer = await read(two)
    assert (answer.status, answer.json.get("node")) == (200, "far"), answer.body
    with_session = await two.call("workbench/search_files", {"path": ".", "pattern": "notes"})
    assert with_session.status == 200, with_session.body
    await node.stop()
    two.nodes.clear()
    await eventually(lambda: not two.gateway._accepted.has("far"))
    answer = await read(two)
    assert answer.json["reason"] in ("node_unreachable", "no_eligible_node"), answer.body


async def test_a_gateway_that_lost_its_disk_is_another_one(two: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """And whatever the one before it wrote stays, and is proved."""
    a, b = two.gateway, two.replicas["b"]
    assert (await ask(two, b, "POST", "/v1/people", {"name": "before", "roles": ["viewer"]})).status == 201
    old, size = b.ledger.origin, b.ledger.size
    await eventually(lambda: copies(a).get(old, 0) >= size, 15.0)
    await two.stop_replica("b")
    shutil.rmtree(two.home / "gateway-b")
    b = await two.start_replica("b")
    assert b.ledger.origin == old + ".2"
    assert (await ask(two, b, "POST", "/v1/people", {"name": "after", "roles": ["viewer"]})).status == 201
    names = {one["name"] for one in (await ask(two, a, "GET", "/v1/people")).json["people"]}
    assert {"before", "after"} <= names
    assert [one.name for one in a.records.store.all(Peer)] == ["b.2", "main"]
    await eventually(lambda: copies(b).get(old, 0) >= size, 15.0)
    monkeypatch.setattr("gateway.witness.SILENT_US", 0)
    closed = {"origin": old, "reason": "its volume is gone"}
    assert (await ask(two, a, "POST", "/v1/ledger/close", closed)).status == 201
    await two.stop_replica("b")
    b = await two.start_replica("b")
    assert b.ledger.origin == old + ".2", "it is the same one after a restart"


async def test_gateways_that_start_at_once_are_one(
    tmp_path: Path, database: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the pods of a StatefulSet do, on an empty database; somebody has to be the first operator, once."""
    all_see_nobody, register = asyncio.Barrier(3), People.register

    async def together(people: People, *given: Any) -> str:
        await all_see_nobody.wait()
        return await register(people, *given)

    monkeypatch.setattr(People, "register", together)
    SecretKey.load_or_create(tmp_path / "gateway.key")
    made = [
        Gateway(
            GatewayConfig(
                name=name,
                home=tmp_path / name,
                port=0,
                key_file=tmp_path / "gateway.key",
                database=database,
                redis=redis.url,
                segment_bytes=SEGMENT,
            )
        )
        for name in ("a", "b", "c")
    ]
    try:
        await asyncio.gather(*(one.start() for one in made))
        [token] = tmp_path.glob("*/operator.token")
        for one in made:
            await eventually(lambda one=one: one.records.version == made[0].records.version)
            api = Api(url(one), token.read_text().strip())
            told = await asyncio.to_thread(api.call, "GET", "/v1/people")
            assert [person["name"] for person in told.body["people"]] == ["operator"]
    finally:
        for one in made:
            await one.stop()


async def test_a_gateway_that_was_alone_keeps_its_key(tmp_path: Path, database: str, redis: Redis) -> None:
    """With another one it would bring nothing along that anybody believes."""
    alone = Gateway(GatewayConfig(home=tmp_path / "home", port=0, segment_bytes=SEGMENT))
    await alone.start()
    await alone.stop()
    SecretKey.load_or_create(tmp_path / "another.key")
    shared = GatewayConfig(
        home=tmp_path / "home",
        port=0,
        key_file=tmp_path / "another.key",
        database=database,
        redis=redis.url,
        segment_bytes=SEGMENT,
    )
    with pytest.raises(
        LedgerDamaged, match=r"another\.key is another key than .*home/gateway\.key.*name .* as key_file"
    ):
        await Gateway(shared).start()
    session = await asyncpg.connect(database)
    assert await session.fetchval("SELECT to_regclass('licet_change')") is None, "nothing was brought there"
    await session.close()
    shutil.copy(tmp_path / "home" / "gateway.key", tmp_path / "copy.key")
    gateway = Gateway(shared.model_copy(update={"key_file": tmp_path / "copy.key"}))
    await gateway.start()
    await gateway.stop()


async def test_a_database_that_lost_changes_gets_them_back_when_the_processes_are_started_again(two: Mesh) -> None:
    """That they have to be is what /livez says, so whoever keeps them running does it without hands."""

    async def live() -> set[int]:
        gateways = (two.gateway, two.replicas["b"])
        return {(await two.request("GET", url(one) + "/livez")).status for one in gateways}

    assert await live() == {200}
    version = two.gateway.records.version
    session = await asyncpg.connect(two.database)
    await session.execute("DELETE FROM licet_change WHERE turn > $1", version - 4)
    await session.close()
    async with asyncio.timeout(30):
        while await live() != {503}:
            await asyncio.sleep(0.05)
    await two.stop_replica("b")
    await two.stop("gateway")
    await asyncio.gather(two.start_gateway(), two.start_replica("b"))
    assert await live() == {200}
    assert two.gateway.records.version >= version
    await two.ready()
    assert (await two.call("workbench/read_file", {"path": "notes.txt"})).status == 200


def test_workers_share_a_port_and_each_has_its_own_log(tmp_path: Path, database: str, redis: Redis) -> None:
    """Real processes: three workers, one of which is killed and comes back."""
    key, port = tmp_path / "gateway.key", free_ports(4)
    SecretKey.load_or_create(key)
    settings = {
        "LICET_HOME": str(tmp_path),
        "LICET_GATEWAY__HOME": str(tmp_path / "gateway"),
        "LICET_GATEWAY__PORT": str(port),
        "LICET_GATEWAY__KEY_FILE": str(key),
        "LICET_GATEWAY__DATABASE": database,
        "LICET_GATEWAY__REDIS": redis.url,
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LICET_")}
    command = [sys.executable, "-m", "licet", "gateway", "--workers", "3"]
    with subprocess.Popen(command, env=kept | settings, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"gateway listens on http://127.0.0.1:{port} (3 workers)\n"
            token = (tmp_path / "gateway" / "operator.token").read_text().strip()
            for number in range(12):
                body = {"name": f"p{number}", "roles": ["auditor"]}
                Api(f"http://127.0.0.1:{port}", token).call("POST", "/v1/people", body)
            told = [Api(f"http://127.0.0.1:{port + n}", token).call("GET", "/v1/people").body for n in (1, 2, 3)]
            assert [len(one["people"]) for one in told] == [13, 13, 13]
            victim = psutil.Process(process.pid).children()[1]
            victim.kill()
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                with contextlib.suppress(Unavailable):
                    if len(psutil.Process(process.pid).children()) == 3:
                        Api(f"http://127.0.0.1:{port + 2}", token, 2.0).call("GET", "/livez")
                        break
                time.sleep(0.1)
            else:
                raise AssertionError("the worker did not come back")
            Api(f"http://127.0.0.1:{port + 2}", token).call(
                "POST", "/v1/people", {"name": "late", "roles": ["auditor"]}
            )
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
    homes = [tmp_path / "gateway", tmp_path / "gateway" / "worker-2", tmp_path / "gateway" / "worker-3"]
    reports = [verify(home / "ledger") for home in homes]
    assert not any(report.faults for report in reports)
    assert [report.origin for report in reports] == [f"licet.local/gateway/{n}" for n in ("main", "main-2", "main-3")]


def test_workers_without_a_database_are_refused(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LICET_")}
    command = [sys.executable, "-m", "licet", "gateway", "--workers", "2"]
    done = subprocess.run(
        command, env=kept | {"LICET_HOME": str(tmp_path)}, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "set database, redis and key_file" in done.stderr
