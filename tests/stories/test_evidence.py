"""More than a claim: what an issuer vouches for counts for one key, and what is near must answer soon."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.config import IssuerConfig
from tests.mesh import Mesh
from tests.stories.test_agents_cli import fine, licet
from tests.stories.test_routing import Bank, nodes, policies, refused
from tests.wire import Wire
from trust.identity import challenge, voucher
from trust.identity.keys import SecretKey
from trust.ledger.entries import Node
from trust.reasons import Unverifiable

BERLIN = "data_locality=berlin"
slow = pytest.mark.slow


def issuer(home: Path, within_ms: float = 0.0, **more: Any) -> tuple[SecretKey, IssuerConfig]:
    home.mkdir(parents=True, exist_ok=True)
    key = SecretKey.generate()
    public = home / "issuer.pub"
    public.write_text(json.dumps(dict(key.public.jwk)))
    return key, IssuerConfig(capability=BERLIN, key_file=public, within_ms=within_ms, **more)


async def vouched(mesh: Mesh, home: Path, name: str, key: SecretKey, **changed: Any) -> Path:
    """A voucher for a node that is enrolled, as its issuer makes it."""
    one = (await mesh.admin("GET", f"/v1/nodes/{name}")).json
    now = int(time.time())
    told = {"capability": BERLIN, "node": one["did"], "key": one["key"], "issued_at": now, "expires_at": now + 3600}
    path = home / f"{name}.voucher"
    path.write_text(voucher.seal(voucher.Voucher(**(told | changed)), key))
    return path


async def again(mesh: Mesh, name: str, bank: Bank, *vouchers: Path, **more: Any) -> None:
    """The node starts once more, with vouchers."""
    before = mesh.nodes[name].config
    await mesh.lose_node(name)
    from sidecar.node.app import Node as NodeProcess

    node = NodeProcess(before.model_copy(update={"vouchers": vouchers, **more}))
    await node.start()
    mesh.nodes[name] = node
    await mesh.ready()


def known(one: dict[str, Any]) -> dict[str, str]:
    return {held["word"]: held["level"] for held in one["capabilities"]}


@slow
async def test_what_an_issuer_vouches_for_counts_for_the_key_that_the_node_holds(tmp_path: Path) -> None:
    key, config = issuer(tmp_path / "issuer")
    bank = Bank(tmp_path / "bank", requires=(f"{BERLIN}@bound",))
    async with Mesh(tmp_path, policies=policies(), issuers=(config,)) as mesh:
        for name in ("office", "elsewhere"):
            await mesh.add_node(name, bank.on(name), capabilities={"data_locality": "berlin"})
        no = refused(await mesh.call("bank/look", {}), "no_eligible_node")
        assert f"2 lacks:{BERLIN}@bound" in no["detail"], "an operator's word is not the issuer's"
        token = await vouched(mesh, tmp_path, "office", key)
        await again(mesh, "office", bank, token)
        assert (await mesh.call("bank/look", {})).json["node"] == "office"
        assert known((await nodes(mesh))["office"]) == {BERLIN: "bound"}
        with pytest.raises(Exception, match="another key than this node has"):
            await again(mesh, "elsewhere", bank, token)
        proved = [e for e in mesh.entries("gateway") if isinstance(e, Node) and e.event == "proved"]
        assert [(e.node, e.capability, e.level) for e in proved] == [("office", BERLIN, "bound")]


@slow
@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"expires_at": int(time.time()) - 1}, "outside of its time"),
        ({"issued_at": int(time.time()) + 3600, "expires_at": int(time.time()) + 7200}, "outside of its time"),
        ({"expires_at": int(time.time()) + 400 * 86_400}, "more than 366 days"),
        ({"capability": "gpu"}, "nobody is configured to vouch for gpu"),
        ({"node": "did:web:licet.local:nodes:other"}, "another key"),
    ],
)
async def test_a_voucher_that_does_not_hold_refuses_the_node(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    key, config = issuer(tmp_path / "issuer")
    bank = Bank(tmp_path / "bank")
    async with Mesh(tmp_path, policies=policies(), issuers=(config,)) as mesh:
        await mesh.add_node("office", bank.on("office"))
        token = await vouched(mesh, tmp_path, "office", key, **changed)
        with pytest.raises(Exception, match=why):
            await again(mesh, "office", bank, token)


@slow
async def test_a_voucher_of_somebody_else_is_none(tmp_path: Path) -> None:
    _, config = issuer(tmp_path / "issuer")
    bank = Bank(tmp_path / "bank")
    async with Mesh(tmp_path, policies=policies(), issuers=(config,)) as mesh:
        await mesh.add_node("office", bank.on("office"))
        token = await vouched(mesh, tmp_path, "office", SecretKey.generate())
        with pytest.raises(Exception, match="does not verify"):
            await again(mesh, "office", bank, token)


@slow
async def test_a_node_that_is_too_far_away_loses_what_nearness_is_a_part_of(tmp_path: Path) -> None:
    """Also what an operator signed: the issuer's limit says that it cannot be there."""
    key, config = issuer(tmp_path / "issuer", within_ms=60.0)
    bank = Bank(tmp_path / "bank", requires=(BERLIN,))
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(Mesh(tmp_path, policies=policies(), issuers=(config,)))
        wire = await stack.enter_async_context(Wire(0).open())
        node = await mesh.add_node(
            "office", bank.on("office"), capabilities={"data_locality": "berlin"}, public_url=wire.url
        )
        wire.target = node.port
        token = await vouched(mesh, tmp_path, "office", key)
        await again(mesh, "office", bank, token)
        wire.target = mesh.nodes["office"].port
        told = (await mesh.admin("POST", "/v1/nodes/office/verify")).json["proved"]
        assert [(one["capability"], one["holds"]) for one in told] == [(BERLIN, True)]
        assert known((await nodes(mesh))["office"]) == {BERLIN: "verified"}
        assert (await mesh.call("bank/look", {})).status == 200
        wire.slow_s = 0.1
        told = (await mesh.admin("POST", "/v1/nodes/office/verify")).json["proved"]
        assert told[0]["holds"] is False
        assert "of 60 ms" in told[0]["how"]
        assert f"1 lacks:{BERLIN}" in refused(await mesh.call("bank/look", {}), "no_eligible_node")["detail"]
        assert (await nodes(mesh))["office"]["suspended"] == [BERLIN]
        another = await vouched(mesh, tmp_path, "office", key, expires_at=int(time.time()) + 1800)
        await again(mesh, "office", bank, another)
        wire.target = mesh.nodes["office"].port
        assert (await mesh.call("bank/look", {})).status == 403, "another voucher makes nobody nearer"
        wire.cut = True
        told = (await mesh.admin("POST", "/v1/nodes/office/verify")).json["proved"]
        assert told[0]["holds"] is False, "who says nothing is not near"
        wire.cut, wire.slow_s = False, 0.0
        await mesh.admin("POST", "/v1/nodes/office/verify")
        assert (await mesh.call("bank/look", {})).status == 200
        events = [e.event for e in mesh.entries("gateway") if isinstance(e, Node) and e.capability == BERLIN]
        assert [e for e in events if e != "proved"] == ["suspended", "restored"] * (events.count("suspended"))
        assert events.count("suspended") >= 1, "when it was too far"


