"""What a tenant who means harm tries: to decide for the mesh, to undo what it did, to hold it up, to earn at home."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import pytest

from gateway import bundles, editions
from gateway.console.signals import MAX_OF_ONE
from gateway.state import Person, ServerRecord
from sidecar.app import Sidecar
from sidecar.config import NodeConfig
from sidecar.node.app import Node
from sidecar.node.upstream import UpstreamFailed
from tests.console.test_door import host, signed_in
from tests.mesh import SEGMENT, Mesh, policy_files, workbench
from tests.stories.test_namespaces import OWN, ROLES, add, blue, mesh, own, red, register, until_knows
from trust.ledger import entries
from trust.standing.breaker import Breaker, Limits

__all__ = ["blue", "mesh", "red"]
pytestmark = pytest.mark.slow
WRITE, READ = "workbench/write_file", "workbench/read_file"
BLUE_ASKS = """
@id("blue-asks") @owner("blue") @approval("of=operations ttl=1h")
forbid (principal, action == Action::"workbench/write_file", resource == Server::"workbench")
unless { context.approved };
"""
MESH_ASKS = """
@id("after-reading") @owner("mesh") @approval("of=operations ttl=1h") @reason("it has done something before")
forbid (principal, action == Action::"workbench/write_file", resource == Server::"workbench")
when { context.run.calls >= 2 } unless { context.approved };
"""
NEVER = """
@id("never-secrets") @owner("mesh") @severity("critical") @reason("hands off")
forbid (principal, action == Action::"workbench/read_file", resource == Server::"workbench")
when { context.args.path == "secret.txt" };
"""
SHIELD = """
@id("shield") @owner("blue")
forbid (principal, action == Action::"workbench/read_file", resource == Server::"workbench")
when { context.args.path == "secret.txt" && context.run.calls + 1 + 9223372036854775807 > 0 };
"""


def with_policy(text: str) -> dict[str, str]:
    return {name: kept for name, kept in policy_files().items() if not name.startswith("cases/")} | {"more.cedar": text}


async def has(mesh: Mesh, sidecar: Sidecar, namespace: str) -> None:
    """Until *sidecar* decides by what is active in *namespace*."""
    async with asyncio.timeout(30):
        while (
            sidecar.world.bundle is None
            or sidecar.world.bundle.digest != mesh.gateway.bundles.of(namespace).sealed.digest
        ):
            await asyncio.sleep(0.02)


async def test_votes_for_a_namespace_are_none_for_the_mesh(mesh: Mesh, blue: Sidecar) -> None:
    """Asked while only the namespace asks, used when the mesh asks too."""
    assert (await mesh.activate(with_policy(MESH_ASKS))).status == 200
    assert (await mesh.admin("POST", "/v1/bundles", own(BLUE_ASKS), "blue-op")).status == 200
    await has(mesh, blue, "blue")
    held = await mesh.act(blue, WRITE, {"path": "loot.txt", "content": "x"}, run="attack")
    assert held.status == 202, held.body
    approval = held.json["approval"]
    for _ in range(3):
        assert (await mesh.act(blue, READ, {"path": "notes.txt"}, run="attack")).status == 200
    mesh.tokens["blue-two"] = (
        await register(mesh, "people", {"name": "blue-two", "roles": ["operations"]}, "blue-op")
    )["token"]
    presented = mesh.gateway.desk.get(approval).presented
    edit = {"arguments": {"path": "loot.txt", "content": "what was read"}, "presented": presented}
    assert (await mesh.admin("POST", f"/v1/approvals/{approval}/edits", edit, "blue-op")).status == 200
    assert (await mesh.vote(approval, who="blue-two")).json["state"] == "approved"
    claim = f"http://127.0.0.1:{blue.port}/v1/approvals/{approval}/claim"
    answer = await mesh.request("POST", claim, token=blue.token)
    assert (answer.status, answer.json["reason"]) == (403, "approval_mismatch"), answer.body
    assert not (mesh.sandbox / "loot.txt").exists()
    # Asked again it is asked of the mesh's people, who are enough.
    again = await mesh.act(blue, WRITE, {"path": "loot.txt", "content": "what was read"}, run="attack")
    assert again.status == 202
    assert (await mesh.vote(again.json["approval"], who="blue-two")).status == 403
    assert (await mesh.vote(again.json["approval"], who="approver-1")).json["state"] == "approved"
    claim = f"http://127.0.0.1:{blue.port}/v1/approvals/{again.json['approval']}/claim"
    assert (await mesh.request("POST", claim, token=blue.token)).status == 200


async def test_a_stop_of_the_mesh_is_the_meshs_though_the_namespace_stopped_it_before(mesh: Mesh, red: Sidecar) -> None:
    lift = {"target": "striped-agent", "reason": "x"}
    for who, note in (("striped-op", ""), ("operator", "")):
        answer = await mesh.admin("POST", "/v1/kills", {"target": "striped-agent", "reason": "stop"}, who)
        assert (answer.status, answer.json["note"]) == (200, note)
    assert (await mesh.admin("POST", "/v1/kills/lift", lift, "striped-op")).status == 403
    assert "by operator" in (await mesh.admin("POST", "/v1/kills", lift, "striped-op")).json["note"]
    assert (await mesh.admin("POST", "/v1/kills/lift", lift)).status == 200
    at = "/v1/nodes/striped-node/state"
    quarantine = {"state": "quarantined", "reason": "stop"}
    assert (await mesh.admin("POST", at, quarantine, "striped-op")).status == 200
    assert (await mesh.admin("POST", at, quarantine, "striped-op")).status == 400
    assert (await mesh.admin("POST", at, quarantine)).status == 200
    assert (await mesh.admin("POST", at, {"state": "ready"}, "striped-op")).status == 403
    assert (await mesh.admin("POST", at, {"state": "ready"})).status == 200


async def test_who_takes_the_name_of_somebody_of_the_mesh_lifts_nothing(mesh: Mesh, red: Sidecar) -> None:
    mesh.tokens["bob"] = (await register(mesh, "people", {"name": "bob", "roles": ["operator"]}))["token"]
    killed = await mesh.admin("POST", "/v1/kills", {"target": "striped-agent", "reason": "incident"}, "bob")
    assert killed.status == 200
    assert (await mesh.admin("POST", "/v1/people/bob/remove", who="striped-op")).status == 404
    assert (await mesh.admin("POST", "/v1/people/bob/remove", who="bob")).status == 400
    assert (await mesh.admin("POST", "/v1/people/bob/remove")).status == 200
    assert (await mesh.admin("GET", "/v1/people", who="bob")).status == 401
    taken = await mesh.admin("POST", "/v1/people", {"name": "bob", "roles": ROLES}, "striped-op")
    assert (taken.status, "already registered" in taken.json["detail"]) == (400, True)
    answer = await mesh.admin("POST", "/v1/kills/lift", {"target": "striped-agent", "reason": "x"}, "striped-op")
    assert answer.status == 403
    mesh.tokens["bob"] = (await register(mesh, "people", {"name": "bob", "roles": ["operator"]}))["token"]
    assert (await mesh.admin("GET", "/v1/people", who="bob")).status == 200


async def test_a_broken_policy_hides_no_other(mesh: Mesh, red: Sidecar, blue: Sidecar) -> None:
    assert (await mesh.activate(with_policy(NEVER))).status == 200
    assert (await mesh.admin("POST", "/v1/bundles", own(SHIELD), "blue-op")).status == 200
    await has(mesh, blue, "blue")
    answer = await mesh.act(blue, READ, {"path": "secret.txt"})
    assert (answer.json["reason"], answer.json["policy_ids"]) == ("policy_forbids", ["never-secrets"])
    async with asyncio.timeout(30):
        while mesh.gateway.standings.standing("blue-agent").score != 100:
            await asyncio.sleep(0.05)
    # Who begins anew is still of the same namespace.
    await add(mesh, "blue-again", "another-name", "blue-op")
    assert mesh.gateway.standings.standing("blue-again").score == 100
    assert mesh.gateway.standings.standing("striped-agent").score == 400


async def test_nobody_earns_at_home(mesh: Mesh, red: Sidecar) -> None:
    assert (await mesh.admin("POST", "/v1/bundles", own(OWN), "striped-op")).status == 200
    await has(mesh, red, "red")
    for name in ("a", "b"):
        (mesh.sandbox / name).write_text("x")
        done = await mesh.act(red, "striped-tools/delete_file", {"path": name})
        assert done.status == 200, done.body
    assert (await mesh.act(red, READ, {"path": "notes.txt"})).status == 200
    outcomes = [one for one in mesh.entries("gateway") if isinstance(one, entries.Outcome) and one.step == 8]
    assert [one.at_home for one in outcomes] == [True, True, True, False]
    await mesh.gateway.standings.drain()
    story = [one for one in mesh.entries("gateway") if isinstance(one, entries.Standing)]
    assert [(one.rule, one.agent) for one in story] == [("outcome", "striped-agent")]


async def test_a_namespace_has_so_many_policies(mesh: Mesh) -> None:
    many = "".join(
        f'@id("p{n}") @owner("blue") forbid (principal, action in Action::"fs", resource) when {{ context.run.calls > {n} }};\n'
        for n in range(editions.MAX_OWN + 1)
    )
    answer = await mesh.admin("POST", "/v1/bundles", own(many), "blue-op")
    assert answer.status == 422
    assert "a namespace may have 500" in answer.json["rejected"]
    long = f"// {'x' * editions.MAX_OWN_CHARACTERS}\n"
    answer = await mesh.admin("POST", "/v1/bundles", own(long), "blue-op")
    assert "characters" in answer.json["rejected"]
    assert (await mesh.activate(with_policy(many.replace("blue", "mesh")))).status == 200, "the mesh may have more"


async def test_while_policies_are_prepared_everything_goes_on(
    mesh: Mesh, red: Sidecar, blue: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that takes; and what changed meanwhile is in what comes out."""
    begun, goes_on = threading.Event(), threading.Event()

    def slowly(draft: editions.Draft) -> Any:
        if draft.namespace == "red" and draft.own is not None and not goes_on.is_set():
            begun.set()
            assert goes_on.wait(30)
        return editions.prepare(draft)

    monkeypatch.setattr(bundles, "prepare", slowly)
    activating = asyncio.create_task(mesh.admin("POST", "/v1/bundles", own(OWN), "striped-op"))
    await asyncio.to_thread(begun.wait, 30)
    assert (await mesh.admin("POST", "/v1/kills", {"target": "blue-agent", "reason": "now"})).status == 200
    assert (await mesh.act(red, READ, {"path": "notes.txt"})).status == 200
    # A server that a node of the namespace offers meanwhile is one on which it may permit.
    token = (
        await register(mesh, "nodes", {"name": "more", "servers": ["more-tools"], "outbound": True}, "striped-op")
    )["enrolment_token"]
    joining = asyncio.create_task(join(mesh, "more", token, "more-tools"))
    async with asyncio.timeout(30):
        while mesh.gateway.bundles.runs("red", "more-tools") is False:
            await asyncio.sleep(0.02)
    goes_on.set()
    assert (await activating).status == 200
    await joining
    await until_knows(red, "more-tools")
    made = [one for one in mesh.entries("gateway") if isinstance(one, entries.Bundle)]
    activated = [one for one in made if (one.by, one.namespace, one.renewed) == ("striped-op", "red", False)][-1]
    edition = mesh.gateway.bundles._read(activated.digest)
    assert 'Server::"more-tools"' in edition.content.sources.policies[":red/own.cedar"]


