"""The ten promises, through a whole mesh: real processes' parts, the real workbench, real files."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.judging import Judge
from tests.mesh import Mesh, policy_files
from tests.trust.test_ledger import FailingDisk
from trust.canonical import digest_of
from trust.ledger.entries import Approval, Dispatch, Hold, Intent, Kill, Outcome, Refusal
from trust.ledger.verify import verify
from trust.policy.judge import action_digest

pytestmark = pytest.mark.slow

READ = ("workbench/read_file", {"path": "notes.txt"})
DELETE = ("workbench/delete_file", {"path": "notes.txt"})


def of(mesh: Mesh, kind: type, part: str = "sidecar") -> list[Any]:
    return [entry for entry in mesh.entries(part) if isinstance(entry, kind)]


def refused(answer: Any, reason: str, status: int = 403) -> dict[str, Any]:
    assert (answer.status, answer.json["reason"]) == (status, reason), answer.body
    assert answer.json["detail"]
    told: dict[str, Any] = answer.json
    return told


def executed(mesh: Mesh) -> int:
    """Actions that a node began."""
    return len([d for d in of(mesh, Dispatch, "node") if not d.tool.startswith("mcp:")])


async def test_what_policy_allows_happens_and_is_on_record_before_and_after(mesh: Mesh) -> None:
    answer = await mesh.call(*READ)
    assert answer.status == 200
    assert answer.json["result"]["structuredContent"] == {"result": "hello"}
    index = answer.json["audit"]["index"]
    assert answer.headers["Licet-Audit"] == f"licet.local/sidecar/demo#{index}"
    assert answer.headers["Licet-Decision"] == "allow"
    intent, outcome = of(mesh, Intent)[0], of(mesh, Outcome)[0]
    assert intent.deed.decision_id == outcome.decision_id == answer.headers["Licet-Decision-Id"]
    assert (intent.deed.agent, intent.deed.principal, intent.deed.authn) == ("demo", "ada", "bound")
    assert (outcome.status, outcome.node, outcome.upstream_status) == ("done", "node-1", 200)
    dispatch = of(mesh, Dispatch, "gateway")[0]
    assert dispatch.intent == answer.headers["Licet-Audit"]


async def test_one_identity_and_one_set_of_bytes_at_every_hop(mesh: Mesh) -> None:
    await mesh.call(*READ)
    intent, routed, run = of(mesh, Intent)[0].deed, of(mesh, Dispatch, "gateway")[0], of(mesh, Dispatch, "node")[0]
    for hop in (routed, run):
        assert (hop.agent, hop.principal, hop.action_id, hop.run) == (
            intent.agent,
            intent.principal,
            intent.action_id,
            intent.run,
        )
        assert (hop.payload_sha256, hop.action_digest) == (intent.payload_sha256, intent.action_digest)


async def test_what_policy_forbids_does_not_happen(mesh: Mesh) -> None:
    told = refused(await mesh.call("workbench/read_file", {"path": "server.pem"}), "policy_forbids")
    assert told["policy_ids"] == ["no-key-files"]
    assert told["step"] == 5
    assert told["class"] == "structural"
    assert executed(mesh) == 0
    entry = of(mesh, Refusal)[-1]
    assert entry.decision_id == told["decision_id"]
    assert entry.judgement.policies == ["no-key-files"]


@pytest.mark.parametrize(
    ("tool", "args", "reason"),
    [
        ("workbench/format_disk", {}, "unknown_tool"),
        ("nowhere/read_file", {}, "unknown_server"),
        ("workbench/read_file", {}, "arguments_invalid"),
        ("workbench/read_file", {"path": 5}, "arguments_invalid"),
        ("workbench/read_file", {"path": "a", "b": 1}, "arguments_invalid"),
        ("workbench/mcp:initialize", {}, "unknown_tool"),
        ("workbench/read\u200bfile", {}, "unknown_tool"),
        ("wоrkbench/read_file", {}, "unknown_server"),
        ("workbench", {}, "unknown_tool"),
    ],
)
async def test_unknown_things_are_refused_and_recorded(
    mesh: Mesh, tool: str, args: dict[str, Any], reason: str
) -> None:
    refused(await mesh.call(tool, args), reason)
    assert of(mesh, Refusal)[-1].reason == reason
    assert executed(mesh) == 0


async def test_a_policy_that_cannot_be_evaluated_refuses(tmp_path: Path) -> None:
    """The validator catches what it can; an integer overflow it cannot."""
    files = policy_files()
    files["broken.cedar"] = (
        '@id("broken") forbid(principal, action in Action::"fs", resource) '
        "when { context.trust.score * 9223372036854775807 > 5 };"
    )
    async with Mesh(tmp_path, policies={k: v for k, v in files.items() if not k.startswith("cases/")}) as mesh:
        told = refused(await mesh.call(*READ), "policy_error")
        assert told["policy_ids"] == ["broken"]
        assert of(mesh, Refusal)[-1].judgement.errors
        assert executed(mesh) == 0


async def test_a_held_action_runs_exactly_once_though_claimed_by_many_at_once(mesh: Mesh) -> None:
    held = await mesh.call(*DELETE)
    assert held.status == 202
    approval = held.headers["Location"].rsplit("/", 1)[-1]
    assert (await mesh.call(*DELETE)).json["approval"] == approval, "the same call finds the same request"
    refused(await mesh.claim(approval), "approval_pending", 202)
    assert (await mesh.vote(approval)).json["state"] == "approved"
    answers = await asyncio.gather(*(mesh.claim(approval) for _ in range(30)))
    assert sorted(a.status for a in answers) == [200] + [403] * 29
    assert executed(mesh) == 1
    assert not (mesh.sandbox / "notes.txt").exists()
    claimed = [e for e in of(mesh, Approval, "gateway") if e.event == "claimed"]
    assert len(claimed) == 1
    refused(await mesh.claim(approval), "approval_consumed")


async def test_a_denied_action_stays_denied_and_says_why(mesh: Mesh) -> None:
    approval = (await mesh.call(*DELETE)).json["approval"]
    await mesh.vote(approval, "deny", reason="keep the notes")
    told = refused(await mesh.call(*DELETE), "approval_denied")
    assert told["detail"].startswith(
        f"approver-1 denied {approval}: keep the notes; the same action is refused until 20"
    )
    assert told["retryable"] is False
    refused(await mesh.claim(approval), "approval_denied")
    assert executed(mesh) == 0


async def test_only_the_right_people_decide(tmp_path: Path) -> None:
    async with Mesh(tmp_path) as mesh:
        (mesh.sandbox / "notes.txt").write_text("hello")
        for name, roles in (("ada", ["operations"]), ("bob", ["gardening"])):
            mesh.tokens[name] = (await mesh.admin("POST", "/v1/people", {"name": name, "roles": roles})).json["token"]
        approval = (await mesh.call(*DELETE)).json["approval"]
        assert "owns demo" in refused(await mesh.vote(approval, who="ada"), "not_yours")["detail"]
        assert "none of the roles" in refused(await mesh.vote(approval, who="bob"), "not_yours")["detail"]
        mesh.tokens["stranger"] = "x" * 43
        refused(await mesh.vote(approval, who="stranger"), "unauthenticated", 401)
        refused(await mesh.claim(approval), "approval_pending", 202)


async def test_a_forbid_wins_over_an_approval_and_leaves_it_unspent(mesh: Mesh) -> None:
    approval = (await mesh.call(*DELETE)).json["approval"]
    await mesh.vote(approval)
    files = policy_files()
    strict = '@id("freeze") @reason("frozen") forbid(principal, action in Action::"destructive", resource);'
    frozen = {k: v for k, v in files.items() if not k.startswith("cases/")} | {"freeze.cedar": strict}
    assert (await mesh.activate(frozen)).status == 200
    await mesh.ready()
    refused(await mesh.claim(approval), "policy_forbids")
    assert (await mesh.activate(files)).status == 200
    await mesh.ready()
    assert (await mesh.claim(approval)).status == 200


async def test_a_quorum_of_two_needs_two(tmp_path: Path) -> None:
    files = {k: v.replace("of=operations ttl=15m", "of=operations quorum=2 ttl=15m") for k, v in policy_files().items()}
    async with Mesh(tmp_path, policies=files) as mesh:
        (mesh.sandbox / "notes.txt").write_text("hello")
        approval = (await mesh.call(*DELETE)).json["approval"]
        assert (await mesh.vote(approval)).json["state"] == "pending"
        refused(await mesh.vote(approval), "not_yours")
        assert (await mesh.vote(approval, who="approver-2")).json["state"] == "approved"


async def test_nobody_decides_in_time(tmp_path: Path) -> None:
    files = {k: v.replace("ttl=15m", "ttl=1s") for k, v in policy_files().items()}
    async with Mesh(tmp_path, policies=files) as mesh:
        approval = (await mesh.call(*DELETE)).json["approval"]
        async with asyncio.timeout(30):
            while mesh.gateway.desk.get(approval).state != "expired":
                await asyncio.sleep(0.05)
        refused(await mesh.vote(approval), "approval_expired")
        refused(await mesh.claim(approval), "approval_expired")


async def test_an_approval_survives_restarts_of_everything(mesh: Mesh) -> None:
    approval = (await mesh.call(*DELETE)).json["approval"]
    for part in ("sidecar", "node", "gateway"):
        await mesh.stop(part)
    await mesh.start_gateway()
    await mesh.start_node()
    await mesh.start_sidecar()
    assert (await mesh.vote(approval)).json["state"] == "approved"
    assert (await mesh.claim(approval)).status == 200
    assert executed(mesh) == 1


async def test_a_dead_gateway_refuses_what_has_effects_and_what_must_be_routed(mesh: Mesh) -> None:
    await mesh.stop("gateway")
    refused(await mesh.call(*READ), "gateway_unreachable", 503)
    assert of(mesh, Outcome)[-1].status == "refused"
    mesh.sidecar.world.own._received -= 6.0
    refused(await mesh.call("workbench/write_file", {"path": "a", "content": "b"}), "stale_facts", 503)
    mesh.sidecar.world.own._received -= 30.0
    refused(await mesh.call(*READ), "stale_facts", 503)


async def test_a_dead_node_leaves_nobody_eligible_and_the_counts_say_why(mesh: Mesh) -> None:
    await mesh.stop("node")
    answer = await mesh.call(*READ)
    assert answer.json["reason"] == "no_eligible_node"
    assert "unreachable" in answer.json["detail"]
    assert of(mesh, Refusal, "gateway")[-1].reason == "no_eligible_node"


async def test_a_pin_that_nobody_meets_is_not_softened(mesh: Mesh) -> None:
    answer = await mesh.call(*READ, place={"pin": "elsewhere", "slo_ms": None})
    assert "1 not_pinned" in refused(answer, "no_eligible_node")["detail"]


async def test_placement_policy_is_a_hard_filter(tmp_path: Path) -> None:
    files = {k: v for k, v in policy_files().items() if not k.startswith("cases/")}
    files["place.cedar"] = (
        '@id("nowhere") forbid(principal, action == Action::"place", resource) when { resource.kind == "on_prem" };'
    )
    async with Mesh(tmp_path, policies=files) as mesh:
        assert "1 placement_policy" in refused(await mesh.call(*READ), "no_eligible_node")["detail"]


async def test_a_stale_bundle_refuses(tmp_path: Path) -> None:
    async with Mesh(tmp_path) as mesh:
        content = mesh.sidecar.world.bundle.content
        object.__setattr__(mesh.sidecar.world.bundle, "content", msgspec.structs.replace(content, not_after=1))
        refused(await mesh.call(*READ), "stale_bundle", 503)


async def test_a_bad_bundle_changes_nothing_and_says_why(mesh: Mesh) -> None:
    before = mesh.gateway.bundles.sealed.digest
    for change, expected in (
        ({"workbench.cedar": '@id("x") permit(principal, action, resource) when { context.trst.score > 1 };'}, "did you mean `trust`"),
        ({"workbench.cedar": "", "rings.cedar": "", "mesh.cedar": ""}, "there is no policy"),
        ({"more.cedar": '@id("protocol") permit(principal, action, resource);'}, "is used twice"),
        ({"more.cedar": 'permit(principal, action, resource);'}, "has no @id"),
        ({"more.cedar": '@id("y") forbid(principal, action in Action::"fs", resource);'}, "expected permit, found refuse"),
        ({"more.cedar": '@id("y") @approval("of=nobody") forbid(principal, action in Action::"net", resource) unless { context.approved };'}, "0 people have that role"),
        ({"more.cedar": '@id("y") forbid(principal, action in Action::"net", resource) unless { context.approved };'}, "has no @approval"),
    ):  # fmt: skip
        answer = await mesh.activate({**policy_files(), **change})
        assert answer.status == 422
        assert expected in answer.json["rejected"]
    assert mesh.gateway.bundles.sealed.digest == before
    assert (await mesh.call(*READ)).status == 200


async def test_a_rollback_brings_the_earlier_policies_as_a_higher_version(mesh: Mesh) -> None:
    version = mesh.gateway.bundles.sealed.content.version
    files = {k: v for k, v in policy_files().items() if not k.startswith("cases/")}
    files["freeze.cedar"] = '@id("freeze") forbid(principal, action in Action::"fs", resource);'
    await mesh.activate(files)
    await mesh.ready()
    refused(await mesh.call(*READ), "policy_forbids")
    await mesh.gateway.bundles.refresh("gateway")  # nothing new, so nothing to go back behind
    answer = await mesh.admin("POST", "/v1/bundles/rollback", {})
    assert answer.json["version"] == version + 3
    await mesh.ready()
    assert (await mesh.call(*READ)).status == 200


async def test_a_kill_stops_an_agent_and_survives_a_restart(mesh: Mesh) -> None:
    assert (await mesh.admin("POST", "/v1/kills", {"target": "demo", "reason": "odd behaviour"})).status == 200
    async with asyncio.timeout(30):
        while mesh.sidecar.world.facts.stopped is None:
            await asyncio.sleep(0.01)
    assert refused(await mesh.call(*READ), "killed")["detail"] == "odd behaviour"
    await mesh.stop("gateway")
    await mesh.start_gateway()
    assert [e.target for e in of(mesh, Kill, "gateway")] == ["demo"]
    agents = (await mesh.admin("GET", "/v1/agents")).json["agents"]
    assert agents[0]["state"] == "killed"
    await mesh.admin("POST", "/v1/kills/lift", {"target": "demo", "reason": "looked at"})
    async with asyncio.timeout(30):
        while (await mesh.call(*READ)).status != 200:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", ["enospc", "eio", "short"])
async def test_a_full_disk_refuses_everything_and_nothing_leaves(tmp_path: Path, how: str) -> None:
    disk = FailingDisk(10_000, how)
    async with Mesh(tmp_path, sidecar_disk=disk) as mesh:
        (mesh.sandbox / "notes.txt").write_text("hello")
        assert (await mesh.call(*READ)).status == 200
        before = executed(mesh)
        mesh.entries()  # writes what waits: the next write is that of the next call's intent, and of nothing else
        disk.left = 0
        for tool, args in (READ, DELETE, ("workbench/nope", {})):
            refused(await mesh.call(tool, args), "ledger_unavailable", 503)
        assert executed(mesh) == before
        ready = await mesh.request("GET", mesh.url + "/readyz")
        assert (ready.status, ready.json["checks"]["ledger"]) == (503, False)


async def test_a_gateway_that_cannot_record_does_not_route(tmp_path: Path) -> None:
    disk = FailingDisk(10_000, "enospc")
    async with Mesh(tmp_path, gateway_disk=disk) as mesh:
        (mesh.sandbox / "notes.txt").write_text("hello")
        disk.left = 0
        refused(await mesh.call(*READ), "ledger_unavailable", 503)
        assert executed(mesh) == 0


async def test_state_is_a_fold_over_the_ledger(mesh: Mesh) -> None:
    """Delete the database; the next start folds the same state, bit for bit."""
    approval = (await mesh.call(*DELETE)).json["approval"]
    await mesh.vote(approval, "deny")
    await mesh.admin("POST", "/v1/kills", {"target": "all", "reason": "drill"})
    await mesh.admin("POST", "/v1/kills/lift", {"target": "all", "reason": "over"})
    before = mesh.gateway._store.dump()
    await mesh.stop("gateway")
    for path in (mesh.home / "gateway").glob("state.sqlite*"):
        path.unlink()
    await mesh.start_gateway()
    assert mesh.gateway._store.dump() == before
    assert len(before) >= 8


async def test_every_ledger_verifies_and_every_decision_can_be_made_again(mesh: Mesh) -> None:
    await mesh.call(*READ)
    await mesh.call("workbench/read_file", {"path": "../x"})
    approval = (await mesh.call(*DELETE)).json["approval"]
    await mesh.vote(approval)
    await mesh.claim(approval)
    big = {"path": "big.txt", "content": "y" * 100_000}
    assert (await mesh.call("workbench/write_file", big)).status == 200
    for part in ("sidecar", "node", "gateway"):
        await mesh.stop(part)
        root = mesh.home / part / "ledger"
        report = verify(root, judge=Judge(root.parent))
        assert report.faults == []
        assert report.holds
        if part == "sidecar":
            assert (report.decided_again, report.not_decidable) == (5, 0)


async def test_a_decision_that_does_not_follow_from_its_facts_is_found(mesh: Mesh) -> None:
    """An insider with the log's key writes an intent that policy never permitted, with more and more care."""
    await mesh.call(*READ)
    intent = of(mesh, Intent)[0]
    forged_args = {"path": "server.pem"}
    deed = msgspec.structs.replace(intent.deed, arguments=forged_args, arguments_sha256=digest_of(forged_args))
    bundle = mesh.sidecar.world.bundle
    assert bundle is not None
    fitting = msgspec.structs.replace(deed, action_digest=action_digest(bundle, deed))
    for careful in (deed, fitting, msgspec.structs.replace(fitting, agent="other")):
        await mesh.sidecar.ledger.append(msgspec.structs.replace(intent, deed=careful))
    await mesh.stop("sidecar")
    root = mesh.home / "sidecar" / "ledger"
    report = verify(root, judge=Judge(root.parent))
    assert not report.holds
    assert "the digest that people approve is not the one of this action" in report.faults[0]
    assert "give refuse by ['no-key-files']" in report.faults[1]
    assert "asked by other, and decided with the facts of demo" in report.faults[2]


