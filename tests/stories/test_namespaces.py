"""Two tenants in one mesh: each works by itself, and nothing of one is there for the other, whichever door it tries."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.clock import SystemClock
from edge.durable import DurableLedger
from gateway.candidate import to_request
from gateway.config import Credential
from gateway.fold import Shelf
from gateway.state import Killed, Person
from licet.client import Credentials, delegate, narrow
from sidecar.app import Sidecar
from sidecar.config import NodeConfig
from sidecar.node.app import Node
from sidecar.node.upstream import UpstreamFailed
from sidecar.shipping import Shipper
from tests.console.test_door import get, post, signed_in
from tests.mesh import SEGMENT, Answer, Mesh, policy_files, workbench
from trust.identity.keys import SecretKey
from trust.ledger import entries
from trust.ledger.shipment import log_of
from trust.ledger.writer import LedgerUnavailable
from trust.policy.inventory import Inventory
from trust.reasons import Unverifiable

pytestmark = pytest.mark.slow

RED = {"agent": "striped-agent", "node": "striped-node", "server": "striped-tools", "person": "striped-op"}
SECRET = re.compile(rb"zebra|striped", re.IGNORECASE)
ROLES = ["operator", "author", "auditor", "viewer", "operations"]
OWN = """
@id("red-reads") @owner("red") @reason("zebra business")
permit (principal, action in Action::"read", resource);
@id("red-deletes") @owner("red")
permit (principal, action in Action::"destructive", resource);
"""


def own(text: str) -> dict[str, Any]:
    """What the author of a namespace hands in."""
    return to_request({"own.cedar": text}, "red")


async def register(mesh: Mesh, kind: str, body: dict[str, Any], who: str = "operator") -> dict[str, Any]:
    answer = await mesh.admin("POST", f"/v1/{kind}", body, who)
    assert answer.status == 201, answer.body
    told: dict[str, Any] = answer.json
    return told


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path) as made:
        for name in ("notes.txt", "zebra.txt", "other.txt"):
            (made.sandbox / name).write_text(name)
        for who, namespace in (("striped-op", "red"), ("blue-op", "blue")):
            told = await register(made, "people", {"name": who, "roles": ROLES, "namespace": namespace})
            made.tokens[who] = told["token"]
        yield made


@pytest.fixture
async def red(mesh: Mesh) -> Sidecar:
    """Everything that a tenant has: an agent, a node with a server, approvers, a request that waits, one that ran."""
    sidecar = await add(mesh, "striped-agent", "zebra-owner", "striped-op", teams=["zebras"])
    node = {"name": "striped-node", "servers": ["striped-tools"], "outbound": True}
    token = (await register(mesh, "nodes", node, "striped-op"))["enrolment_token"]
    config = NodeConfig(
        home=mesh.home / "striped-node",
        port=0,
        gateway_url=mesh.gateway_url,
        enrolment_token=token,
        outbound=True,
        heartbeat_s=0.2,
        segment_bytes=SEGMENT,
        servers=(workbench(mesh.sandbox, "striped-tools"),),
    )
    mesh.nodes["striped-node"] = Node(config)
    await mesh.nodes["striped-node"].start()
    await until_knows(sidecar, "striped-tools")
    done = await mesh.act(sidecar, "striped-tools/read_file", {"path": "zebra.txt"}, run="run-zebra")
    assert done.status == 200, done.body
    return sidecar


@pytest.fixture
async def blue(mesh: Mesh) -> Sidecar:
    return await add(mesh, "blue-agent", "bea", "blue-op")


async def add(mesh: Mesh, name: str, owner: str, who: str, teams: list[str] | None = None) -> Sidecar:
    mesh.tokens["operator"], kept = mesh.tokens[who], mesh.tokens["operator"]
    try:
        return await mesh.add_agent(name, owner, teams=teams or [])
    finally:
        mesh.tokens["operator"] = kept


async def until_knows(sidecar: Sidecar, server: str) -> None:
    async with asyncio.timeout(30):
        while sidecar.world.bundle is None or server not in sidecar.world.bundle.inventory.servers:
            await asyncio.sleep(0.02)


async def held(mesh: Mesh, red: Sidecar, name: str = "zebra.txt") -> str:
    answer = await mesh.act(red, "striped-tools/delete_file", {"path": name}, run="run-zebra")
    assert answer.status == 202, answer.body
    approval: str = answer.json["approval"]
    return approval


async def test_each_has_its_own_servers_and_those_of_the_mesh(mesh: Mesh, red: Sidecar, blue: Sidecar) -> None:
    for sidecar in (red, blue):
        done = await mesh.act(sidecar, "workbench/read_file", {"path": "notes.txt"})
        assert (done.status, done.json["node"]) == (200, "node-1")
    refused = await mesh.act(blue, "striped-tools/read_file", {"path": "notes.txt"})
    assert (refused.status, refused.json["reason"]) == (403, "unknown_server")
    mine = await mesh.request("GET", f"http://127.0.0.1:{blue.port}/v1/tools", token=blue.token)
    assert {tool["name"].partition("/")[0] for tool in mine.json["tools"]} == {"workbench"}
    assert blue.world.bundle is not None
    assert not SECRET.search(blue.world.bundle.content.__repr__().encode())
    # The mesh's own agents have only what the mesh has.
    assert (await mesh.call("striped-tools/read_file", {"path": "notes.txt"})).json["reason"] == "unknown_server"


async def test_calls_of_the_mesh_servers_run_on_nodes_of_the_mesh(mesh: Mesh, red: Sidecar, blue: Sidecar) -> None:
    """Though a node of another's could do it: nothing is sent there, and the answer does not say that it is there."""
    await mesh.stop("node")
    async with asyncio.timeout(30):
        while any(one.alive for one in mesh.gateway.fleet.candidates() if one.node.name == "node-1"):
            await asyncio.sleep(0.05)
    pinned = {"place": {"pin": "striped-node"}}
    for more in ({}, pinned):
        answer = await mesh.act(blue, "workbench/read_file", {"path": "notes.txt"}, **more)
        assert answer.json["reason"] == "no_eligible_node"
        assert not SECRET.search(answer.body.replace(b"striped-node", b"") if more else answer.body)


