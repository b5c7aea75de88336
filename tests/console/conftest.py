"""A real Chromium (Debian's), and pages of a running mesh in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright, expect

from tests.mesh import REPOSITORY, Mesh

AXE = REPOSITORY / "gateway/console/npm/node_modules/axe-core/axe.min.js"
DESK = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
SHOTS = os.environ.get("LICET_SHOTS")
"""A directory for pictures of the pages, for whoever wants to look at them."""
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
expect.set_options(timeout=30_000)  # what never comes fails a test, and not what a busy machine draws slowly


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one for all tests of this process: starting it takes longer than most of them."""
    found, home = shutil.which("chromium"), tmp_path_factory.mktemp("chromium")
    assert found, "chromium is a Debian package that `make debian` installs"
    command = [found, "--headless", "--remote-debugging-port=0", f"--user-data-dir={home}", *FLAGS, "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        told = home / "DevToolsActivePort"
        while not told.exists() or len(told.read_text().split()) < 2:
            assert process.poll() is None, "chromium ended at once"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{told.read_text().split()[0]}"
        process.kill()


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """Each test has contexts of its own in it, which end with the test."""
    async with async_playwright() as play:
        browser = await play.chromium.connect_over_cdp(chromium)
        yield browser
        await browser.close()


@dataclass
class Screen:
    """One person's browser: pages, and everything that the browser complained about."""

    mesh: Mesh
    context: BrowserContext
    page: Page
    complaints: list[str] = field(default_factory=list)

    async def go(self, path: str) -> int:
        answer = await self.page.goto(self.mesh.gateway.console + path)
        assert answer is not None
        return answer.status

    async def violations(self, shot: str = "") -> list[Any]:
        """What axe says of the page as it is, by WCAG 2.2 AA; of the colours also in the dark, but for a phone's, which
        are the same. *shot*: the name of a picture."""
        found, size = [], self.page.viewport_size
        for scheme in ("light",) if size == PHONE else ("light", "dark"):
            await self.page.emulate_media(color_scheme=scheme)
            if shot and SHOTS:
                await self.page.screenshot(path=Path(SHOTS) / f"{shot}-{scheme}.png", full_page=True)
            if not await self.page.evaluate("'axe' in window"):
                await self.page.evaluate(AXE.read_text())  # through the debugger, which the page's policy does not bind
            asked = {"runOnly": RULES if scheme == "light" else ["color-contrast"], "resultTypes": ["violations"]}
            told = await self.page.evaluate(f"axe.run(document, {json.dumps(asked)})")
            found += [(scheme, one["id"], [node["html"] for node in one["nodes"]][:3]) for one in told["violations"]]
        return found


async def screen(
    mesh: Mesh, browser: Browser, who: str = "operator", *, viewport: Any = None, javascript: bool = True
) -> Screen:
    """A browser in which *who* has signed in by a one-time link, as a person does."""
    context = await browser.new_context(
        viewport=viewport or DESK,
        reduced_motion="reduce",
        java_script_enabled=javascript,
        ignore_https_errors=mesh.gateway.console.startswith("https"),
    )
    page = await context.new_page()
    made = Screen(mesh, context, page)

    def hear(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            made.complaints.append(message.text)

    page.on("console", hear)
    page.on("pageerror", lambda error: made.complaints.append(str(error)))
    if who:
        told = await mesh.admin("POST", "/v1/console/links", who=who)
        assert told.status == 201, told.body
        await page.goto(told.json["url"])
        await page.get_by_role("button", name="Sign in").click()
        await page.wait_for_url("**/console**")
    return made
