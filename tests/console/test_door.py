"""The console's door: links that work once, forms that only our pages can send, pages that roles open."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.console import assets
from gateway.console.entrance import own_path
from gateway.console.text import readable
from tests.mesh import REPOSITORY, Answer, Mesh
from trust.ledger.entries import Query, Refusal

HTML = {"Accept": "text/html"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def host(mesh: Mesh) -> str:
    """The name under which browsers find the console; where it leads, only they know by themselves."""
    return str(mesh.gateway.console).partition("://")[2]


async def link(mesh: Mesh, who: str = "operator") -> str:
    """Path and query of a sign-in link."""
    told = await mesh.admin("POST", "/v1/console/links", who=who)
    return str(told.json["url"]).removeprefix(mesh.gateway.console)


async def get(mesh: Mesh, path: str, cookie: str = "", **headers: str) -> Answer:
    sent = {**HTML, "Host": host(mesh), **({"Cookie": cookie} if cookie else {}), **headers}
    async with mesh.http.get(mesh.gateway_url + path, headers=sent, allow_redirects=False) as r:
        return Answer(r.status, dict(r.headers), await r.read())


async def post(mesh: Mesh, path: str, body: str, cookie: str = "", **headers: str) -> Answer:
    own = {"Host": host(mesh), "Origin": mesh.gateway.console, "Sec-Fetch-Site": "same-origin"}
    sent = {**HTML, **FORM, **own, **({"Cookie": cookie} if cookie else {}), **headers}
    sent = {name: value for name, value in sent.items() if value}
    async with mesh.http.post(mesh.gateway_url + path, data=body, headers=sent, allow_redirects=False) as r:
        return Answer(r.status, dict(r.headers), await r.read())


async def signed_in(mesh: Mesh, who: str = "operator") -> tuple[str, str]:
    """(cookie, the CSRF token of its forms)."""
    path = await link(mesh, who)
    answer = await post(mesh, "/console/enter", path.partition("?")[2])
    cookie = answer.headers["Set-Cookie"].partition(";")[0]
    page = (await get(mesh, "/console/sign-out-is-no-page", cookie)).body.decode()
    return cookie, page.partition('name="csrf" value="')[2].partition('"')[0]


def refused(mesh: Mesh) -> list[tuple[str, str]]:
    return [(e.reason, e.detail) for e in mesh.entries("gateway") if isinstance(e, Refusal)]


@pytest.mark.slow
async def test_a_link_works_once_and_only_by_the_button(mesh: Mesh) -> None:
    path = await link(mesh)
    for _ in range(2):  # whoever looks at it in advance does not use it up
        assert b"Sign in as operator" in (await get(mesh, path)).body
    code = path.partition("?")[2]
    answer = await post(mesh, "/console/enter", code)
    assert (answer.status, answer.headers["Location"]) == (303, "/console")
    flags = answer.headers["Set-Cookie"]
    assert "HttpOnly" in flags
    assert "SameSite=Strict" in flags
    for again in (await post(mesh, "/console/enter", code), await get(mesh, path)):
        assert again.status == 401
        assert b"used already" in again.body
        assert "Set-Cookie" not in again.headers
    assert refused(mesh)[-1][0] == "unauthenticated"
    assert code.partition("=")[2] not in str(mesh.entries("gateway"))


@pytest.mark.slow
async def test_a_link_and_a_visit_end_with_time(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.console.visits.LINK_S", 0)
    path = await link(mesh)
    assert (await post(mesh, "/console/enter", path.partition("?")[2])).status == 401
    monkeypatch.setattr("gateway.console.visits.LINK_S", 60)
    monkeypatch.setattr("gateway.console.visits.VISIT_S", 1)
    path = await link(mesh)
    answer = await post(mesh, "/console/enter", path.partition("?")[2])
    cookie = answer.headers["Set-Cookie"].partition(";")[0]
    async with asyncio.timeout(30):
        while (await get(mesh, "/console/gaps", cookie)).status == 200:
            await asyncio.sleep(0.1)
    assert (await get(mesh, "/console/gaps", cookie)).headers["Location"] == "/console/sign-in?next=%2Fconsole%2Fgaps"


@pytest.mark.slow
async def test_who_is_not_signed_in_is_sent_to_sign_in_and_learns_nothing(mesh: Mesh) -> None:
    for path in ("/console", "/console/ledger", "/console/runs/r1", "/console/events", "/console/ledger/news"):
        for cookie in ("", "licet=wrong", "licet="):
            answer = await get(mesh, path, cookie)
            assert (answer.status, answer.body) == (303, b"")
    assert (await post(mesh, "/console/ledger/saved", "name=x&asked=", "licet=wrong")).status == 401


@pytest.mark.slow
async def test_a_form_from_anywhere_else_is_refused_and_changes_nothing(mesh: Mesh) -> None:
    cookie, csrf = await signed_in(mesh)
    body = f"csrf={csrf}&name=mine&asked=agent%3Ddemo"
    elsewhere: list[tuple[str, dict[str, str]]] = [
        (body, {"Sec-Fetch-Site": "cross-site"}),
        (body, {"Sec-Fetch-Site": "same-site"}),
        (body, {"Origin": "http://evil.example"}),
        (body, {"Origin": "null"}),
        (body, {"Sec-Fetch-Site": "", "Origin": ""}),
        (body.replace(csrf, "0" * 64), {}),
        (body.replace(csrf, "%C3%A9"), {}),
        ("name=mine&asked=", {}),
        (body, {"Content-Type": "text/plain"}),
        (body + "&name=other", {}),
    ]
    for sent, headers in elsewhere:
        answer = await post(mesh, "/console/ledger/saved", sent, cookie, **headers)
        assert answer.status in (400, 403), (sent, headers)
    assert b"None yet" in (await get(mesh, "/console/ledger", cookie)).body
    assert len(refused(mesh)) == 1 + len(elsewhere)  # and the page that there was not, when signing in
    assert (await post(mesh, "/console/ledger/saved", body, cookie)).status == 303
    assert b">mine</a>" in (await get(mesh, "/console/ledger", cookie)).body
    login = (await link(mesh)).partition("?")[2]
    # Nobody can be signed in as somebody else from another page.
    assert (await post(mesh, "/console/enter", login, **{"Sec-Fetch-Site": "cross-site"})).status == 403


@pytest.mark.slow
async def test_pages_are_for_their_roles(mesh: Mesh) -> None:
    cookie, csrf = await signed_in(mesh, "approver-1")
    home = await get(mesh, "/console", cookie)
    assert (home.status, home.headers["Location"]) == (303, "/console/queue")
    seen = (await get(mesh, "/console/queue", cookie)).body
    assert b">History</a>" in seen
    assert b">Ledger</a>" not in seen
    for path in ("/console/ledger", "/console/runs", "/console/gaps", "/console/ledger/entry?origin=x&index=0"):
        answer = await get(mesh, path, cookie)
        assert answer.status == 403, path
        assert b"approver-1 has not the role auditor or operator" in answer.body
    body = f"csrf={csrf}&name=mine&asked="
    assert (await post(mesh, "/console/ledger/saved", body, cookie)).status == 403
    answer = await mesh.admin("POST", "/v1/people", {"name": "eve", "roles": ["auditor"]})
    mesh.tokens["eve"] = answer.json["token"]
    cookie, _ = await signed_in(mesh, "eve")
    assert (await get(mesh, "/console/ledger", cookie)).status == 200


@pytest.mark.slow
async def test_that_somebody_read_is_recorded(mesh: Mesh) -> None:
    cookie, _ = await signed_in(mesh)
    await get(mesh, "/console/ledger?agent=demo", cookie)
    await get(mesh, "/console/runs", cookie)
    await get(mesh, "/console/gaps", cookie)
    place = f"origin={mesh.gateway.ledger.origin}&index=0"
    async with asyncio.timeout(30):
        while (await get(mesh, f"/console/ledger/entry?{place}", cookie)).status != 200:
            await asyncio.sleep(0.1)
    await get(mesh, f"/console/ledger/proof?{place}", cookie)
    read = [(e.by, e.what) for e in mesh.entries("gateway") if isinstance(e, Query)]
    assert list(dict.fromkeys(read)) == [("operator", what) for what in ("find", "runs", "gaps", "entry", "proof")]


@pytest.mark.slow
async def test_every_page_comes_with_the_headers_that_bind_a_browser(mesh: Mesh) -> None:
    cookie, _ = await signed_in(mesh)
    nonces = set()
    for path in ("/console/ledger", "/console/sign-in", "/console/nowhere", "/console/gaps?since=tomorrow"):
        answer = await get(mesh, path, cookie)
        rule = answer.headers.get("Content-Security-Policy")
        if rule is None:
            assert (path, answer.status) == ("/console/sign-in", 303)
            continue
        assert rule.startswith("default-src 'none'; script-src 'nonce-")
        assert "unsafe" not in rule
        assert "require-trusted-types-for 'script'" in rule
        assert "frame-ancestors 'none'" in rule
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        nonces.add(rule.partition("'nonce-")[2].partition("'")[0])
    assert len(nonces) == 3


@pytest.mark.slow
async def test_bad_questions_are_answered_with_what_was_expected(mesh: Mesh) -> None:
    cookie, _ = await signed_in(mesh)
    for query, said in (
        ("limit=0", "limit: expected 1 to 1000"),
        ("since=tomorrow", "expected how long ago"),
        ("colour=red", "colour: expected one of agent, tool"),
        ("agent=a&agent=b", "more than once"),
        ("after=zzz", "after: expected"),
        ("agent=%FF", "not a form"),
    ):
        answer = await get(mesh, f"/console/ledger?{query}", cookie)
        assert answer.status == 400, query
        assert said in answer.body.decode().replace("&#34;", '"'), query
    for query in ("origin=x", "index=1", "origin=x&index=-1", "origin=x&index=1&more=1", "origin=nowhere&index=1"):
        assert (await get(mesh, f"/console/ledger/entry?{query}", cookie)).status in (400, 404), query


def test_assets_are_what_npm_gives_and_named_by_their_digest(tmp_path: Path) -> None:
    modules = REPOSITORY / "gateway/console/npm/node_modules"
    for name, source in assets.VENDORED.items():
        assert (assets.STATIC / "vendor" / name).read_bytes() == (modules / source).read_bytes(), "run `make assets`"
    shutil.copytree(assets.STATIC, tmp_path / "static")
    assets.vendor(modules, tmp_path / "static")
    sums = (tmp_path / "static/vendor/SHA256SUMS").read_text()
    assert sums == (assets.STATIC / "vendor/SHA256SUMS").read_text()
    for line in sums.splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((assets.STATIC / "vendor" / name).read_bytes()).hexdigest() == digest
    ours = assets.Assets()
    prefix, digest, name = ours.url("console.css").rsplit("/", 2)
    assert prefix == "/console/assets"
    assert ours.get(digest, name) is not None
    assert ours.get("0" * 16, name) is None
    assert ours.get(digest, "htmx.min.js") is None


@pytest.mark.slow
def test_npm_has_nothing_else_under_that_lock(tmp_path: Path) -> None:
    """What lies in ``node_modules`` may be old: fetched anew, by hash."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(REPOSITORY / "gateway/console/npm" / name, tmp_path / name)
    command = ["npm", "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=dev"]
    subprocess.run(command, cwd=tmp_path, check=True)
    for name, source in assets.VENDORED.items():
        fetched = (tmp_path / "node_modules" / source).read_bytes()
        assert fetched == (assets.STATIC / "vendor" / name).read_bytes(), name