@pytest.mark.parametrize("server", ["striped-tools", "workbench"])
async def test_a_node_offers_no_server_of_another(mesh: Mesh, red: Sidecar, server: str) -> None:
    token = (await register(mesh, "nodes", {"name": "blue-node", "servers": [server], "outbound": True}, "blue-op"))[
        "enrolment_token"
    ]
    config = NodeConfig(
        home=mesh.home / "blue-node",
        port=0,
        gateway_url=mesh.gateway_url,
        enrolment_token=token,
        outbound=True,
        servers=(workbench(mesh.sandbox, server),),
    )
    with pytest.raises(UpstreamFailed, match="name of another's server"):
        await Node(config).start()


def state(mesh: Mesh) -> list[Any]:
    """All that the gateway knows but how far logs have grown."""
    return [one for one in mesh.gateway.records.store.dump() if one[0] != "LogRecord"]


def routes(mesh: Mesh) -> list[tuple[str, str]]:
    """Every route of the gateway, as a method and a path with names in it."""
    known = mesh.gateway._api.routes
    found = [(method, path) for path, methods in known._exact.items() for method in methods]
    for pattern, methods in known._patterns:
        path = re.sub(r"\(\?P<([a-z_]+)>[^)]*\)", r"{\1}", pattern.pattern)
        found += [(method, path) for method in methods]
    return sorted(found)


def filled(path: str, approval: str, decision: str) -> str:
    """*path* with the names of what is red."""
    what = {"agents": "agent", "nodes": "node", "people": "person", "servers": "server"}
    kind = next((name for part, name in what.items() if f"/{part}/" in path), "agent")
    named = {"name": RED[kind], "server": RED["server"], "approval": approval, "run": "run-zebra", "act": "drain"}
    return re.sub(r"\{([a-z_]+)\}", lambda found: {**named, "decision": decision}.get(found[1], "x"), path)


def shows(path: str, answer: Answer) -> bool:
    """Whether *answer* says anything that *path* did not."""
    body = answer.body
    for asked in sorted({part for part in re.split(r"[^A-Za-z0-9_.-]", path) if part}, key=len, reverse=True):
        body = body.replace(asked.encode(), b"")
    return SECRET.search(body) is not None


NOT_FOR_PEOPLE = re.compile(r"/(livez|readyz|metrics)$|^/$|/assets/|/did|/v1/(enroll|wit|keys|session|certificate)")