async def join(mesh: Mesh, name: str, token: str, server: str) -> None:
    config = NodeConfig(
        home=mesh.home / name,
        port=0,
        gateway_url=mesh.gateway_url,
        enrolment_token=token,
        outbound=True,
        heartbeat_s=0.2,
        segment_bytes=SEGMENT,
        servers=(workbench(mesh.sandbox, server),),
    )
    node = Node(config)
    await node.start()
    mesh.nodes[name] = node


async def test_a_name_that_a_node_of_the_mesh_may_offer_is_the_meshs(mesh: Mesh) -> None:
    mine = await register(mesh, "nodes", {"name": "payroll-node", "servers": ["payroll"]})
    theirs = await register(mesh, "nodes", {"name": "thief", "servers": ["payroll"], "outbound": True}, "blue-op")
    with pytest.raises(UpstreamFailed, match="name of another's server"):
        await join(mesh, "thief", theirs["enrolment_token"], "payroll")
    await mesh.add_node("other", workbench(mesh.sandbox, "other-tools"))
    assert mine["enrolment_token"]


async def test_a_server_that_nobody_offers_can_be_retired(mesh: Mesh, red: Sidecar) -> None:
    at = "/v1/servers/striped-tools/retire"
    assert (await mesh.admin("POST", at, who="blue-op")).status == 404
    busy = await mesh.admin("POST", at, who="striped-op")
    assert (busy.status, "drain or quarantine striped-node" in busy.json["detail"]) == (400, True)
    quarantine = {"state": "quarantined", "reason": "it took a name"}
    assert (await mesh.admin("POST", "/v1/nodes/striped-node/state", quarantine)).status == 200
    assert (await mesh.admin("POST", at)).status == 200
    async with asyncio.timeout(30):
        while "striped-tools" in (await mesh.admin("GET", "/v1/servers")).body.decode():
            await asyncio.sleep(0.02)
        while (await mesh.act(red, "striped-tools/read_file", {"path": "x"})).json["reason"] != "unknown_server":
            await asyncio.sleep(0.02)
    mine = await register(mesh, "nodes", {"name": "mine", "servers": ["striped-tools"], "outbound": True})
    await join(mesh, "mine", mine["enrolment_token"], "striped-tools")
    record = mesh.gateway.records.store.get(ServerRecord, "striped-tools")
    assert record is not None
    assert record.namespace == ""


