"""Single sign-on: Chromium at a certified provider, and every answer of an issuer that must not let anybody in."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from aiohttp import web
from joserfc import jwt as jose_jwt
from joserfc.jwk import RSAKey
from playwright.async_api import Browser, expect

from gateway.config import OidcConfig
from gateway.oidc import Oidc
from loadtests.servers import free_port
from tests.console.conftest import screen
from tests.console.test_door import get
from tests.mesh import REPOSITORY, Mesh
from tests.stories.test_agents_cli import fine
from trust.identity.keys import b64url
from trust.ledger.entries import SignIn
from trust.reasons import Unverifiable

pytestmark = [pytest.mark.slow]
MODULES = REPOSITORY / "gateway/console/npm/node_modules"
KEY = RSAKey.generate_key(2048, {"kid": "k1", "use": "sig", "alg": "RS256"})


@asynccontextmanager
async def certified(mesh: Mesh, port: int) -> AsyncIterator[None]:
    """The provider of npm's lock file, for one console."""
    node = shutil.which("node")
    assert node, "node is installed by `make debian`"
    script = REPOSITORY / "tests/console/oidc_provider.mjs"
    back = mesh.gateway.console + "/console/sign-in/oidc/back"
    process = await asyncio.create_subprocess_exec(
        node,
        str(script),
        str(port),
        back,
        str(MODULES),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            while b"listening" not in await process.stdout.readline():
                pass
        yield
    finally:
        process.kill()
        await process.wait()


async def configured(mesh: Mesh, issuer: str, secret: str = "s:e cret", **more: Any) -> None:
    """The gateway again, with an issuer."""
    (mesh.home / "oidc.secret").write_text(secret + "\n")
    mesh.oidc = OidcConfig(issuer=issuer, client_id="licet", client_secret_file=mesh.home / "oidc.secret", **more)
    await mesh.stop("gateway")
    await mesh.start_gateway()


async def test_in_a_browser_at_a_certified_provider(mesh: Mesh, browser: Browser) -> None:
    port = free_port()
    await configured(mesh, f"http://127.0.0.1:{port}")
    async with certified(mesh, port):
        await fine(mesh, "people", "login", "approver-1", "fay@example.com")
        desk = await screen(mesh, browser, "")

        async def at_the_issuer(name: str) -> None:
            await desk.go("/console/history?state=denied")
            assert await desk.violations("sign-in") == []
            await desk.page.get_by_role("link", name="At 127.0.0.1").click()
            await desk.page.get_by_placeholder("Enter any login").fill(name)
            await desk.page.get_by_placeholder("and password").fill("whatever")
            await desk.page.get_by_role("button", name="Sign-in").click()
            await desk.page.get_by_role("button", name="Continue").click()

        await at_the_issuer("fay")
        await desk.page.wait_for_url("**/console/history?state=denied")
        await expect(desk.page.locator(".who")).to_contain_text("approver-1")
        await desk.page.get_by_role("link", name="approver-1").click()
        await expect(desk.page.locator("main")).to_contain_text("as fay@example.com")
        for name, says in (("mallory", "nobody is registered with the login"), ("unverified", "has not verified")):
            await desk.context.clear_cookies()
            await at_the_issuer(name)
            await expect(desk.page.locator("main")).to_contain_text(says)
    signed = [e for e in mesh.entries("gateway") if isinstance(e, SignIn)]
    assert [(e.person, e.how) for e in signed] == [("approver-1", "oidc")]


class Issuer:
    """An issuer that says what a test wants."""

    def __init__(self) -> None:
        self.claims: dict[str, Any] = {}
        self.header: dict[str, Any] = {}
        self.described: dict[str, Any] = {}
        self.info: dict[str, Any] | None = None
        self.key = KEY
        self.forms: list[dict[str, str]] = []
        self.nonce = ""

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/.well-known/openid-configuration", self._describe)
        app.router.add_get("/jwks", self._jwks)
        app.router.add_post("/token", self._token)
        app.router.add_get("/me", self._info)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _describe(self, _request: web.Request) -> web.Response:
        told = {
            "issuer": self.url, "authorization_endpoint": f"{self.url}/authorize", "jwks_uri": f"{self.url}/jwks",
            "token_endpoint": f"{self.url}/token",
        }  # fmt: skip
        return web.json_response({**told, **self.described})

    async def _jwks(self, _request: web.Request) -> web.Response:
        return web.json_response({"keys": [KEY.as_dict(private=False)]})

    async def _info(self, _request: web.Request) -> web.Response:
        return web.json_response(self.info)

    async def _token(self, request: web.Request) -> web.Response:
        self.forms.append({k: str(v) for k, v in (await request.post()).items()})
        now = int(time.time())
        claims = {
            "iss": self.url, "aud": "licet", "sub": "1", "iat": now, "exp": now + 300, "nonce": self.nonce,
            "email": "fay@example.com", "email_verified": True, **self.claims,
        }  # fmt: skip
        kept = {name: value for name, value in claims.items() if value is not None}
        token = jose_jwt.encode({"alg": "RS256", "kid": "k1", **self.header}, kept, self.key)
        return web.json_response({"access_token": "x", "token_type": "Bearer", "id_token": token})


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    made = Issuer()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def oidc(mesh: Mesh, issuer: Issuer) -> Oidc:
    await configured(mesh, issuer.url)
    await fine(mesh, "people", "login", "approver-1", "fay@example.com")
    found = mesh.gateway._oidc
    assert found is not None
    return found


async def come_back(oidc: Oidc, issuer: Issuer, **changed: str) -> str:
    """Who is signed in after a whole flow."""
    where, cookie = await oidc.begin("/console/history")
    asked = dict(parse_qsl(urlsplit(where).query))
    issuer.nonce = asked["nonce"]
    person, following = await oidc.finish(
        changed.pop("cookie", cookie), {"state": asked["state"], "code": "c", **changed}
    )
    assert following == "/console/history"
    proof = hashlib.sha256(issuer.forms[-1]["code_verifier"].encode()).digest()
    assert (asked["code_challenge"], asked["code_challenge_method"]) == (b64url(proof), "S256")
    return person.name


async def test_who_is_known_comes_in(oidc: Oidc, issuer: Issuer) -> None:
    assert await come_back(oidc, issuer) == "approver-1"
    issuer.claims, issuer.info = {"email": None}, {"sub": "1", "email": "fay@example.com", "email_verified": True}
    issuer.described = {"userinfo_endpoint": f"{issuer.url}/me"}
    oidc._provider = None
    assert await come_back(oidc, issuer) == "approver-1", "by what the issuer tells beside the token"
    issuer.info = {**issuer.info, "sub": "2"}
    with pytest.raises(Unverifiable, match="somebody else"):
        await come_back(oidc, issuer)


WRONG_TOKENS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"nonce": "another"}, {}, "another sign-in"),
    ({"nonce": None}, {}, "another sign-in"),
    ({"aud": "somebody"}, {}, "another audience"),
    ({"aud": ["licet", "somebody"]}, {}, "another audience"),
    ({"azp": "somebody"}, {}, "another client"),
    ({"iss": "https://evil.example"}, {}, "somebody else"),
    ({"exp": 5, "iat": 1}, {}, "outside of its time"),
    ({"iat": 99_999_999_999, "exp": 99_999_999_999}, {}, "outside of its time"),
    ({"exp": 99_999_999_999}, {}, "longer than a day"),
    ({}, {"typ": "at+jwt"}, "something else"),
    ({}, {"kid": "k2"}, "does not verify"),
    ({"email_verified": False}, {}, "not verified"),
    ({"email_verified": "true"}, {}, "not verified"),
    ({"email_verified": None}, {}, "not verified"),
    ({"email": None}, {}, "no email"),
    ({"email": ""}, {}, "no email"),
    ({"email": "FAY@example.com"}, {}, "nobody is registered"),
    ({"email": "eve@example.com"}, {}, "nobody is registered"),
]