async def test_no_page_and_no_answer_shows_the_other_anything(mesh: Mesh, red: Sidecar, blue: Sidecar) -> None:
    """Whatever can be asked, asked with the names of what is another's, by somebody who may do everything at home."""
    approval = await held(mesh, red)
    ran = next(line.entry for _, line in red.ledger.lines() if isinstance(line.entry, entries.Intent))
    log, index = red.ledger.origin, next(i for i, line in red.ledger.lines() if line.entry == ran)
    async with asyncio.timeout(30):
        while not (await mesh.admin("GET", "/v1/runs/run-zebra/timeline")).json["rows"]:
            await asyncio.sleep(0.1)
    cookie, _ = await signed_in(mesh, "blue-op")
    queries = {
        "/v1/ledger/entry": f"?origin={log}&index={index}",
        "/console/ledger/entry": f"?origin={log}&index={index}",
        "/console/ledger/proof": f"?origin={log}&index={index}",
        "/v1/ledger/export": "?format=jsonl",
        "/console/ledger/export": "?format=jsonl",
        "/v1/usage": "?by=agent,principal,team,run",
        "/v1/bundles": "?namespace=red",
        "/console/queue": f"?done={approval}",
    }
    plain = {
        "/v1/ledger/entries": "?limit=1000",
        "/console/ledger": "?limit=1000",
        "/console/runs": "",
        "/v1/bundles": "",
    }
    asked = shown = 0
    for method, path in routes(mesh):
        if method != "GET" or NOT_FOR_PEOPLE.search(path) or path == "/console/events":
            continue
        target = filled(path, approval, ran.deed.decision_id) + queries.get(path, "")
        for one in {target, path + plain[path]} if path in plain else {target}:
            console = path.startswith("/console")
            answer = await (get(mesh, one, cookie) if console else mesh.admin("GET", one, who="blue-op"))
            asked += 1
            assert answer.status < 500, (one, answer.body)
            assert not shows(one, answer), (one, answer.status, SECRET.findall(answer.body), answer.body[-3000:])
            # The same question by whom it belongs to shows that it could have been answered.
            own = await mesh.admin("GET", one, who="striped-op") if not console else None
            shown += own is not None and shows(one, own)
    assert asked > 40
    assert shown > 12


BODIES: dict[str, Any] = {
    "/v1/kills": {"target": RED["agent"], "reason": "x"},
    "/v1/kills/lift": {"target": RED["agent"], "reason": "x"},
    "/v1/revocations": {"what": "agent", "id": RED["agent"], "reason": "x"},
    "/v1/agents": {"name": "in-red", "owner": "x", "namespace": "red"},
    "/v1/nodes": {"name": "in-red", "servers": ["x"], "namespace": "red", "outbound": True},
    "/v1/people": {"name": "in-red", "roles": ["operator"], "namespace": "red"},
    "/v1/deputies": {"deputy": RED["person"], "since_us": 1, "until_us": 4102444800000000},
    "/v1/deputies/end": {"deputy": RED["person"]},
    "/v1/bundles": None,
    "/v1/bundles/rollback": {},
    "/v1/ledger/sql": {"sql": "SELECT * FROM entries"},
    "/v1/ledger/prune": {"before_us": 1},
    "/v1/ledger/renew": {"origin": "licet.local/sidecar/striped-agent", "reason": "x"},
    "/v1/subjects/find": {"subject": "0" * 64},
    "/v1/subjects/erase": {"subject": "0" * 64, "reason": "x"},
    "/votes": {"decision": "approve", "presented": ""},
    "/edits": {"arguments": {}, "presented": ""},
    "/revocation": {"reason": "x"},
    "/rotate": {"lost": True},
    "/vouch": {"voucher": "blue-agent", "milli": 100, "reason": "x"},
    "/clear": {"reason": "x"},
    "/grant": {"allowed": True, "reason": "x"},
    "/accept": {"offer": "0" * 64},
    "/login": {"login": "x"},
    "/passkeys/remove": {"credential": "x"},
    "/state": {"state": "draining"},
    "/restore": {"capability": "gpu"},
}
WORKLOADS = re.compile(
    r"/v1/(enroll|wit|keys|session|certificate|roots|authority|refusals|ledger$|subjects/key|join|heart|dispatch|approvals$|work|proofs|peers|outcomes|nodes/join|nodes/heartbeat)|/console/(enter|sign|passkey|oidc)"
)