async def test_the_tool_receives_the_bytes_that_were_judged(mesh: Mesh) -> None:
    text = '  odd "spacing" \\u0041 ünïcödé \n' * 20
    await mesh.call("workbench/write_file", {"path": "odd.txt", "content": text})
    assert (mesh.sandbox / "odd.txt").read_text() == text
    deeds = [i.deed for i in of(mesh, Intent) if i.deed.tool == "write_file"]
    assert deeds[0].payload_sha256 == of(mesh, Dispatch, "node")[-1].payload_sha256


async def test_labels_stay_with_the_agent_when_it_opens_a_new_run(mesh: Mesh) -> None:
    await mesh.call(*READ, run="run-a")
    await mesh.call("workbench/list_directory", {"path": "."}, run="run-b")
    facts = of(mesh, Intent)[-1].judgement.facts["context"]["run"]
    assert (facts["id"], facts["labels"], facts["calls"]) == ("run-b", ["private"], 1)


async def test_labels_and_counters_survive_a_restart(mesh: Mesh) -> None:
    for _ in range(3):
        await mesh.call(*READ, run="run-a")
    await mesh.stop("sidecar")
    await mesh.start_sidecar()
    await mesh.call(*READ, run="run-a")
    context = of(mesh, Intent)[-1].judgement.facts["context"]
    assert context["run"]["calls"] == 3
    assert context["run"]["labels"] == ["private"]
    assert context["rate"]["tool_minute"] == 3


