"""GPUs of nodes: who has to show one, who does not get work that needs one, and who is too slow to be believed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.config import GpuConfig
from sidecar.node import multiplying
from tests.mesh import Mesh
from tests.stories.test_agents_cli import fine, licet
from tests.stories.test_evidence import known
from tests.stories.test_routing import Bank, nodes, policies, refused
from trust.ledger.entries import Node
from trust.product import Product

pytestmark = pytest.mark.slow

SMALL = GpuConfig(size=256, within_ms=20_000.0)
"""Any processor makes it in that time: the tests run without a GPU."""
HARD = GpuConfig(size=4096, within_ms=1.0)
"""Nothing does."""


async def test_what_was_shown_ends_with_its_time_with_the_epoch_and_at_once(tmp_path: Path) -> None:
    """An operator's word does not take its place, and a node that begins anew shows it anew."""
    bank = Bank(tmp_path / "bank")
    config = SMALL.model_copy(update={"verified_for_s": 3.0})
    async with Mesh(tmp_path, policies=policies(), gpu=config) as mesh:
        able = await mesh.add_node("able", bank.on("able"), capabilities={"gpu": True}, gpu="numpy")
        assert (await verified(mesh, "able"))["holds"]
        assert (await mesh.call("bank/train", {})).status == 200
        able._showing._backend = "off"
        await asyncio.sleep(3.1)
        assert "lacks:gpu" in refused(await mesh.call("bank/train", {}), "no_eligible_node")["detail"]
        able._showing._backend = "numpy"
        assert (await verified(mesh, "able"))["holds"]
        able._showing._backend = "off"
        await able._join()
        assert known((await nodes(mesh))["able"])["gpu"] == "claimed", "it showed that in another epoch"


async def test_a_node_that_hangs_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = Bank(tmp_path / "bank")
    async with Mesh(tmp_path, policies=policies(), gpu=SMALL) as mesh:
        hangs = await mesh.add_node("hangs", bank.on("hangs"), capabilities={"gpu": True}, gpu="numpy")
        asked = []

        async def hang(line: str) -> str:
            asked.append(line)
            await asyncio.sleep(600)
            return ""

        monkeypatch.setattr(hangs._showing, "_ask", hang)
        waiting = asyncio.create_task(mesh.admin("POST", "/v1/nodes/hangs/verify"))
        await mesh.add_node("able", bank.on("able"), capabilities={"gpu": True}, gpu="numpy")
        async with asyncio.timeout(30):
            assert (await verified(mesh, "able"))["holds"]
        waiting.cancel()


async def verified(mesh: Mesh, name: str) -> Any:
    [one] = (await mesh.admin("POST", f"/v1/nodes/{name}/verify")).json["proved"]
    return one


