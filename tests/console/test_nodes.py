"""The Nodes pages in a real Chromium: states and capabilities as they are, a drain that drains, why a call ran there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.console.conftest import PHONE, screen
from tests.mesh import Mesh
from tests.stories.test_asking import settled
from tests.stories.test_routing import Bank, nodes, policies

pytestmark = pytest.mark.slow


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Mesh]:
    bank = Bank(tmp_path / "bank")
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(Mesh(tmp_path, policies=policies()))
        await mesh.add_node("office", bank.on("office"), capabilities={"data_locality": "berlin"})
        await mesh.add_node("cloud", bank.on("cloud"), kind="cloud", capabilities={"gpu": True})
        await mesh.add_node("laptop", bank.on("laptop"), kind="cloud_pc", claims={"gpu": True})
        yield mesh


async def test_the_pages_are_accessible_and_fit_a_phone(fleet: Mesh, browser: Browser) -> None:
    await fleet.call("bank/look", {"text": "x"}, run="r1")
    await settled(fleet)
    desk, phone = await screen(fleet, browser), await screen(fleet, browser, viewport=PHONE)
    for path in ("nodes", "nodes/office", "runs/r1"):
        for one in (desk, phone):
            assert await one.go(f"/console/{path}") == 200
            for summary in await one.page.get_by_text("Why ", exact=False).all():
                if await summary.evaluate("e => e.tagName") == "SUMMARY":
                    await summary.click()
            name = f"{path.replace('/', '-')}-{'desk' if one is desk else 'phone'}"
            assert await one.violations(name) == [], path
            wide = await one.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{path} is {wide} pixels too wide"
    assert desk.complaints + phone.complaints == []


async def test_a_node_is_drained_and_quarantined_and_works_again(fleet: Mesh, browser: Browser) -> None:
    desk = await screen(fleet, browser)
    await desk.go("/console/nodes")
    laptop = desk.page.get_by_role("row").filter(has_text="laptop")
    await expect(laptop).to_contain_text("gpu, claimed")
    await expect(desk.page.get_by_role("row").filter(has_text="cloud").first).to_contain_text("gpu, signed")
    await laptop.get_by_role("link", name="laptop").click()
    main = desk.page.locator("main")
    await expect(main).to_contain_text("its own word, which counts for nothing")
    await main.get_by_label("Why").fill("patching <b>x</b>")
    await main.get_by_role("button", name="Drain laptop").click()
    await expect(main).to_contain_text("draining")
    await expect(main).to_contain_text("patching <b>x</b>")
    assert (await nodes(fleet))["laptop"]["state"] == "draining"
    await main.get_by_role("button", name="Let laptop work again").click()
    await expect(main).to_contain_text("Stop giving it work")
    await main.get_by_role("button", name="Quarantine it now").click()
    await expect(main).to_contain_text("quarantined")
    await desk.go("/console/overview")
    await expect(desk.page.locator("main")).to_contain_text("Node laptop is quarantined and gets no calls")


async def test_a_run_says_why_each_call_ran_where_it_ran(fleet: Mesh, browser: Browser) -> None:
    answer = await fleet.call("bank/train", {}, run="r1")
    assert answer.json["node"] == "cloud"
    await settled(fleet)
    desk = await screen(fleet, browser)
    await desk.go("/console/runs/r1")
    main = desk.page.locator("main")
    await main.get_by_text("Why cloud").click()
    told = main.locator(".placed")
    await expect(told).to_contain_text("computed again")
    await expect(told).to_contain_text("2 lacks:gpu")
    await desk.go(f"/console/ledger?kind=dispatch&decision_id={answer.json['decision_id']}")
    await main.locator("a.place").filter(has_text="gateway/main").first.click()
    await expect(main).to_contain_text("Why this node")


async def test_who_may_only_read_has_no_buttons(fleet: Mesh, browser: Browser) -> None:
    told = await fleet.admin("POST", "/v1/people", {"name": "ann", "roles": ["auditor"]})
    fleet.tokens["ann"] = told.json["token"]
    desk = await screen(fleet, browser, "ann")
    await desk.go("/console/nodes/office")
    await expect(desk.page.locator("main")).to_contain_text("data_locality=berlin")
    assert await desk.page.get_by_role("button", name="Drain office").count() == 0