async def test_nothing_of_the_other_can_be_changed(mesh: Mesh, red: Sidecar, blue: Sidecar) -> None:
    approval = await held(mesh, red)
    cookie, csrf = await signed_in(mesh, "blue-op")
    before = state(mesh)
    tried = 0
    for method, path in routes(mesh):
        if method == "GET" or WORKLOADS.search(path) or path.startswith("/v1/console") or path.endswith("/events"):
            continue
        target = filled(path, approval, "dec_x")
        if path.startswith("/console"):
            if "you" in path or path.endswith(("/saved", "/sql")):
                continue  # one's own
            answer = await post(mesh, target, f"csrf={csrf}&reason=x&decision=approve&name=x", cookie)
        else:
            ends = next((body for end, body in BODIES.items() if path.endswith(end)), {})
            if path.startswith("/v1/bundles"):
                target += "?namespace=red"
                ends = to_request(policy_files())
            answer = await mesh.admin(method, target, ends, "blue-op")
        tried += 1
        assert answer.status in (401, 403, 404), (method, target, answer.status, answer.body)
        assert not shows(f"{target}/{json.dumps(BODIES)}", answer) or path.startswith("/console"), (target, answer.body)
    assert tried > 25
    now = state(mesh)
    assert [one for one in now if one not in before] == []
    assert [one for one in before if one not in now] == []


async def test_what_is_held_waits_for_its_own_people_and_those_of_the_mesh(
    mesh: Mesh, red: Sidecar, blue: Sidecar
) -> None:
    approval = await held(mesh, red)
    listed = {who: await mesh.admin("GET", "/v1/approvals", who=who) for who in ("striped-op", "blue-op", "operator")}
    assert [len(answer.json["approvals"]) for answer in listed.values()] == [1, 0, 1]
    assert (await mesh.vote(approval, who="blue-op")).status == 404
    assert (await mesh.vote(approval, who="striped-op")).json["state"] == "approved"
    second = await held(mesh, red, "notes.txt")
    assert (await mesh.vote(second, who="approver-1")).json["state"] == "approved"


async def test_strangers_do_not_decide(mesh: Mesh, red: Sidecar, blue: Sidecar) -> None:
    """Beside the doors: who is of another namespace is in nobody's electorate, whatever its role is called."""
    approval = await held(mesh, red)
    desk = mesh.gateway.desk
    voters = desk.electorate(desk.get(approval)).people
    assert "blue-op" not in voters
    assert {"striped-op", "approver-1"} <= set(voters)
    stranger = mesh.gateway.records.store.get(Person, "blue-op")
    assert stranger is not None
    assert desk.waiting_for(stranger) == ([], [])
    assert mesh.gateway._api.services.people.of("operations", "blue") == ["approver-1", "approver-2", "blue-op"]


async def test_policies_of_a_namespace_stay_at_home(mesh: Mesh, red: Sidecar, blue: Sidecar) -> None:
    async def activate(text: str, who: str, path: str = "/v1/bundles") -> Answer:
        return await mesh.admin("POST", path, own(text), who)

    written = await mesh.act(red, "workbench/delete_file", {"path": "other.txt"})
    assert written.status == 202  # a person decides, as the mesh says
    answer = await activate(OWN, "striped-op")
    assert answer.status == 200, answer.body
    digest = answer.json["active"]
    async with asyncio.timeout(30):
        while red.world.bundle is None or red.world.bundle.digest != digest:
            await asyncio.sleep(0.02)
    # What it permits, it permits on its own server.
    assert (await mesh.act(red, "striped-tools/delete_file", {"path": "notes.txt"})).status == 200
    assert (await mesh.act(red, "workbench/delete_file", {"path": "other.txt"})).status == 202
    assert (await mesh.admin("GET", "/v1/bundles", who="blue-op")).json["active"] != digest
    # What it forbids, it forbids its own agents everywhere, and nobody else.
    assert (
        await activate(OWN + '@id("stop") forbid (principal, action in Action::"fs", resource);', "striped-op")
    ).status == 200
    async with asyncio.timeout(30):
        while (await mesh.act(red, "workbench/read_file", {"path": "zebra.txt"})).status != 403:
            await asyncio.sleep(0.05)
    assert (await mesh.act(blue, "workbench/read_file", {"path": "zebra.txt"})).status == 200
    # It comes along when the mesh activates something, and goes back by itself.
    assert (await mesh.activate(policy_files())).status == 200
    assert (await mesh.act(red, "workbench/read_file", {"path": "zebra.txt"})).status == 403
    assert (await mesh.admin("POST", "/v1/bundles/rollback", {}, "striped-op")).status == 200
    async with asyncio.timeout(30):
        while (await mesh.act(red, "workbench/read_file", {"path": "zebra.txt"})).status != 200:
            await asyncio.sleep(0.05)