async def test_a_gpu_counts_once_its_node_made_the_product(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank")
    async with Mesh(tmp_path, policies=policies(), gpu=SMALL) as mesh:
        await mesh.add_node("claims", bank.on("claims"), claims={"gpu": True}, gpu="numpy")
        await mesh.add_node("silent", bank.on("silent"), capabilities={"gpu": True})
        assert known((await nodes(mesh))["silent"]) == {"gpu": "claimed"}, "an operator's word is not enough any more"
        no = await verified(mesh, "silent")
        assert (no["holds"], "makes no products" in no["how"]) == (False, True)
        assert refused(await mesh.call("bank/train", {}), "no_eligible_node")["detail"].count("lacks:gpu") == 1
        able = await mesh.add_node("able", bank.on("able"), capabilities={"gpu": True}, gpu="numpy")
        yes = await verified(mesh, "able")
        assert yes["holds"], yes
        assert "a product of size 256 in" in yes["how"]
        assert known((await nodes(mesh))["able"]) == {"gpu": "verified"}
        assert {(await mesh.call("bank/train", {})).json["node"] for _ in range(5)} == {"able"}
        able._showing._backend = "off"
        assert (await verified(mesh, "able"))["holds"] is False
        gone = refused(await mesh.call("bank/train", {}), "no_eligible_node")["detail"]
        assert "3 lacks:gpu" in gone, "who had one and does not show it any more has none"
        assert (await mesh.admin("POST", "/v1/nodes/claims/verify")).json["proved"] == [], "a claim asks for nothing"
        assert known((await nodes(mesh))["claims"]) == {"gpu": "claimed"}


async def test_a_product_that_comes_too_late_proves_nothing(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank")
    async with Mesh(tmp_path, policies=policies(), gpu=HARD) as mesh:
        await mesh.add_node("slow", bank.on("slow"), capabilities={"gpu": True}, gpu="numpy")
        no = await verified(mesh, "slow")
        assert (no["holds"], "within 1 ms" in no["how"]) == (False, True)
        assert (await nodes(mesh))["slow"]["suspended"] == ["gpu"]
        code, _, err = await licet(mesh, "nodes", "restore", "slow", "--capability", "gpu", "--reason", "I know better")
        assert (code, "it counts again when the node shows it" in err) == (1, True)
        assert "1 lacks:gpu" in refused(await mesh.call("bank/train", {}), "no_eligible_node")["detail"]


async def test_rows_are_shown_once_and_only_of_what_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that commits to nothing and makes the rows when it is asked for them does not get through."""
    bank = Bank(tmp_path / "bank")
    async with Mesh(tmp_path, policies=policies(), gpu=SMALL) as mesh:
        node = await mesh.add_node("liar", bank.on("liar"), capabilities={"gpu": True})
        await verified(mesh, "liar")
        node._showing._backend = "numpy"

        async def lie(line: str, made: list[Product] = []) -> str:  # noqa: B006 (it remembers)
            return multiplying.answer(
                line.replace(line.split()[1], "cd" * 16) if line.startswith("product") else line,
                multiplying.product.multiply,
                made,
            )

        monkeypatch.setattr(node._showing, "_ask", lie)
        prover = mesh.gateway._prover
        waits = []
        for _ in range(3):
            no = await verified(mesh, "liar")
            assert (no["holds"], "is not what the product has there" in no["how"]) == (False, True)
            waits.append(prover._not_before["liar"] - prover._clock.mono())
        assert waits[2] > 1.9 * waits[1] > 3.5 * waits[0] > 90, "it is asked less and less, or it gets through by luck"
        node._showing._backend = "off"
        assert "makes no products" in (await verified(mesh, "liar"))["how"]
        assert prover._not_before["liar"] - prover._clock.mono() > 90, "saying nothing in between is no way around that"
        running = prover._running["liar"]
        await node._join()
        assert prover._running["liar"] is running, "beginning anew is no way around that"


async def test_a_gpu_that_is_five_times_slower_than_its_class_is_none_until_it_shows_itself(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank")
    async with Mesh(tmp_path, policies=policies()) as mesh:  # nobody asks for products here
        for name in ("one", "two", "three"):
            await mesh.add_node(name, bank.on(name), capabilities={"gpu": True})
        for name in ("one", "two"):
            for _ in range(10):
                assert (await mesh.call("bank/train", {}, place={"pin": name})).status == 200
        await mesh.call("bank/train", {"slow": 600}, place={"pin": "three"})
        async with asyncio.timeout(30):
            while not (await nodes(mesh))["three"]["suspended"]:
                await asyncio.sleep(0.2)
        told = [e for e in mesh.entries("gateway") if isinstance(e, Node) and e.event == "suspended"]
        assert [(e.node, "times as long there" in e.reason) for e in told] == [("three", True)]
        assert {(await mesh.call("bank/train", {})).json["node"] for _ in range(10)} <= {"one", "two"}
        assert (
            "lacks:gpu"
            in refused(await mesh.call("bank/train", {}, place={"pin": "three"}), "no_eligible_node")["detail"]
        )
        assert (await mesh.call("bank/look", {}, place={"pin": "three"})).status == 200, "other work goes on there"
        said = await fine(mesh, "nodes", "restore", "three", "--capability", "gpu", "--reason", "its fan was replaced")
        assert said == "gpu of three counts again\n"
        assert (await nodes(mesh))["three"]["suspended"] == []
        code, _, err = await licet(mesh, "nodes", "restore", "three", "--capability", "gpu", "--reason", "again")
        assert (code, "is not suspended; suspended: nothing" in err) == (1, True)