async def test_calls_in_flight_count_so_that_many_cannot_each_look_like_the_first(tmp_path: Path) -> None:
    files = {k: v for k, v in policy_files().items() if not k.startswith("cases/")}
    files["limit.cedar"] = (
        '@id("limit") forbid(principal, action in Action::"fs", resource) when { context.rate.tool_minute >= 3 };'
    )
    async with Mesh(tmp_path, policies=files) as mesh:
        (mesh.sandbox / "notes.txt").write_text("hello")
        answers = await asyncio.gather(*(mesh.call(*READ) for _ in range(10)))
        assert sorted(a.status for a in answers) == [200] * 3 + [403] * 7


async def test_what_a_run_has_seen_can_forbid_what_it_sends(tmp_path: Path) -> None:
    files = {k: v for k, v in policy_files().items() if not k.startswith("cases/")}
    files["flow.cedar"] = (
        '@id("flow") forbid(principal, action in Action::"write", resource) when { context.run.labels.contains("private") };'
    )
    async with Mesh(tmp_path, policies=files) as mesh:
        (mesh.sandbox / "notes.txt").write_text("hello")
        write = ("workbench/write_file", {"path": "out.txt", "content": "x"})
        assert (await mesh.call(*write)).status == 200
        await mesh.call(*READ)
        refused(await mesh.call(*write), "policy_forbids")
        refused(await mesh.call(*write, run="a-new-run"), "policy_forbids")