async def test_the_mesh_forbids_in_every_namespace_at_once(mesh: Mesh, red: Sidecar, blue: Sidecar) -> None:
    stop = '@id("stop") @owner("mesh") forbid (principal in Team::"red/everybody", action in Action::"fs", resource);'
    kept = {name: text for name, text in policy_files().items() if not name.startswith("cases/")}
    assert (await mesh.activate({**kept, "stop.cedar": stop})).status == 200
    async with asyncio.timeout(30):
        while (await mesh.act(red, "striped-tools/read_file", {"path": "zebra.txt"})).status != 403:
            await asyncio.sleep(0.05)
    assert (await mesh.act(blue, "workbench/read_file", {"path": "zebra.txt"})).status == 200


async def test_what_a_namespace_could_not_follow_changes_nothing(mesh: Mesh, red: Sidecar) -> None:
    taken = '@id("later") @owner("red") forbid (principal, action in Action::"fs", resource) when { context.risk > 3 };'
    assert (await mesh.admin("POST", "/v1/bundles", own(taken), "striped-op")).status == 200
    before = mesh.gateway.bundles.sealed
    kept = {name: text for name, text in policy_files().items() if not name.startswith("cases/")}
    answer = await mesh.activate({**kept, "own.cedar": taken})  # the same id
    assert answer.status == 422
    assert "the namespace red could not follow" in answer.json["rejected"]
    assert mesh.gateway.bundles.sealed is before


async def test_a_namespace_that_cannot_follow_holds_up_nobody_else(mesh: Mesh, red: Sidecar, blue: Sidecar) -> None:
    """Its policies speak of a server's tool that is there no more; the mesh signs anew, and everybody else goes on."""
    text = '@id("reads") @owner("red") permit (principal, action == Action::"striped-tools/read_file", resource);'
    assert (await mesh.admin("POST", "/v1/bundles", own(text), "striped-op")).status == 200
    inventory = mesh.gateway._api.services.servers.inventory
    lost = lambda namespace="": Inventory(  # noqa: E731
        {name: server for name, server in inventory(namespace).servers.items() if name != "striped-tools"}
    )
    mesh.gateway._api.services.servers.inventory = lost  # type: ignore[method-assign]
    before = {name: mesh.gateway.bundles.of(name).sealed for name in ("", "red", "blue")}
    await mesh.gateway.bundles.refresh("gateway")
    after = {name: mesh.gateway.bundles.of(name).sealed for name in before}
    assert [name for name in before if before[name] != after[name]] == ["", "blue"]
    assert "red could not follow" in mesh.gateway.bundles.degraded


async def test_who_dies_while_it_activates_leaves_nobody_behind(mesh: Mesh, red: Sidecar, blue: Sidecar) -> None:
    """The mesh has its policies, and the gateway ends before the namespaces have them: they have them soon after."""
    bundles = mesh.gateway.bundles
    write, written = bundles._write, 0

    async def dies(*given: Any, **more: Any) -> Any:
        nonlocal written
        written += 1
        if written > 1:
            raise LedgerUnavailable("here it ends")
        return await write(*given, **more)

    bundles._write = dies  # type: ignore[method-assign]
    kept = {name: text for name, text in policy_files().items() if not name.startswith("cases/")}
    stop = '@id("stop") @owner("mesh") forbid (principal, action in Action::"read", resource);'
    await mesh.activate({**kept, "stop.cedar": stop})
    assert written == 2
    await mesh.stop("gateway")
    await mesh.start_gateway()
    for sidecar in (red, blue):
        async with asyncio.timeout(30):
            while (await mesh.act(sidecar, "workbench/read_file", {"path": "notes.txt"})).json.get("policy_ids") != [
                "stop"
            ]:
                await asyncio.sleep(0.05)
    versions = [mesh.gateway.bundles.of(name).sealed.content.version for name in ("red", "blue")]  # type: ignore[union-attr]
    await asyncio.sleep(2.5)  # and that was that
    assert [mesh.gateway.bundles.of(name).sealed.content.version for name in ("red", "blue")] == versions  # type: ignore[union-attr]


