"""One agent hands part of its authority to another: every hop sees the chain, and nobody gets more than was given."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from licet.client import Credentials, delegate, describe, narrow
from sidecar.app import Sidecar
from tests.mesh import Mesh
from trust.identity.keys import SecretKey
from trust.ledger.entries import Dispatch, Intent, Refusal

pytestmark = pytest.mark.slow

READ = "workbench/read_file"
ONLY_NOTES: dict[str, Any] = {READ: {"path": {"constraint_type": "exact", "value": "notes.txt"}}}
EVERY_READ: dict[str, Any] = {READ: {}, "workbench/delete_file": {}}


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path) as made:
        for name in ("notes.txt", "other.txt"):
            (made.sandbox / name).write_text(f"text of {name}")
        yield made


@pytest.fixture
async def helper(mesh: Mesh) -> Sidecar:
    return await mesh.add_agent("helper", "bob")


def credentials(mesh: Mesh, sidecar: Sidecar | None = None) -> Credentials:
    return Credentials.load((sidecar or mesh.sidecar).config.home)


async def rooted(mesh: Mesh, tools: Any = EVERY_READ, **more: Any) -> str:
    return await asyncio.to_thread(delegate, credentials(mesh), mesh.gateway_url, tools, **more)


async def chain_for(mesh: Mesh, helper: Sidecar, tools: Any = ONLY_NOTES, **more: Any) -> str:
    return narrow(credentials(mesh), await rooted(mesh), helper.identity.key.public, tools, **more)


async def test_the_chain_narrows_and_stands_in_every_entry(mesh: Mesh, helper: Sidecar) -> None:
    chain = await chain_for(mesh, helper)
    tokens = describe(credentials(mesh), chain)["tokens"]
    done = await mesh.act(helper, READ, {"path": "notes.txt"}, chain=chain)
    assert done.status == 200, done.body
    intent = [line.entry for _, line in helper.ledger.lines() if isinstance(line.entry, Intent)][-1]
    assert (intent.deed.agent, intent.deed.principal, intent.deed.authority) == ("helper", "ada", tokens)
    assert intent.judgement.facts["context"]["authority"] == {
        "principal": {"__entity": {"type": "Human", "id": "ada"}},
        "depth": 2,
        "scopes": [READ],
    }
    for part in ("gateway", "node"):
        sent = [e for e in mesh.entries(part) if isinstance(e, Dispatch)][-1]
        assert (sent.agent, sent.principal, sent.authority) == ("helper", "ada", tokens)
    for tool, args in (
        (READ, {"path": "other.txt"}),
        ("workbench/write_file", {"path": "x", "content": ""}),
    ):
        answer = await mesh.act(helper, tool, args, chain=chain)
        assert (answer.status, answer.json["reason"], answer.json["step"]) == (403, "authority_exceeded", 2)
    refusal = [line.entry for _, line in helper.ledger.lines() if isinstance(line.entry, Refusal)][-1]
    assert refusal.deed is not None
    assert refusal.deed.authority == tokens
    assert (await mesh.act(helper, READ, {"path": "other.txt"})).status == 200, "without a chain it acts for its owner"


async def test_a_sub_agent_narrows_again_offline(mesh: Mesh, helper: Sidecar) -> None:
    third = await mesh.add_agent("third", "cleo")
    chain = await chain_for(mesh, helper, {READ: {"path": {"constraint_type": "prefix", "prefix": "n"}}})
    deeper = narrow(credentials(mesh, helper), chain, third.identity.key.public, ONLY_NOTES)
    assert (await mesh.act(third, READ, {"path": "notes.txt"}, chain=deeper)).status == 200
    answer = await mesh.act(third, READ, {"path": "notes.txt"}, chain=chain)
    assert (answer.status, answer.json["reason"]) == (403, "not_yours")


async def test_who_does_not_hold_the_last_key_cannot_use_it(mesh: Mesh, helper: Sidecar) -> None:
    chain = narrow(credentials(mesh), await rooted(mesh), SecretKey.generate().public, ONLY_NOTES)
    for sidecar in (helper, mesh.sidecar):
        answer = await mesh.act(sidecar, READ, {"path": "notes.txt"}, chain=chain)
        assert (answer.status, answer.json["reason"], answer.json["step"]) == (403, "not_yours", 2)


async def test_a_program_without_headers_gets_a_token_for_the_chain_and_it_outlives_a_restart(
    mesh: Mesh, helper: Sidecar
) -> None:
    chain = await chain_for(mesh, helper)
    url = f"http://127.0.0.1:{helper.port}/v1/mandates"
    told = (await mesh.request("POST", url, token=helper.token, json={"chain": chain})).json
    token = told["token"]
    assert told["tools"] == [READ]
    assert (await mesh.act(helper, READ, {"path": "notes.txt"}, token=token)).status == 200
    assert (await mesh.act(helper, READ, {"path": "other.txt"}, token=token)).json["reason"] == "authority_exceeded"
    again = await mesh.request("POST", url, token=token, json={"chain": chain})
    assert again.json["reason"] == "not_yours", "a narrowed program cannot ask for another token"
    wider = await mesh.act(helper, READ, {"path": "notes.txt"}, token=token, chain=await rooted(mesh))
    assert wider.json["reason"] == "not_yours"
    await helper.stop()
    mesh.others["helper"] = reborn = Sidecar(helper.config)
    await reborn.start()
    async with asyncio.timeout(30):
        while not all(reborn.checks().values()):
            await asyncio.sleep(0.01)
    assert (await mesh.act(reborn, READ, {"path": "notes.txt"}, token=token)).status == 200
    assert (await mesh.act(reborn, READ, {"path": "other.txt"}, token=token)).json["reason"] == "authority_exceeded"


async def test_tools_are_listed_as_far_as_they_were_delegated(mesh: Mesh, helper: Sidecar) -> None:
    chain = await chain_for(mesh, helper)
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}

    async def listed(headers: dict[str, str]) -> list[str]:
        url = f"http://127.0.0.1:{helper.port}/mcp/workbench"
        headers = {"Mcp-Protocol-Version": "2025-06-18", "Accept": "application/json, text/event-stream", **headers}
        answer = await mesh.request("POST", url, token=helper.token, json=body, headers=headers)
        return [tool["name"] for tool in answer.json["result"]["tools"]]

    assert await listed({"Licet-Delegation": chain}) == ["read_file"]
    assert len(await listed({})) > 3


@pytest.mark.parametrize("what", ["token", "root", "key", "agent", "principal"])
async def test_revoking_a_link_revokes_all_below_it_everywhere_within_a_second(
    mesh: Mesh, helper: Sidecar, what: str
) -> None:
    chain = await chain_for(mesh, helper)
    assert (await mesh.act(helper, READ, {"path": "notes.txt"}, chain=chain)).status == 200
    told = describe(credentials(mesh), chain)
    name = {
        "token": told["tokens"][0],
        "root": told["root"],
        "key": told["keys"][0],
        "agent": "demo",
        "principal": "ada",
    }[what]
    answer = await mesh.admin("POST", "/v1/revocations", {"what": what, "id": name, "reason": "test"})
    assert answer.status == 201, answer.body
    begin = time.monotonic()
    refused = await mesh.act(helper, READ, {"path": "notes.txt"}, chain=chain)
    assert time.monotonic() - begin < 5
    assert (refused.status, refused.json["reason"]) == (403, "revoked"), refused.body
    assert (await mesh.act(helper, READ, {"path": "notes.txt"})).status == 200, "its own authority is another"


async def test_policy_holds_for_everybody_in_the_chain(mesh: Mesh, helper: Sidecar) -> None:
    """What the delegating agent may not do, nobody may do for it; what the sub-agent may not do, it may not either."""
    from tests.mesh import policy_files

    chain = await chain_for(mesh, helper, EVERY_READ)
    for who in ("demo", "helper"):
        extra = f'@id("not-{who}") forbid (principal == Agent::"{who}", action in Action::"fs", resource);'
        assert (await mesh.activate({**policy_files(), "x.cedar": extra})).status == 200
        await asyncio.sleep(0.3)
        answer = await mesh.act(helper, READ, {"path": "notes.txt"}, chain=chain)
        assert (answer.status, answer.json["reason"], answer.json["policy_ids"]) == (
            403,
            "policy_forbids",
            [f"not-{who}"],
        )


async def test_the_lowest_standing_in_the_chain_decides(mesh: Mesh, helper: Sidecar) -> None:
    root = await rooted(mesh, {"workbench/write_file": {}})
    chain = narrow(credentials(mesh), root, helper.identity.key.public, {"workbench/write_file": {}})
    args = {"path": "x.txt", "content": "x"}
    assert (await mesh.act(helper, "workbench/write_file", args, chain=chain)).status == 200
    from trust.ledger import entries

    refused = entries.Refusals("policy_forbids", "workbench", 1, "severe", ["p"])
    await mesh.gateway.standings.refused(entries.Reported("demo", "o", 0, 0, [refused]))
    await mesh.gateway.standings.drain()
    answer = await mesh.act(helper, "workbench/write_file", args, chain=chain)
    assert answer.status == 403, answer.body
    assert answer.json["reason"] == "policy_forbids"
    assert (await mesh.act(helper, "workbench/write_file", args)).status == 200


async def test_a_held_action_keeps_its_authority_and_is_over_when_that_is_revoked(mesh: Mesh, helper: Sidecar) -> None:
    chain = await chain_for(mesh, helper, EVERY_READ)
    held = await mesh.act(helper, "workbench/delete_file", {"path": "other.txt"}, chain=chain)
    assert held.status == 202, held.body
    approval = held.json["approval"]
    shown = (await mesh.admin("GET", f"/v1/approvals/{approval}", who="approver-1")).json
    assert (shown["principal"], len(shown["authority"])) == ("ada", 2)
    assert (await mesh.vote(approval)).status == 200
    token = describe(credentials(mesh), chain)["tokens"][1]
    await mesh.admin("POST", "/v1/revocations", {"what": "token", "id": token, "reason": "no longer"})
    url = f"http://127.0.0.1:{helper.port}/v1/approvals/{approval}/claim"
    claimed = await mesh.request("POST", url, token=helper.token)
    assert claimed.status == 403
    assert (mesh.sandbox / "other.txt").exists()
    state = (await mesh.admin("GET", f"/v1/approvals/{approval}", who="approver-1")).json
    assert state["state"] == "cancelled"


async def test_a_held_action_runs_under_the_authority_under_which_it_was_asked(mesh: Mesh, helper: Sidecar) -> None:
    chain = await chain_for(mesh, helper, EVERY_READ)
    held = await mesh.act(helper, "workbench/delete_file", {"path": "other.txt"}, chain=chain)
    assert (await mesh.vote(held.json["approval"])).status == 200
    url = f"http://127.0.0.1:{helper.port}/v1/approvals/{held.json['approval']}/claim"
    assert (await mesh.request("POST", url, token=helper.token)).status == 200
    sent = [e for e in mesh.entries("gateway") if isinstance(e, Dispatch)][-1]
    assert (sent.principal, sent.approval) == ("ada", held.json["approval"])


async def test_the_gateway_opens_the_chain_itself(mesh: Mesh, helper: Sidecar) -> None:
    """A compromised sidecar of demo: a chain that ends at another's key, more than its own chain gives, none at all."""
    import msgspec

    from tests.attacks.test_forgery import dispatch, statement
    from trust.wire import action_of

    async def sent(chain: str, path: str, tokens: list[str] | None = None) -> Any:
        made, body = statement(mesh, args={"path": path})
        told = tuple(describe(credentials(mesh), chain)["tokens"]) if tokens is None else tuple(tokens)
        known = mesh.sidecar.pipeline.shown.tool("workbench", "read_file")
        digest = action_of(made, body)[0].digest("demo", "ada", told, known.digest if known else "")
        changed = msgspec.structs.replace(made, chain=chain, authority=told, action_digest=digest)
        return await dispatch(mesh, changed, body)

    own = narrow(credentials(mesh), await rooted(mesh), mesh.sidecar.identity.key.public, ONLY_NOTES)
    others = await chain_for(mesh, helper)
    assert (await sent(own, "notes.txt")).status == 200
    assert (await sent(others, "notes.txt")).json["reason"] == "not_yours"
    assert (await sent(own, "other.txt")).json["reason"] == "authority_exceeded"
    assert (await sent(own, "notes.txt", [])).json["reason"] == "permit_invalid"
    assert (await sent("", "notes.txt", ["x"])).json["reason"] == "permit_invalid"
    assert (await sent(own[:-4] + "AAAA", "notes.txt", ["x"])).json["reason"] == "delegation_invalid"