async def test_the_agent_never_sees_a_key_and_without_its_token_nothing(mesh: Mesh) -> None:
    for token in ("", "wrong", mesh.tokens["operator"]):
        answer = await mesh.request(
            "POST", mesh.url + "/v1/actions", token=token, json={"tool": READ[0], "args": READ[1]}
        )
        refused(answer, "unauthenticated", 401)
    everything = json.dumps([str(e) for e in mesh.entries()])
    assert mesh.sidecar.token not in everything
    assert (mesh.home / "sidecar" / "identity.key").stat().st_mode & 0o077 == 0


async def test_a_hold_is_recorded_before_anybody_is_asked(mesh: Mesh) -> None:
    answer = await mesh.call(*DELETE)
    hold = of(mesh, Hold)[0]
    assert hold.terms["quorum"] == {"operations": 1}
    requested = [e for e in of(mesh, Approval, "gateway") if e.event == "requested"]
    assert requested[0].action_digest == hold.deed.action_digest == answer.json["action_digest"]


async def test_large_bodies_are_refused_and_never_judged_on_a_prefix(mesh: Mesh) -> None:
    answer = await mesh.call("workbench/write_file", {"path": "a", "content": "x" * (5 << 20)})
    refused(answer, "body_too_large", 413)
    assert executed(mesh) == 0