async def test_authority_stays_in_its_namespace(mesh: Mesh, red: Sidecar, blue: Sidecar) -> None:
    credentials = Credentials.load(mesh.home / "blue-agent")
    root = await asyncio.to_thread(delegate, credentials, mesh.gateway_url, {"workbench/read_file": {}})
    chain = narrow(credentials, root, red.identity.key.public, {"workbench/read_file": {}})
    answer = await mesh.act(red, "workbench/read_file", {"path": "notes.txt"}, chain=chain)
    assert (answer.status, answer.json["reason"]) == (403, "delegation_invalid"), answer.body
    assert b"blue" not in answer.body


async def test_an_operator_of_a_namespace_stops_its_agents_and_no_others(
    mesh: Mesh, red: Sidecar, blue: Sidecar
) -> None:
    for target in ("striped-agent", "team:red/zebras", "team:red/everybody", "all", "demo"):
        answer = await mesh.admin("POST", "/v1/kills", {"target": target, "reason": "x"}, "blue-op")
        assert answer.status == 404, (target, answer.body)
    for path in ("/v1/kills", "/v1/kills/lift"):  # misspelt: nothing of others is offered instead
        answer = await mesh.admin("POST", path, {"target": "team:blue/nobody", "reason": "x"}, "blue-op")
        assert answer.status == 404
        assert not SECRET.search(answer.body)
        assert b"demo" not in answer.body
    answer = await mesh.admin("POST", "/v1/kills", {"target": "team:red/everybody", "reason": "x"}, "striped-op")
    assert answer.status == 200
    async with asyncio.timeout(30):
        while (await mesh.act(red, "workbench/read_file", {"path": "notes.txt"})).json.get("reason") != "killed":
            await asyncio.sleep(0.05)
    assert (await mesh.act(blue, "workbench/read_file", {"path": "notes.txt"})).status == 200


async def test_roles_at_the_doors(mesh: Mesh, red: Sidecar) -> None:
    """A viewer of the namespace sees and changes nothing; an author only activates."""
    for name, role in (("vic", "viewer"), ("amy", "author")):
        told = await register(mesh, "people", {"name": name, "roles": [role], "namespace": "red"}, "striped-op")
        mesh.tokens[name] = told["token"]
    for who in ("vic", "amy"):
        assert (await mesh.admin("GET", "/v1/agents", who=who)).json["agents"][0]["name"] == "striped-agent"
        for method, path, body in (
            ("POST", "/v1/kills", {"target": "striped-agent", "reason": "x"}),
            ("POST", "/v1/agents/striped-agent/rotate", {}),
            ("POST", "/v1/people", {"name": "x", "roles": ["operator"]}),
            ("GET", "/v1/ledger/entries", None),
        ):
            answer = await mesh.admin(method, path, body, who)
            assert (answer.status, answer.json["reason"]) == (403, "not_yours")
            assert f"{who} has not the role" in answer.json["detail"]
    sources = own('@id("x") @owner("red") permit (principal, action in Action::"read", resource);')
    assert (await mesh.admin("POST", "/v1/bundles", sources, "vic")).status == 403
    assert (await mesh.admin("POST", "/v1/bundles", sources, "amy")).status == 200
    told = [e for e in mesh.entries("gateway") if isinstance(e, entries.Admin) and e.by == "amy"]
    assert [(one.event, one.role) for one in told] == [("POST /v1/bundles", "author")]


async def test_after_a_rebuild_everything_is_where_it_was(mesh: Mesh, red: Sidecar, blue: Sidecar) -> None:
    before = state(mesh)
    await mesh.stop("gateway")
    (mesh.home / "gateway" / "state.sqlite").unlink()
    for left in (mesh.home / "gateway").glob("state.sqlite-*"):
        left.unlink()
    await mesh.start_gateway()
    kept = [one for one in state(mesh) if one in before]
    assert kept == before
    async with asyncio.timeout(30):
        while (await mesh.act(red, "striped-tools/read_file", {"path": "zebra.txt"})).status != 200:
            await asyncio.sleep(0.1)


