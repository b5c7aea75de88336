"""The console's pages in a real Chromium: what they say, how they look to axe, and what they let a browser do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from tests.console.conftest import PHONE, Screen, screen
from tests.mesh import Mesh
from tests.stories.test_asking import settled

pytestmark = pytest.mark.slow
READ, NOTES = "workbench/read_file", {"path": "notes.txt"}
HOSTILE = 'x\u202egnp.<img src=x onerror=alert(1)><script>alert(2)</script>\u200b\u115f" hx-get=/console/sign-out'


@pytest.fixture
async def told(mesh: Mesh) -> Mesh:
    """A mesh in which an action was allowed, one refused, and one held, approved and done."""
    await mesh.call(READ, NOTES, run="r1")
    await mesh.call(READ, {"path": "server.pem"}, run="r1")
    held = await mesh.call("workbench/delete_file", NOTES, run="r1")
    await mesh.vote(held.json["approval"], reason="fine")
    assert (await mesh.claim(held.json["approval"])).status == 200
    await mesh.call("workbench/write_file", {"path": "é.txt", "content": HOSTILE}, run="r2")
    await settled(mesh)
    return mesh


async def test_every_page_is_accessible_by_day_and_by_night_and_fits_a_phone(told: Mesh, browser: Browser) -> None:
    desk, phone = await screen(told, browser), await screen(told, browser, viewport=PHONE)
    await desk.go("/console/ledger?decision=deny&agent=demo")
    entry = await desk.page.locator("a.place").first.get_attribute("href")
    for path in (
        "/console/ledger",
        "/console/ledger?decision=deny&agent=demo&since=7d",
        "/console/ledger?agent=nobody",
        entry or "",
        "/console/runs",
        "/console/runs/r1",
        "/console/gaps",
        "/console/sign-in",
        "/console/ledger?limit=9999",
    ):
        for one in (desk, phone):
            await one.go(path)
            assert await one.violations() == [], path
            wide = await one.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{path} is {wide} pixels too wide"
    # A refusal is a page with status 400, which the browser notes; nothing else is said.
    assert {text for text in desk.complaints + phone.complaints if "400" not in text} == set()


async def test_the_ledger_page_finds_narrows_pages_and_keeps_questions(told: Mesh, browser: Browser) -> None:
    one = await screen(told, browser)
    page = one.page
    await one.go("/console/ledger")
    await page.get_by_label("decision", exact=True).fill("deny")
    await page.get_by_role("button", name="Find").click()
    rows = page.locator("table.rows tbody tr")
    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text("refused by no-key-files, policy_forbids at step 5")
    await page.get_by_label("Keep this question as").fill("denied")
    await page.get_by_role("button", name="Save").click()
    await one.go("/console/ledger")
    await page.locator("aside").get_by_role("link", name="denied", exact=True).click()
    await expect(rows).to_have_count(1)
    await page.locator(".pill").click()  # no longer only what was denied
    await expect(rows).to_have_count(50)
    await page.get_by_role("button", name="Remove the saved query denied").click()
    await expect(page.locator("aside")).to_contain_text("None yet.")
    seen: list[str] = []
    await one.go("/console/ledger?limit=20&until=2100-01-01&kind=outcome")
    first = await page.locator("a.place").all_inner_texts()
    await one.go("/console/ledger?limit=4&until=2100-01-01&kind=outcome")
    while True:
        seen += await page.locator("a.place").all_inner_texts()
        older = page.get_by_role("link", name="Older entries")
        if not await older.count():
            break
        await older.click()
    assert seen == first
    assert len(seen) == 9


async def test_an_entry_shows_its_proof_and_the_clause_that_decided(told: Mesh, browser: Browser) -> None:
    one = await screen(told, browser)
    await one.go("/console/ledger?decision=deny&agent=demo")
    await one.page.locator("a.place").click()
    text = await one.page.inner_text("main")
    assert "Checked now, from the exact bytes: this is entry" in text
    assert "The witness licet.local/gateway/main cosigned it at" in text
    assert 'context.args.path like "*.pem*"   is true'.replace("   ", " ") in " ".join(text.split())
    async with one.page.expect_download() as coming:
        await one.page.get_by_role("link", name="The proof").click()
    proof = await (await coming.value).path()
    assert proof.read_text().startswith("c2sp.org/tlog-proof@v1\n")


async def test_a_run_is_told_across_every_hop(told: Mesh, browser: Browser) -> None:
    one = await screen(told, browser)
    await one.go("/console/runs")
    await one.page.get_by_role("link", name="r1", exact=True).click()
    acts = one.page.locator("section.act")
    await expect(acts).to_have_count(3)
    held = acts.nth(2)
    assert await held.locator(".where b").all_inner_texts() == [
        "sidecar", "gateway", "gateway", "gateway", "sidecar", "gateway", "gateway", "node", "node", "gateway",
        "sidecar",
    ]  # fmt: skip
    await expect(held).to_contain_text("vote by approver-1 (approve): fine")
    await expect(acts.nth(1)).to_contain_text("Which clause decided: no-key-files")


async def test_what_agents_say_is_shown_and_never_done(told: Mesh, browser: Browser) -> None:
    one = await screen(told, browser)
    await one.go("/console/runs/r2")
    await one.page.locator("a.place").first.click()
    text = await one.page.inner_text("main")
    assert "\\u{202e}gnp.<img src=x onerror=alert(1)><script>alert(2)</script>\\u{200b}\\u{115f}" in text
    assert "é.txt" in text
    assert not set("\u202e\u200b\u115f") & set(text)
    assert await one.page.locator("main img, main script").count() == 0
    assert one.complaints == []


async def test_the_browser_runs_nothing_that_was_not_sent_with_the_page(told: Mesh, browser: Browser) -> None:
    """Content security policy and Trusted Types: as an injection would try it."""
    one = await screen(told, browser)
    await one.go("/console/ledger")

    async def attempt(script: str) -> str:
        """In the page's own world, which the policy binds."""
        return str(
            await one.page.evaluate(f"(() => {{ try {{ {script}; return 'done' }} catch (e) {{ return e.name }} }})()")
        )

    assert await attempt("document.body.insertAdjacentHTML('beforeend', '<b>x</b>')") == "TypeError"
    assert await attempt("document.querySelector('main').innerHTML = '<b>x</b>'") == "TypeError"
    assert await attempt("trustedTypes.createPolicy('mine', {createHTML: s => s})") == "TypeError"
    assert await attempt("trustedTypes.createPolicy('htmx', {createHTML: s => s})") == "TypeError"
    assert await attempt("const s = document.createElement('script'); s.textContent = 'window.ran = 1'") == "TypeError"
    await attempt("const a = document.createElement('a'); a.setAttribute('onclick', 'window.ran = 1'); a.click()")
    await attempt("fetch('http://127.0.0.1:1/').catch(() => window.left = 1)")
    await attempt("const i = document.createElement('img'); i.src = 'http://127.0.0.1:1/x'; document.body.append(i)")
    assert await one.page.evaluate("window.ran === undefined")
    assert [text for text in one.complaints if "Content Security Policy" in text]