@slow
async def test_what_was_verified_ends_and_is_asked_again(tmp_path: Path) -> None:
    key, config = issuer(tmp_path / "issuer", within_ms=1000.0, verified_for_s=1.0)
    bank = Bank(tmp_path / "bank", requires=(f"{BERLIN}@verified",))
    async with Mesh(tmp_path, policies=policies(), issuers=(config,)) as mesh:
        await mesh.add_node("office", bank.on("office"))
        await again(mesh, "office", bank, await vouched(mesh, tmp_path, "office", key))
        for wanted in (200, 403, 200):  # the gateway asks by itself, and between that it ends
            async with asyncio.timeout(30):
                while (await mesh.call("bank/look", {})).status != wanted:
                    await asyncio.sleep(0.2)


@slow
async def test_the_commands(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank")
    async with Mesh(tmp_path, policies=policies()) as mesh:
        await mesh.add_node("office", bank.on("office"))
        key, made = str(tmp_path / "berlin.key"), str(tmp_path / "office.voucher")
        said = await fine(mesh, "nodes", "vouch", "office", "--capability", BERLIN, "--key", key, "-o", made)
        assert "berlin.key.pub" in said
        config = IssuerConfig(capability=BERLIN, key_file=Path(key + ".pub"), within_ms=1000.0)
        await mesh.stop("gateway")
        mesh.issuers = (config,)
        await mesh.start_gateway()
        await again(mesh, "office", bank, Path(made))
        assert "holds, the best of 5 echoes" in await fine(mesh, "nodes", "verify", "office")
        assert f"capability {BERLIN}: verified until" in await fine(mesh, "nodes", "show", "office")
        code, _, err = await licet(mesh, "nodes", "vouch", "nobody", "--capability", BERLIN, "--key", key, "-o", made)
        assert (code, 'no node "nobody"' in err) == (1, True)


# Challenges


def asked(**changed: Any) -> challenge.Challenge:
    told = {"kind": "echo", "nonce": "ab" * 16, "node": "office", "epoch": 3, "issued_at": 1000, "deadline": 1030}
    return challenge.Challenge(**(told | changed))


GATEWAY, OFFICE, OTHER = SecretKey.generate(), SecretKey.generate(), SecretKey.generate()


def test_only_the_holder_of_the_nodes_key_answers_a_challenge() -> None:
    opened = challenge.open_challenge(
        challenge.seal(asked(), GATEWAY), gateway=GATEWAY.public, node="office", epoch=3, now=1001.0
    )
    good = challenge.answer(opened, b"shown", OFFICE)
    assert challenge.open_answer(asked(), good, OFFICE.public) == b"shown"
    others = (
        challenge.answer(opened, b"shown", OTHER),
        challenge.answer(asked(nonce="cd" * 16), b"shown", OFFICE),
        challenge.answer(asked(kind="ready"), b"shown", OFFICE),
        good.partition(b".")[0] + b"." + challenge.answer(opened, b"other", OFFICE).partition(b".")[2],
        good.partition(b".")[0],
        b"",
        b"?.?",
    )
    for given in others:
        with pytest.raises(Unverifiable):
            challenge.open_answer(asked(), given, OFFICE.public)


@pytest.mark.parametrize(
    ("changed", "key", "why"),
    [
        ({"node": "other"}, GATEWAY, "another node"),
        ({"epoch": 2}, GATEWAY, "another node or epoch"),
        ({"deadline": 1001}, GATEWAY, "outside of its time"),
        ({"issued_at": 2000, "deadline": 2030}, GATEWAY, "outside of its time"),
        ({"deadline": 5000}, GATEWAY, "lives too long"),
        ({"kind": "rows", "size": 64, "rows": (64,)}, GATEWAY, "beyond 64"),
        ({"kind": "rows", "size": 64, "rows": tuple(range(33))}, GATEWAY, "challenge"),
        ({"kind": "product", "size": 10**6}, GATEWAY, "challenge"),
        ({"nonce": "x 1\nrows 1"}, GATEWAY, "challenge"),
        ({}, OTHER, "does not verify"),
    ],
)
def test_a_challenge_that_is_not_for_this_node_now_is_not_answered(
    changed: dict[str, Any], key: SecretKey, why: str
) -> None:
    with pytest.raises(Unverifiable, match=why):
        challenge.open_challenge(
            challenge.seal(asked(**changed), key), gateway=GATEWAY.public, node="office", epoch=3, now=1001.0
        )