async def test_what_the_mesh_stopped_a_namespace_does_not_start(mesh: Mesh, red: Sidecar) -> None:
    """Nor by an agent that is called like a team of the mesh."""
    await register(mesh, "agents", {"name": "x", "owner": "ada", "teams": ["ops"]})
    for target in ("team:ops", "team:red/everybody", "striped-agent"):
        answer = await mesh.admin("POST", "/v1/kills", {"target": target, "reason": "an incident"})
        assert answer.status == 200, answer.body
    await register(mesh, "agents", {"name": "ops", "owner": "zed"}, "striped-op")
    for target, status in (("ops", 404), ("team:red/everybody", 403), ("striped-agent", 403)):
        answer = await mesh.admin("POST", "/v1/kills/lift", {"target": target, "reason": "x"}, "striped-op")
        assert answer.status == status, answer.body
    assert {one.target for one in mesh.gateway.records.store.all(Killed)} == {
        "team:ops",
        "team:red/everybody",
        "striped-agent",
    }
    drained = {"state": "quarantined", "reason": "an incident"}
    assert (await mesh.admin("POST", "/v1/nodes/striped-node/state", drained)).status == 200
    answer = await mesh.admin("POST", "/v1/nodes/striped-node/state", {"state": "ready"}, "striped-op")
    assert (answer.status, answer.json["reason"]) == (403, "not_yours")


async def test_policies_before_there_are_agents_follow_the_mesh(mesh: Mesh) -> None:
    text = '@id("blue-stop") @owner("blue") forbid (principal, action in Action::"destructive", resource);'
    assert (await mesh.admin("POST", "/v1/bundles", own(text), "blue-op")).status == 200
    kept = {name: text for name, text in policy_files().items() if not name.startswith("cases/")}
    stop = '@id("stop") @owner("mesh") forbid (principal, action in Action::"read", resource);'
    assert (await mesh.activate({**kept, "stop.cedar": stop})).status == 200
    await mesh.stop("gateway")
    await mesh.start_gateway()
    blue = await add(mesh, "blue-agent", "bea", "blue-op")
    refused = await mesh.act(blue, "workbench/read_file", {"path": "notes.txt"})
    assert refused.json["policy_ids"] == ["stop"]
    assert (await mesh.act(blue, "workbench/delete_file", {"path": "notes.txt"})).json["policy_ids"] == ["blue-stop"]


async def test_cases_that_never_end_are_refused(mesh: Mesh) -> None:
    each = "".join(
        f"      {name}: [{', '.join(map(str, range(20)))}]\n" for name in ("calls", "denied", "rate", "depth")
    )
    cases = f"cases:\n  - name: many\n    action: workbench/read_file\n    expect: permit\n    each:\n{each}"
    asked = to_request({"own.cedar": OWN, "cases/many.yaml": cases}, "blue")
    answer = await mesh.admin("POST", "/v1/bundles", asked, "blue-op")
    assert answer.status == 422
    assert "more than 5000 cases" in answer.json["rejected"]


async def test_the_mesh_goes_on_without_who_cannot_follow(mesh: Mesh, red: Sidecar, blue: Sidecar) -> None:
    text = '@id("later") @owner("red") forbid (principal, action in Action::"fs", resource) when { context.risk > 3 };'
    assert (await mesh.admin("POST", "/v1/bundles", own(text), "striped-op")).status == 200
    kept = {name: text for name, text in policy_files().items() if not name.startswith("cases/")}
    more = {**kept, "schema.cedarschema": kept["schema.cedarschema"] + "\nentity Extra;\n", "own.cedar": text}
    assert (await mesh.activate(more)).status == 422
    answer = await mesh.admin("POST", "/v1/bundles?without=red", to_request(more))
    assert answer.status == 200, answer.body
    async with asyncio.timeout(30):
        while (await mesh.act(red, "workbench/read_file", {"path": "notes.txt"})).status == 200:
            await asyncio.sleep(0.05)
    assert (await mesh.act(blue, "workbench/read_file", {"path": "notes.txt"})).status == 200
    await mesh.gateway.bundles.refresh("gateway")  # nothing comes back by itself
    assert mesh.gateway.bundles.of("red").sealed is None
    assert (await mesh.admin("POST", "/v1/bundles", own(OWN), "striped-op")).status == 200
    async with asyncio.timeout(30):
        while (await mesh.act(red, "workbench/read_file", {"path": "zebra.txt"})).status != 200:
            await asyncio.sleep(0.05)