async def test_nobody_comes_in_by_another_token(oidc: Oidc, issuer: Issuer) -> None:
    for claims, header, says in WRONG_TOKENS:
        issuer.claims, issuer.header = claims, header
        with pytest.raises(Unverifiable, match=says):
            await come_back(oidc, issuer)


async def test_nobody_comes_in_by_another_flow(oidc: Oidc, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unverifiable, match="no sign-in that was begun"):
        await come_back(oidc, issuer, state="another")
    _, other = await oidc.begin("/console")
    for cookie, says in (
        ("", "in this browser"),
        (other, "no sign-in that was begun"),
        (other[:-1] + "A", "in this browser"),
    ):
        with pytest.raises(Unverifiable, match=says):
            await come_back(oidc, issuer, cookie=cookie)
    with pytest.raises(Unverifiable, match=r"access_denied: not \\u\{202e\}today"):
        await come_back(oidc, issuer, error="access_denied", error_description="not \u202etoday")
    with pytest.raises(Unverifiable, match="somebody else answered"):
        await come_back(oidc, issuer, iss="https://evil.example")
    assert await come_back(oidc, issuer, iss=issuer.url) == "approver-1"
    issuer.key = RSAKey.generate_key(2048, {"kid": "k1"})
    with pytest.raises(Unverifiable, match="does not verify"):
        await come_back(oidc, issuer)
    monkeypatch.setattr("gateway.oidc.FLOW_S", 0)
    with pytest.raises(Unverifiable, match="ten minutes"):
        await come_back(oidc, issuer)


