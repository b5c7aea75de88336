"""The queue in a real Chromium: by mouse, by keys, on a phone, without JavaScript, two people at once, through a restart."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, expect

from tests.console.conftest import PHONE, screen
from tests.mesh import Mesh
from tests.stories.test_approvals import PAY, done, edit, held, state
from tests.stories.test_approvals import mesh as mesh
from tests.stories.test_asking import settled
from trust.ledger.entries import Outcome

pytestmark = pytest.mark.slow
HOSTILE = 'x\u202egnp.<img src=x onerror=alert(1)><script>alert(2)</script>\u200b" hx-get=/console/sign-out'


async def test_every_page_is_accessible_by_day_and_by_night_and_fits_a_phone(mesh: Mesh, browser: Browser) -> None:
    await held(mesh, "pay", {"to": HOSTILE, "cents": 3}, run="r1")
    await edit(mesh, await held(mesh, run="r1"), "flo", {**PAY, "cents": 9})
    over = await held(mesh, args={**PAY, "cents": 1}, run="r1")
    await mesh.vote(over, who="fay", scope={"kind": "tool", "minutes": 9}, reason="fine")
    await mesh.vote(await held(mesh, args={**PAY, "cents": 2}, run="r2"), "deny", "fay", "no")
    desk, phone = await screen(mesh, browser, "fay"), await screen(mesh, browser, "fay", viewport=PHONE)
    for number, path in enumerate(
        ("/console/queue", f"/console/queue/{over}", "/console/history", "/console/history?state=denied")
    ):
        for one in (desk, phone):
            assert await one.go(path) == 200
            assert await one.violations(f"{'desk' if one is desk else 'phone'}-{number}") == [], path
            wide = await one.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{path} is {wide} pixels too wide"
    assert desk.complaints + phone.complaints == []
    await desk.go("/console/queue")
    text = await desk.page.locator("main").inner_text()
    assert "\u202e" not in text
    assert "<script>alert(2)</script>" in text


async def test_by_mouse(mesh: Mesh, browser: Browser) -> None:
    approval = await held(mesh)
    desk = await screen(mesh, browser, "fay")
    await desk.go("/console/queue")
    card = desk.page.locator(f"#{approval}")
    await expect(card).to_contain_text("demo wants to call refund on bank")
    await expect(card).to_contain_text("ada's landlord")
    await card.get_by_label("Reason").first.fill("rent is due")
    await card.get_by_role("button", name="Approve").click()
    await expect(desk.page.get_by_role("status").first).to_contain_text("approved")
    vote = mesh.gateway.desk.get(approval).votes[0]
    assert (vote.by, vote.reason, vote.scope.kind) == ("fay", "rent is due", "once")
    assert (await mesh.claim(approval)).status == 200
    assert done(mesh) == [["refund", PAY]]


async def test_by_keys(mesh: Mesh, browser: Browser) -> None:
    first, second = await held(mesh), await held(mesh, args={**PAY, "cents": 1})
    desk = await screen(mesh, browser, "fay")
    await desk.go("/console/queue")
    for key in ("j", "j", "k", "j", "d", "Enter"):
        await desk.page.keyboard.press(key)
    await expect(desk.page.get_by_role("status").first).to_contain_text("denied")
    assert (state(mesh, first), state(mesh, second)) == ("pending", "denied")
    await desk.page.keyboard.press("a")
    assert state(mesh, first) == "pending", "the key alone decides nothing"
    await desk.page.keyboard.press("?")
    await desk.page.get_by_label("no single keys, please").check()
    await desk.page.locator("body").click()
    await desk.page.keyboard.press("e")
    await expect(desk.page.locator("details.edit").first).not_to_have_attribute("open", "")
    await desk.page.get_by_label("no single keys, please").uncheck()
    await desk.page.locator(f"#{first}").focus()
    await desk.page.keyboard.press("a")
    await desk.page.keyboard.press("Enter")
    await expect(desk.page.get_by_role("status").first).to_contain_text("approved")
    assert state(mesh, first) == "approved"


async def test_without_javascript(mesh: Mesh, browser: Browser) -> None:
    approval = await held(mesh)
    plain = await screen(mesh, browser, "fay", javascript=False)
    await plain.go("/console/queue")
    card = plain.page.locator(f"#{approval}")
    await card.locator("details.options summary").click()
    await card.get_by_label("these arguments, so many times").check()
    await card.get_by_label("times", exact=True).fill("3")
    await card.get_by_role("button", name="Approve").click()
    scope = mesh.gateway.desk.get(approval).votes[0].scope
    assert (scope.kind, scope.uses, scope.minutes) == ("uses", 3, 60)
    await plain.go(f"/console/queue/{approval}")
    await plain.page.get_by_role("button", name="Take it back").click()
    assert state(mesh, approval) == "cancelled"


async def test_on_a_phone_arguments_are_changed(mesh: Mesh, browser: Browser) -> None:
    approval = await held(mesh)
    phone = await screen(mesh, browser, "fay", viewport=PHONE)
    await phone.go("/console/queue")
    card = phone.page.locator(f"#{approval}")
    await card.get_by_text("Change the arguments").click()
    await held(mesh, args={**PAY, "cents": 1})  # so the page is drawn again behind it
    await expect(phone.page.locator("article.request")).to_have_count(2, timeout=30_000)
    await expect(card.locator("details.edit")).to_have_attribute("open", "")
    await card.locator("textarea").fill('{"to": "ada\'s landlord", "cents": 5}')
    await card.get_by_role("button", name="Ask with these instead").click()
    await expect(phone.page.locator("del")).to_have_text("70000")
    await expect(phone.page.locator("ins")).to_have_text("5")
    await expect(phone.page.locator("article")).to_contain_text("fay edited it and cannot decide on it")
    assert mesh.gateway.desk.get(approval).editors == ("fay",)


async def test_two_at_once_and_live(mesh: Mesh, browser: Browser) -> None:
    """What one decides the other sees without doing anything; who was late is told so, and has changed nothing."""
    fay, finn = await screen(mesh, browser, "fay"), await screen(mesh, browser, "finn")
    await fay.go("/console/queue")
    await finn.go("/console/queue")
    await expect(fay.page.locator(".empty")).to_be_visible()
    approval = await held(mesh, "pay")
    await expect(fay.page.locator(f"#{approval}")).to_be_visible(timeout=30_000)
    await expect(finn.page.locator(f"#{approval}")).to_be_visible(timeout=30_000)
    await finn.page.locator(f"#{approval}").get_by_label("Reason").first.fill("half typed")
    await fay.page.locator(f"#{approval}").get_by_role("button", name="Approve").click()
    await expect(finn.page.locator(f"#{approval}")).to_contain_text("fay", timeout=30_000)
    await expect(finn.page.locator(f"#{approval}").get_by_label("Reason").first).to_have_value("half typed")
    await finn.page.locator(f"#{approval}").get_by_role("button", name="Approve").click()
    await expect(finn.page.get_by_role("status").first).to_contain_text("approved")
    another = await held(mesh)
    await expect(fay.page.locator(f"#{another}")).to_be_visible(timeout=30_000)
    await finn.go(f"/console/queue/{another}")
    await expect(fay.page.locator(f"#{another}")).to_contain_text("finn looks at it now", timeout=30_000)
    await mesh.vote(another, "deny", "fay")
    await finn.page.get_by_role("button", name="Approve").click()
    await expect(finn.page.locator("main")).to_contain_text("this request is denied")
    assert state(mesh, another) == "denied"


async def test_history_says_what_ran_and_how_it_ended(mesh: Mesh, browser: Browser) -> None:
    used, lost = await held(mesh), await held(mesh, args={**PAY, "cents": 5})
    await edit(mesh, used, "flo", {**PAY, "cents": 7})
    for one in (used, lost):
        await mesh.vote(one, who="fay")
    assert (await mesh.claim(used)).status == 200
    await settled(mesh)
    desk = await screen(mesh, browser, "finn")
    await desk.go("/console/history")
    row = desk.page.get_by_role("row").filter(has_text=used)
    await expect(row).to_contain_text("to: ada's landlord, cents: 70000 7 (edited by flo)")
    await expect(row).to_contain_text("used")
    await expect(row).to_contain_text("done")
    await desk.go(f"/console/queue/{used}")
    await expect(desk.page.locator(".steps")).to_contain_text("which ended: done")
    # The sidecar dies after the approval was used, and says at its next start that it does not know how that ended.
    dispatch = mesh.gateway.desk.stored(mesh.gateway.desk.get(lost))[0]
    asked = mesh.gateway.desk.get(lost)
    await mesh.gateway.desk.consume(lost, dispatch, asked.request["payload_sha256"], lambda: None)
    claim = mesh.gateway.desk.get(lost).claim
    await mesh.sidecar.ledger.append(Outcome(claim, dispatch.decision_id, dispatch.run, "unknown"))
    await settled(mesh)
    await desk.go(f"/console/queue/{lost}")
    await expect(desk.page.locator(".steps")).to_contain_text("which ended: unknown")


async def test_a_restart_while_it_waits(mesh: Mesh, browser: Browser) -> None:
    approval = await held(mesh)
    desk = await screen(mesh, browser, "fay")
    await desk.go("/console/queue")
    await mesh.stop("gateway")
    await mesh.start_gateway()
    await desk.page.locator(f"#{approval}").get_by_role("button", name="Approve").click()
    await expect(desk.page.get_by_role("status").first).to_contain_text("approved")
    late = await held(mesh, args={**PAY, "cents": 1})
    await expect(desk.page.locator(f"#{late}")).to_be_visible(timeout=30_000)


async def test_who_may_not_sees_why_and_cannot(mesh: Mesh, browser: Browser) -> None:
    approval = await held(mesh)
    owner = await screen(mesh, browser, "ada")
    await owner.go("/console/queue")
    await expect(owner.page.locator(f"#{approval}")).to_contain_text("ada owns demo and cannot decide on it")
    assert await owner.page.get_by_role("button", name="Approve").count() == 0
    body = {"decision": "approve", "presented": mesh.gateway.desk.get(approval).presented}
    answer = await owner.page.evaluate(
        """async ([path, body]) => {
            const csrf = document.querySelector("input[name=csrf]").value;
            const sent = await fetch(path, {method: "POST", body: new URLSearchParams({...body, csrf})});
            return sent.status;
        }""",
        [f"/console/queue/{approval}/vote", body],
    )
    assert answer == 403
    assert state(mesh, approval) == "pending"
