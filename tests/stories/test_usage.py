"""What was used and where a run went: sums that agree with the ledger, events that collapse, and trails of one identity."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.mesh import Mesh
from tests.stories.test_agents_cli import as_json, fine, licet
from tests.stories.test_asking import settled
from tests.stories.test_routing import Bank, Three, policies, wired

pytestmark = pytest.mark.slow


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Three]:
    bank = Bank(tmp_path / "bank")
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(Mesh(tmp_path, policies=policies()))
        office = await wired(stack, mesh, bank, "office", capabilities={"data_locality": "berlin"})
        await mesh.add_node("cloud", bank.on("cloud"), kind="cloud")
        yield Three(mesh, bank, {"office": office})


async def sums(mesh: Mesh, by: str) -> dict[tuple[str, ...], Any]:
    await settled(mesh)
    told = (await mesh.admin("GET", f"/v1/usage?by={by}")).json
    return {tuple(one["group"].values()): one for one in told["sums"]}


async def events(mesh: Mesh) -> list[Any]:
    await settled(mesh)
    found: list[Any] = (await mesh.admin("GET", "/v1/usage/events")).json["events"]
    return found


async def reconciled(mesh: Mesh) -> Any:
    await settled(mesh)
    return (await mesh.admin("GET", "/v1/usage/reconciliation")).json


async def test_what_ran_is_summed_by_agent_team_node_and_day(two: Three) -> None:
    for _ in range(3):
        assert (await two.look(place={"pin": "office"})).status == 200
    assert (await two.look(place={"pin": "cloud"})).status == 200
    by_node = await sums(two.mesh, "node")
    assert {name: one["attempts"] for (name,), one in by_node.items()} == {"office": 3, "cloud": 1}
    office = by_node[("office",)]
    assert office["done"] == 3
    assert office["took_us"] > office["node_us"] > 0
    assert office["cpu_us"] > 0
    assert office["bytes_in"] > 0 < office["bytes_out"]
    assert office["tokens_in"] is office["tokens_out"] is office["gpu_us"] is None, "not measured is not 0"
    assert set(await sums(two.mesh, "agent,team")) == {("demo", "demo")}
    [(day, one)] = (await sums(two.mesh, "day")).items()
    assert len(day[0]) == 10
    assert one["attempts"] == 4
    assert (await two.mesh.admin("GET", "/v1/usage?by=moon")).status == 400
    assert (await two.mesh.admin("GET", "/v1/usage?of=demo")).status == 400


async def test_refusals_use_nothing_but_evaluations(two: Three) -> None:
    assert (await two.mesh.call("workbench/read_file", {"path": "/etc/passwd"})).status == 403
    one = (await sums(two.mesh, "agent"))[("demo",)]
    assert (one["attempts"], one["refused"], one["evaluations"]) == (0, 1, 1)
    assert one["took_us"] is one["bytes_in"] is None
    assert (await two.look()).status == 200
    one = (await sums(two.mesh, "agent"))[("demo",)]
    assert (one["attempts"], one["refused"], one["evaluations"]) == (1, 1, 3)
    assert len(await events(two.mesh)) == 1


async def test_each_attempt_is_one_event_however_often_it_is_told(two: Three) -> None:
    await two.look("x", run="r9")
    [first], [again] = await events(two.mesh), await events(two.mesh)
    assert first == again
    assert first["specversion"] == "1.0"
    assert first["id"] == f"{first['data']['action_id']}:1"
    assert (first["data"]["agent"], first["data"]["principal"], first["data"]["run"]) == ("demo", "ada", "r9")
    assert first["data"]["gpu_seconds"] is None
    assert first["data"]["node_kind"] in ("on_prem", "cloud")
    assert first["data"]["queue_ms"] >= 0


async def test_what_was_lost_is_taken_back_when_the_node_tells_how_it_ended(two: Three) -> None:
    two.wires["office"].cut = True
    answer = await two.mesh.call("bank/pay", {"text": "once"}, place={"pin": "office"})
    assert answer.json["reason"] == "outcome_unknown"
    told = await events(two.mesh)
    assert [one["id"].split(":", 1)[1] for one in told] == ["1", "1:taken-back", "1", "2", "2:taken-back", "2"]
    assert [one["data"]["status"] for one in told[:3]] == ["unknown", "unknown", "done"]
    assert told[0]["data"]["took_ms"] == -told[1]["data"]["took_ms"] == told[2]["data"]["took_ms"]


async def test_metering_and_ledger_agree_also_after_failures(two: Three) -> None:
    two.wires["office"].cut = True
    for number in range(6):
        await two.mesh.call("bank/pay" if number % 2 else "bank/look", {"text": str(number)})
    found = await reconciled(two.mesh)
    assert found["agrees"]
    assert found["dispatched"] == found["finished"] == found["events"] >= 6
    assert found["running"] == 0
    assert found["unmetered"] == []


async def test_an_index_made_anew_meters_the_same(two: Three) -> None:
    two.wires["office"].cut = True
    for number in range(4):
        await two.mesh.call("bank/look", {"text": str(number)})
    before = await events(two.mesh), await sums(two.mesh, "agent,node")
    await two.mesh.stop("gateway")
    for path in (two.mesh.home / "gateway").glob("index.sqlite*"):
        path.unlink()
    await two.mesh.start_gateway()
    assert (await events(two.mesh), await sums(two.mesh, "agent,node")) == before


async def test_a_trail_shows_each_hop_and_that_all_are_of_one_identity(two: Three) -> None:
    for place in ({"pin": "office"}, {"pin": "cloud"}):
        assert (await two.look(place=place, run="r1")).status == 200
    await settled(two.mesh)
    told = (await two.mesh.admin("GET", "/v1/runs/r1/trail")).json
    assert [(hop["node"], hop["node_kind"], hop["data_locality"]) for hop in told["hops"]] == [
        ("office", "on_prem", "berlin"),
        ("cloud", "cloud", ""),
    ]
    assert told["one_identity"] is True
    assert {(hop["agent"], hop["principal"], hop["action"], hop["status"]) for hop in told["hops"]} == {
        ("demo", "ada", "bank/look", "done")
    }
    assert all(hop["origin"] == "licet.local/gateway/main" for hop in told["hops"])
    assert (await two.mesh.admin("GET", "/v1/runs/nothing/trail")).status == 404


async def test_a_trail_has_what_was_sent_before_it_was_asked(two: Three) -> None:
    for number in range(4):
        assert (await two.look(run="r1")).status == 200
        told = (await two.mesh.admin("GET", "/v1/runs/r1/trail")).json
        assert len(told["hops"]) == number + 1


async def test_a_trail_names_the_hops_of_another_identity(two: Three) -> None:
    other = await two.mesh.add_agent("other", "bob")
    assert (await two.look(run="shared")).status == 200
    assert (await two.mesh.act(other, "bank/look", {}, run="shared")).status == 200
    await settled(two.mesh)
    told = (await two.mesh.admin("GET", "/v1/runs/shared/trail")).json
    assert told["one_identity"] is False
    assert told["others"] == [1]
    code, out, _ = await licet(two.mesh, "audit", "trail", "shared")
    assert code == 1
    assert "NOT ONE IDENTITY: hops 1 differ from the first" in out


async def test_the_commands(two: Three) -> None:
    answer = await two.look("x", run="r1")
    await settled(two.mesh)
    mesh = two.mesh
    assert "every hop: demo for ada" in await fine(mesh, "audit", "trail", "r1")
    told = await fine(mesh, "usage", "--by", "agent,node,day")
    assert "demo" in told
    assert (await as_json(mesh, "usage"))["sums"][0]["attempts"] == 1
    assert json.loads(await fine(mesh, "usage", "events"))["data"]["run"] == "r1"
    assert "they agree" in await fine(mesh, "usage", "reconcile")
    code, _, err = await licet(mesh, "usage", "--since", "yesterday")
    assert (code, "expected how long ago" in err) == (2, True)
    listed = await fine(mesh, "nodes", "list")
    assert "data_locality=berlin (signed)" in listed
    shown = await fine(mesh, "nodes", "show", "office")
    assert "capability data_locality=berlin: signed" in shown
    explained = await fine(mesh, "nodes", "explain", answer.json["decision_id"])
    assert "the same node" in explained
    assert "is draining" in await fine(mesh, "nodes", "drain", "office", "--reason", "patching")
    assert "is ready" in await fine(mesh, "nodes", "resume", "office")
    assert "is quarantined" in await fine(mesh, "nodes", "quarantine", "office", "--reason", "odd")
    registered = await fine(
        mesh,
        "nodes",
        "register",
        "far",
        "--server",
        "bank",
        "--outbound",
        "--capability",
        "gpu",
        "--capability",
        "region=eu",
    )
    assert "ENROLMENT_TOKEN" in registered
    assert "far" in await fine(mesh, "nodes", "list")
    code, _, err = await licet(mesh, "nodes", "show", "nobody")
    assert (code, 'no node "nobody"' in err) == (1, True)
    code, _, err = await licet(mesh, "nodes", "explain", "dec_no")
    assert (code, "no routed action has the decision" in err) == (1, True)