WRONG_DESCRIPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"issuer": "https://evil.example"}, "describes https://evil.example"),
    ({"token_endpoint": "http://evil.example/token"}, "not https"),
    ({"userinfo_endpoint": "ftp://evil.example"}, "not https"),
    ({"jwks_uri": None}, "describe itself"),
    ({"authorization_response_iss_parameter_supported": True}, "somebody else answered"),
]


async def test_an_issuer_describes_itself_rightly(oidc: Oidc, issuer: Issuer) -> None:
    for described, says in WRONG_DESCRIPTIONS:
        issuer.described, oidc._provider, oidc._failed = described, None, float("-inf")
        with pytest.raises(Unverifiable, match=says):
            await come_back(oidc, issuer)


async def test_what_an_attack_found(mesh: Mesh, oidc: Oidc, issuer: Issuer) -> None:
    for path, sent in (("", "licet-sign-in=a.b.c.\xe9"), ("?state=%C3%A9", "")):
        answer = await get(mesh, f"/console/sign-in/oidc/back{path}", sent)
        assert answer.status == 401, "an error of theirs, not of ours"
    where, cookie = await oidc.begin("/console/history")
    asked = dict(parse_qsl(urlsplit(where).query))
    issuer.nonce = asked["nonce"]
    back = f"/console/sign-in/oidc/back?state={asked['state']}&code=c"
    first = await get(mesh, back, f"licet-sign-in={cookie}")
    assert first.status == 200
    assert (await get(mesh, back, f"licet-sign-in={cookie}")).status == 401, "a flow ends once"
    assert len(issuer.forms) == 1
    issuer.claims = {"sub": None, "email": None}
    issuer.described, issuer.info, oidc._provider = {"userinfo_endpoint": f"{issuer.url}/me"}, {"email": "x"}, None
    with pytest.raises(Unverifiable, match="nobody's sub"):
        await come_back(oidc, issuer)


async def test_a_login_is_one_persons(mesh: Mesh, oidc: Oidc, issuer: Issuer) -> None:
    answer = await mesh.admin("POST", "/v1/people/approver-2/login", {"login": "fay@example.com"})
    assert (answer.json["reason"], "approver-1 has the login" in answer.json["detail"]) == ("malformed_request", True)
    assert (await mesh.admin("POST", "/v1/people/nobody/login", {"login": "x"})).status == 404
    assert (await mesh.admin("POST", "/v1/people/approver-1/login", {"login": ""})).status == 200
    with pytest.raises(Unverifiable, match="nobody is registered"):
        await come_back(oidc, issuer)
    dump = mesh.gateway._store.dump()
    await mesh.stop("gateway")
    for path in (mesh.home / "gateway").glob("state.sqlite*"):
        path.unlink()
    await mesh.start_gateway()
    people = [row for row in dump if row[0] == "Person"]
    assert [row for row in mesh.gateway._store.dump() if row[0] == "Person"] == people


async def test_an_issuer_that_cannot_be_asked_is_a_page_that_says_so(mesh: Mesh, issuer: Issuer) -> None:
    await configured(mesh, issuer.url)
    await issuer.stop()
    answer = await get(mesh, "/console/sign-in/oidc")
    assert answer.status == 401
    assert b"cannot be asked" in answer.body
    plain = await get(mesh, "/console/sign-in/oidc/back?code=x&state=y")
    assert b"no sign-in was begun in this browser" in plain.body
    await issuer.start()


async def test_without_an_issuer_there_is_no_such_way(mesh: Mesh) -> None:
    assert (await get(mesh, "/console/sign-in/oidc")).status == 404
    assert b"/console/sign-in/oidc" not in (await get(mesh, "/console/sign-in")).body


def test_an_issuer_is_private() -> None:
    for issuer in ("http://idp.example.com", "http://127.0.0.1.evil.example/"):
        with pytest.raises(ValueError, match="https"):
            OidcConfig(issuer=issuer, client_id="licet")
    assert json.loads(OidcConfig(issuer="https://idp.example.com/x", client_id="licet").model_dump_json())