async def test_the_page_tells_of_news_by_itself(told: Mesh, browser: Browser) -> None:
    one = await screen(told, browser)
    await one.go("/console/ledger?agent=demo&kind=intent")
    await expect(one.page.locator("#news")).to_be_empty()
    await told.call(READ, NOTES, run="r9")
    await expect(one.page.locator("#news")).to_have_text("1 newer entry: show", timeout=30_000)
    await one.page.get_by_role("link", name="1 newer entry").click()
    await expect(one.page.locator("tbody tr").first).to_contain_text("run r9")
    assert one.complaints == []


async def test_it_works_without_javascript(told: Mesh, browser: Browser) -> None:
    one = await screen(told, browser, javascript=False)
    page = one.page
    await one.go("/console/ledger")
    await page.get_by_label("decision", exact=True).fill("deny")
    await page.get_by_role("button", name="Find").click()
    await expect(page.locator("tbody tr")).to_have_count(1)
    await page.get_by_label("Keep this question as").fill("mine")
    await page.get_by_role("button", name="Save").click()
    await page.locator("a.place").first.click()
    await expect(page.locator(".proof")).to_contain_text("Checked now")
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert await one.go("/console/ledger") == 200
    assert "/console/sign-in" in page.url


async def test_a_gap_is_shown_where_a_log_fell_silent_and_an_outcome_is_unknown(
    told: Mesh, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await screen(told, browser)
    async with asyncio.timeout(30):  # what looking at it adds to the gateway's log is searchable a second later
        while "Every log is witnessed" not in await one.page.inner_text("main"):
            await one.go("/console/gaps")
    monkeypatch.setattr("gateway.gaps.SILENT_US", 1_000_000)
    for task in told.sidecar._tasks:  # as if it were gone: stopped in good order it would not be missed
        task.cancel()
    await asyncio.sleep(1.5)  # silence is the absence of something: there is nothing to wait for
    await one.go("/console/gaps")
    await expect(one.page.locator("section.gap", has_text="unwitnessed").first).to_contain_text(
        "licet.local/sidecar/demo nothing since"
    )


async def visits(mesh: Mesh) -> list[Any]:
    return [entry for entry in mesh.entries("gateway") if type(entry).__name__ == "SignIn"]


async def test_a_visit_outlives_a_restart_and_ends_when_somebody_signs_out(told: Mesh, browser: Browser) -> None:
    one = await screen(told, browser)
    await told.stop("gateway")
    await told.start_gateway()
    assert await one.go("/console/gaps") == 200
    assert "/console/gaps" in one.page.url
    cookies = await one.context.cookies()
    await one.page.get_by_role("button", name="Sign out").click()
    await one.page.wait_for_url("**/sign-in")
    await one.context.add_cookies(cookies)  # who kept the cookie has nothing any more
    await one.go("/console/gaps")
    assert "/console/sign-in" in one.page.url
    assert [(entry.event, entry.person) for entry in await visits(told)] == [
        ("signed_in", "operator"),
        ("signed_out", "operator"),
    ]


async def test_over_tls_the_cookie_is_for_this_host_only(tmp_path: Path, browser: Browser) -> None:
    async with Mesh(tmp_path, tls=True) as mesh:
        one: Screen = await screen(mesh, browser)
        assert await one.go("/console/ledger") == 200
        (cookie,) = await one.context.cookies()
        assert cookie.get("name") == "__Host-licet"
        assert (cookie.get("httpOnly"), cookie.get("secure"), cookie.get("sameSite")) == (True, True, "Strict")