async def test_whom_the_mesh_asks_nobody_makes_up(mesh: Mesh, red: Sidecar, blue: Sidecar) -> None:
    """On a server of the mesh its own policies ask its own people; ``blue-op`` calls itself ``operations`` too."""
    answer = await mesh.act(blue, "workbench/delete_file", {"path": "notes.txt"})
    assert answer.status == 202
    approval = answer.json["approval"]
    vote = await mesh.vote(approval, who="blue-op")
    assert (vote.status, vote.json["reason"]) == (403, "not_yours")
    assert (await mesh.vote(approval, who="approver-1")).json["state"] == "approved"


async def test_a_secret_goes_to_no_server_that_only_has_the_name(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret")
    secret = Credential(server="github", header="X-Key", value_file=tmp_path / "secret")
    async with Mesh(tmp_path / "mesh", credentials=(secret,)) as mesh:
        told = await register(mesh, "people", {"name": "blue-op", "roles": ROLES, "namespace": "blue"})
        mesh.tokens["blue-op"] = told["token"]
        body = {"name": "blue-node", "servers": ["github"], "outbound": True}
        config = NodeConfig(
            home=mesh.home / "blue-node",
            port=0,
            gateway_url=mesh.gateway_url,
            enrolment_token=(await register(mesh, "nodes", body, "blue-op"))["enrolment_token"],
            outbound=True,
            servers=(workbench(mesh.sandbox, "github"),),
        )
        with pytest.raises(UpstreamFailed, match="name of another's server"):
            await Node(config).start()


async def test_a_log_tells_of_nobody_else(mesh: Mesh, red: Sidecar, blue: Sidecar) -> None:
    """What a compromised sidecar makes up of another's agent is not taken, and so stands in nobody's view."""
    await mesh.act(blue, "workbench/read_file", {"path": "notes.txt"})
    intent = next(line.entry for _, line in blue.ledger.lines() if isinstance(line.entry, entries.Intent))
    forged = msgspec.structs.replace(intent, deed=msgspec.structs.replace(intent.deed, agent="striped-agent"))
    identity = blue.identity
    ledger = DurableLedger(
        mesh.home / "forged",
        origin=log_of("licet.local", "sidecar", "blue-agent", "forged"),
        key=SecretKey.generate(),
        clock=SystemClock(),
        segment_bytes=SEGMENT,
    )
    await ledger.append(forged)
    await ledger.close()
    with pytest.raises(Unverifiable, match="another's"):
        await Shipper(identity, ledger.root, SystemClock()).ship()


async def test_a_namespace_says_nothing_for_which_the_mesh_is_asked(mesh: Mesh, blue: Sidecar) -> None:
    for path, body in (
        ("/v1/nodes", {"name": "n", "servers": ["x"]}),
        ("/v1/nodes", {"name": "n", "servers": ["x"], "url": "http://10.0.0.5:8080"}),
        ("/v1/agents", {"name": "a", "owner": "bea", "attested": True}),
        ("/v1/people", {"name": "p", "roles": ["viewer"], "login": "ada@example.com"}),
        ("/v1/agents/blue-agent/grant", {"allowed": True, "reason": "x"}),
        ("/v1/agents/blue-agent/clear", {"reason": "x"}),
    ):
        answer = await mesh.admin("POST", path, body, "blue-op")
        assert (answer.status, answer.json["reason"]) == (403, "not_yours"), (path, answer.body)


async def test_a_principal_is_nobody_in_another_namespace(mesh: Mesh, blue: Sidecar) -> None:
    """What agents of one namespace do under a name weighs on nobody who is called so elsewhere."""
    await register(mesh, "agents", {"name": "red-1", "owner": "bea"}, "striped-op")
    store = mesh.gateway.records.store
    assert [book.agent for book in Shelf(store, "red").of("bea")] == ["red-1"]
    assert [book.agent for book in Shelf(store, "blue").of("bea")] == ["blue-agent"]
    assert Shelf(store).of("bea") == []