@given(st.text(max_size=200))
def test_a_sign_in_leads_nowhere_else(text: str) -> None:
    found = own_path("/console" + text)
    assert found == "/console" or found.startswith(("/console/", "/console?"))
    assert own_path(text) == "/console" or text.startswith("/console")
    for evil in ("//evil.example", "https://evil.example", "/console/../x", "/console//evil.example", "\\\\evil"):
        assert own_path(evil) == "/console"
        assert own_path("/console/ledger" + evil).startswith("/console")


@given(st.text())
def test_what_is_readable_hides_nothing_and_loses_nothing_that_can_be_seen(text: str) -> None:
    shown = readable(text)
    assert all(c.isprintable() for c in shown)
    assert not any(c in shown for c in "\u202e\u2066\u200b\u200d\ufeff\u00ad\u115f\u3164\x00\n")
    plain = "".join(c for c in text if c.isascii() and c.isprintable())
    assert all(c in shown for c in plain)
    marks = readable("e" + "\u0301" * 40)
    assert marks.count("\u0301") == 3


def test_a_long_text_is_cut_and_says_so() -> None:
    assert readable("x" * 30, 10) == "x" * 10 + "…"


def test_templates_name_no_style_and_no_script_of_their_own() -> None:
    for path in (REPOSITORY / "gateway/console/templates").glob("*.j2"):
        source: Any = path.read_text()
        assert " style=" not in source, path.name
        assert " onclick" not in source, path.name
        assert "|safe" not in source.replace(" ", ""), path.name
        assert source.count("<script") == source.count('nonce="{{ nonce }}" defer></script>'), path.name
        for element in source.split("<")[1:]:
            head = element.partition(">")[0]
            assert "hx-get" not in head or 'hx-nonce="{{ nonce }}"' in head, path.name
