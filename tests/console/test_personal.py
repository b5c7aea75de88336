"""What is personal on the console: opened for those who may read, gone when it was erased."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, expect

from tests.console.conftest import screen
from tests.mesh import Mesh
from tests.stories.test_asking import settled
from tests.stories.test_personal import GIVEN, NOTE, erase
from tests.stories.test_personal import mesh as mesh

pytestmark = pytest.mark.slow


async def test_an_entry_is_opened_while_its_key_is_there(mesh: Mesh, browser: Browser) -> None:
    hidden = "x\u202egnp.<b>bold</b>"
    await mesh.call("shop/send", {**GIVEN, "street": hidden}, run="r1")
    await settled(mesh)
    desk = await screen(mesh, browser)
    await desk.go("/console/ledger?kind=intent")
    place = await desk.page.locator("a.place").first.get_attribute("href")
    await desk.go(place or "")
    await expect(desk.page.get_by_text(NOTE)).to_be_visible()
    text = await desk.page.locator("main").inner_text()
    assert "\u202e" not in text
    assert "<b>bold</b>" in text
    assert await desk.violations("opened") == []
    await erase(mesh)
    await desk.go(place or "")
    await expect(desk.page.get_by_text("was destroyed").first).to_be_visible()
    assert NOTE not in await desk.page.content()
    assert await desk.violations("erased") == []
    assert desk.complaints == []