async def test_a_root_is_for_tools_that_exist_and_for_agents_with_their_key(mesh: Mesh) -> None:
    from licet.client import ApiError

    with pytest.raises(ApiError, match="not in the inventory"):
        await rooted(mesh, {"workbench/nothing": {}})
    with pytest.raises(ApiError, match="del_max_depth"):
        await rooted(mesh, EVERY_READ, max_depth=9)
    with pytest.raises(ApiError, match="lives 1 to"):
        await rooted(mesh, EVERY_READ, lives_s=90 * 86_400)


async def test_an_agent_has_so_many_roots_and_those_that_are_over_are_forgotten(mesh: Mesh, monkeypatch: Any) -> None:
    from gateway.state import Root
    from licet.client import ApiError

    monkeypatch.setattr("gateway.delegations.MAX_ROOTS", 2)
    for lives_s in (2, 600):
        await rooted(mesh, lives_s=lives_s)
    with pytest.raises(ApiError, match=r"demo has 2 roots of delegation; the first of them ends in \d s"):
        await rooted(mesh)
    await asyncio.sleep(2.1)
    await rooted(mesh)
    assert len(list(mesh.gateway._store.all(Root))) == 2


async def test_a_chain_at_the_wrong_place_says_whose_it_is(mesh: Mesh, helper: Sidecar) -> None:
    from trust.reasons import Unverifiable

    chain = await chain_for(mesh, helper)
    own, other = (sidecar.identity.key.public.thumbprint for sidecar in (mesh.sidecar, helper))
    url = f"http://127.0.0.1:{mesh.sidecar.port}/v1/mandates"
    told = (await mesh.request("POST", url, token=mesh.sidecar.token, json={"chain": chain})).json
    assert f"this chain ends at the key {other}, and demo has {own}" in told["detail"]
    with pytest.raises(Unverifiable, match="made for another agent; --home"):
        narrow(credentials(mesh), chain, SecretKey.generate().public, ONLY_NOTES)
    await mesh.admin("POST", "/v1/agents/helper/rotate", {})
    async with asyncio.timeout(30):
        while helper.identity.key.public.thumbprint == other:
            await asyncio.sleep(0.02)
    with pytest.raises(Unverifiable, match="its key before it was replaced"):
        narrow(credentials(mesh, helper), chain, SecretKey.generate().public, ONLY_NOTES)
    assert (await mesh.act(helper, READ, {"path": "notes.txt"}, chain=chain)).status == 200, "while it drains"


async def test_a_refusal_names_the_delegator_who_was_stopped(mesh: Mesh, helper: Sidecar) -> None:
    chain = await chain_for(mesh, helper)
    await mesh.admin("POST", "/v1/kills", {"target": "demo", "reason": "a drill"})
    refused = (await mesh.act(helper, READ, {"path": "notes.txt"}, chain=chain)).json
    assert (refused["reason"], refused["detail"]) == ("killed", "demo, who delegated this: a drill")
    entry = [line.entry for _, line in helper.ledger.lines() if isinstance(line.entry, Refusal)][-1]
    assert entry.deed is not None
    assert (entry.deed.principal, len(entry.deed.authority)) == ("ada", 2)
    await mesh.act(helper, READ, {"path": "notes.txt"}, chain=chain[:-4] + "AAAA")
    entry = [line.entry for _, line in helper.ledger.lines() if isinstance(line.entry, Refusal)][-1]
    assert entry.deed is not None
    assert (entry.deed.principal, len(entry.deed.authority)) == ("", 2), "what is not proved names nobody"