async def test_an_edition_that_permits_where_it_is_not_at_home_any_more_is_lost(mesh: Mesh, red: Sidecar) -> None:
    """Though it could not follow: else it would go on permitting on whatever has the name then."""
    token = (
        await register(mesh, "nodes", {"name": "more", "servers": ["more-tools"], "outbound": True}, "striped-op")
    )["enrolment_token"]
    await join(mesh, "more", token, "more-tools")
    await until_knows(red, "more-tools")
    text = '@id("more") @owner("red") permit (principal, action == Action::"more-tools/read_file", resource);'
    assert (await mesh.admin("POST", "/v1/bundles", own(OWN + text), "striped-op")).status == 200
    for name, server in (("more", "more-tools"), ("striped-node", "striped-tools")):
        drained = {"state": "quarantined", "reason": "x"}
        assert (await mesh.admin("POST", f"/v1/nodes/{name}/state", drained, "striped-op")).status == 200
        assert (await mesh.admin("POST", f"/v1/servers/{server}/retire", who="striped-op")).status == 200
    assert mesh.gateway.bundles.of("red").sealed is None
    assert "could not follow" in mesh.gateway.bundles.degraded
    assert (await mesh.admin("POST", "/v1/bundles", own(OWN), "striped-op")).status == 200


def test_one_namespace_takes_no_server_away_from_all() -> None:
    breaker = Breaker(Limits(failures=10))
    trips = [trip for n in range(60) if (trip := breaker.failed(f"red-{n % 7}", "bank", n // 4, "red"))]
    assert not [trip for trip in trips if trip.target == "server:bank"]
    both = [trip for n in range(60) if (trip := breaker.failed(f"x-{n % 7}", "bank", 15, ("red", "blue")[n % 2]))]
    assert [trip for trip in both if trip.target == "server:bank"]


async def test_nobody_takes_all_live_pages(mesh: Mesh) -> None:
    cookie, _ = await signed_in(mesh, "blue-op")
    async with contextlib.AsyncExitStack() as pages:
        headers = {"Host": host(mesh), "Cookie": cookie, "Accept": "text/event-stream"}
        for number in range(MAX_OF_ONE + 1):
            asked = mesh.http.get(mesh.gateway_url + "/console/events", headers=headers)
            answer = await pages.enter_async_context(asked)
            assert answer.status == (200 if number < MAX_OF_ONE else 503)
        headers["Cookie"], _ = await signed_in(mesh, "operator")
        async with mesh.http.get(mesh.gateway_url + "/console/events", headers=headers) as answer:
            assert answer.status == 200


async def test_of_many_requests_of_one_namespace_others_are_seen(mesh: Mesh, red: Sidecar, blue: Sidecar) -> None:
    for number in range(4):
        held = await mesh.act(blue, "workbench/delete_file", {"path": f"n{number}"})
        assert held.status == 202, held.body
    last = await mesh.act(red, "workbench/delete_file", {"path": "one"})
    assert last.status == 202
    person = mesh.gateway.records.store.get(Person, "approver-1")
    assert person is not None
    mine, _ = mesh.gateway.desk.waiting_for(person)
    assert mine[1].id == last.json["approval"]


async def test_a_key_is_one_action_though_it_was_held_and_claimed(mesh: Mesh, blue: Sidecar) -> None:
    (mesh.sandbox / "k1").write_text("x")
    held = await mesh.act(blue, "workbench/delete_file", {"path": "k1"}, run="r", idempotency_key="K")
    approval = held.json["approval"]
    scope = {"kind": "tool", "uses": 0, "minutes": 60}
    assert (await mesh.vote(approval, scope=scope)).json["state"] == "approved"
    claim = f"http://127.0.0.1:{blue.port}/v1/approvals/{approval}/claim"
    assert (await mesh.request("POST", claim, token=blue.token)).status == 200
    (mesh.sandbox / "k1").write_text("made again")
    again = await mesh.act(blue, "workbench/delete_file", {"path": "k1"}, run="r", idempotency_key="K")
    assert (again.status, again.json["reason"]) == (401, "replayed")
    assert (mesh.sandbox / "k1").exists()
    keys = [
        line.entry.deed.idempotency_key for _, line in blue.ledger.lines() if isinstance(line.entry, entries.Intent)
    ]
    assert keys == ["K", "K"]
