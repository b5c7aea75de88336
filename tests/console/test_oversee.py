"""Overview, Agents, Policies and Oversight in a real Chromium: what they say is what happened, and a stop stops."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import Browser, expect

from tests.console.conftest import PHONE, screen
from tests.mesh import Mesh
from tests.stories.test_approvals import PAY, held
from tests.stories.test_approvals import mesh as mesh
from tests.stories.test_asking import settled

pytestmark = pytest.mark.slow
PAGES = ("overview", "agents", "agents/demo", "policies", "oversight")
READ = "workbench/read_file"


@pytest.fixture
async def busy(mesh: Mesh) -> Mesh:
    """Approved, denied, and waiting requests, and what was refused."""
    for number in range(4):
        approval = await held(mesh, args={**PAY, "cents": number}, run="r1")
        await mesh.vote(approval, "approve" if number else "deny", "fay")
        if number:
            assert (await mesh.claim(approval)).status == 200
    await held(mesh, run="r2")
    for _ in range(3):
        assert (await mesh.call("bank/pay", {**PAY, "cents": 2_000_000})).status == 403
    await mesh.gateway.standings.drain()
    await settled(mesh)
    return mesh


async def test_every_page_is_accessible_by_day_and_by_night_and_fits_a_phone(busy: Mesh, browser: Browser) -> None:
    desk, phone = await screen(busy, browser), await screen(busy, browser, viewport=PHONE)
    for path in PAGES:
        for one in (desk, phone):
            assert await one.go(f"/console/{path}") == 200
            name = f"{path.replace('/', '-')}-{'desk' if one is desk else 'phone'}"
            assert await one.violations(name) == [], path
            if tables := await one.page.get_by_text("As a table").all():
                for table in tables:
                    await table.click()
                assert await one.violations() == [], path
            wide = await one.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{path} is {wide} pixels too wide"
    assert desk.complaints + phone.complaints == []


async def test_the_overview_says_what_happened_and_what_is_degraded(busy: Mesh, browser: Browser) -> None:
    desk = await screen(busy, browser)
    await desk.go("/console/overview?span=1h")
    main = desk.page.locator("main")
    await expect(main).to_contain_text("every node is heard of")
    await expect(main.locator(".plot canvas")).to_have_count(1)
    assert await main.locator(".plot").get_attribute("aria-label") == (
        "Decisions over time. allowed: 3; held: 5; refused: 3"
    )
    await expect(main.get_by_role("row").filter(has_text="policy_forbids")).to_contain_text("3")
    await busy.admin("POST", "/v1/kills", {"target": "all", "reason": "drill <b>x</b>"})
    await busy.stop("node")
    await desk.go("/console/overview")
    await expect(main).to_contain_text("Every agent is stopped by operator: drill <b>x</b>")
    await desk.go("/console/overview?span=9d")
    await expect(main).to_contain_text("expected one of 1h, 1d, 7d")


async def test_an_agent_is_stopped_and_goes_on(busy: Mesh, browser: Browser) -> None:
    desk = await screen(busy, browser)
    await desk.go("/console/agents")
    row = desk.page.get_by_role("row").filter(has_text="demo")
    await expect(row).to_contain_text("active")
    await row.get_by_role("link", name="demo").click()
    await expect(desk.page.locator("main")).to_contain_text("refusal by too-much, minor")
    await desk.page.get_by_label("Why").fill("it pays too much")
    await desk.page.get_by_role("button", name="Stop demo now").click()
    await expect(desk.page.locator("h1")).to_contain_text("killed")
    assert busy.gateway.stops.killed(busy.gateway._console._services.registry.agent("demo").agent) is not None
    await desk.page.get_by_label("Why").fill("talked to ada")
    await desk.page.get_by_role("button", name="Let it go on").click()
    await expect(desk.page.locator("h1")).to_contain_text("active")
    auditor = await busy.admin("POST", "/v1/people", {"name": "audrey", "roles": ["auditor"]})
    busy.tokens["audrey"] = auditor.json["token"]
    other = await screen(busy, browser, "audrey")
    await other.go("/console/agents/demo")
    assert await other.page.get_by_role("button", name="Stop demo now").count() == 0
    assert await other.go("/console/agents/nobody") == 404


async def test_policies_say_who_activated_what_and_what_would_change(busy: Mesh, browser: Browser) -> None:
    desk = await screen(busy, browser)
    await desk.go("/console/policies")
    main = desk.page.locator("main")
    await expect(main).to_contain_text("activated by operator")
    refunds = main.get_by_role("row").filter(has_text="refunds")
    await expect(refunds).to_contain_text("bank.cedar:")
    await expect(refunds).to_contain_text("asks people: of=finance ttl=1h")
    async with asyncio.timeout(60):  # found out in a process of its own
        while "being found out" in await refunds.inner_text():
            await asyncio.sleep(0.2)
            await desk.go("/console/policies")
    await expect(refunds).to_contain_text("no case would miss it")
    await expect(main).to_contain_text("bank.cedar")
    await expect(main.locator(".diff").filter(has_text="pays").first).to_contain_text('-@id("pays")')


async def test_who_may_not_read_the_ledger_sees_none_of_it(busy: Mesh, browser: Browser) -> None:
    desk = await screen(busy, browser, "fay")
    for path in PAGES:
        assert await desk.go(f"/console/{path}") == 403
    await desk.go("/console/queue")
    assert await desk.page.get_by_role("navigation").get_by_role("link").all_inner_texts() == ["Queue", "History"]


async def test_oversight_sees_who_stamps(busy: Mesh, browser: Browser) -> None:
    desk = await screen(busy, browser, "fay")
    for number in range(5):
        approval = await held(busy, args={**PAY, "cents": 100 + number}, run="r3")
        # Only the page: a machine that draws it slowly must not make a glance look like reading.
        opened = await desk.page.evaluate("path => fetch(path).then(r => r.status)", f"/console/queue/{approval}")
        assert opened == 200
        await busy.vote(approval, who="fay")
    boss = await screen(busy, browser)
    await boss.go("/console/oversight?span=1d")
    row = boss.page.get_by_role("row").filter(has_text="fay")
    await expect(row).to_contain_text("stamping")
    await expect(boss.page.get_by_role("row").filter(has_text="refunds")).to_contain_text("10")
    assert boss.complaints == []
