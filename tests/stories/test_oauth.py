"""MCP clients that speak OAuth: the official SDK with a real (small) authorization server, and tokens for somebody else."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import pytest
from aiohttp import web
from joserfc import jwt as jose_jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey
from mcp import Client
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientMetadata

from sidecar.app import Sidecar
from sidecar.config import OAuthConfig
from tests.mesh import Answer, Mesh
from trust.identity import oauth
from trust.identity.keys import b64url
from trust.ledger.entries import Intent
from trust.reasons import Unverifiable

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Key size should be")]
KEY = RSAKey.generate_key(2048, {"kid": "k1", "use": "sig", "alg": "RS256"})
MODERN = {"Mcp-Protocol-Version": "2025-06-18", "Accept": "application/json, text/event-stream"}
CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "read_file", "arguments": {"path": "notes.txt"}},
}


class AuthorizationServer:
    """RFC 8414 metadata, dynamic registration, code with PKCE, RFC 9068 tokens for the resource that was asked for."""

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/.well-known/oauth-authorization-server", self.metadata)
        app.router.add_get("/jwks", self.jwks)
        app.router.add_post("/register", self.register)
        app.router.add_get("/authorize", self.authorize)
        app.router.add_post("/token", self.token)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"
        self.codes: dict[str, dict[str, str]] = {}

    async def stop(self) -> None:
        await self.runner.cleanup()

    async def metadata(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "registration_endpoint": f"{self.url}/register",
                "response_types_supported": ["code"],
                "grant_types_supported": ["authorization_code"],
                "code_challenge_methods_supported": ["S256"],
                "token_endpoint_auth_methods_supported": ["none"],
            }
        )

    async def jwks(self, _request: web.Request) -> web.Response:
        return web.json_response({"keys": [KEY.as_dict(private=False)]})

    async def register(self, request: web.Request) -> web.Response:
        return web.json_response({**await request.json(), "client_id": "client-1"}, status=201)

    async def authorize(self, request: web.Request) -> web.Response:
        code = secrets.token_hex(8)
        self.codes[code] = dict(request.query)
        back = {"code": code, "state": request.query["state"], "iss": self.url}
        raise web.HTTPFound(f"{request.query['redirect_uri']}?{urlencode(back)}")

    async def token(self, request: web.Request) -> web.Response:
        form = await request.post()
        asked = self.codes.pop(str(form["code"]))
        proof = base64.urlsafe_b64encode(hashlib.sha256(str(form["code_verifier"]).encode()).digest()).rstrip(b"=")
        if proof.decode() != asked["code_challenge"]:
            raise web.HTTPBadRequest
        token = self.issue(str(form["resource"]))
        return web.json_response({"access_token": token, "token_type": "Bearer", "expires_in": 600})

    def issue(
        self, audience: Any, header: dict[str, Any] | None = None, key: Any = KEY, alg: str = "RS256", **changed: Any
    ) -> str:
        now = int(time.time())
        claims = {
            "iss": self.url, "sub": "ada", "aud": audience, "iat": now, "exp": now + 600, "client_id": "client-1",
            "jti": secrets.token_hex(4), "scope": "mcp",
        }  # fmt: skip
        claims = {name: value for name, value in {**claims, **changed}.items() if value is not None}
        head = {"alg": alg, "typ": "at+jwt", "kid": "k1", **(header or {})}
        return jose_jwt.encode(head, claims, key, algorithms=[alg])


@pytest.fixture
async def server() -> AsyncIterator[AuthorizationServer]:
    made = AuthorizationServer()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def mesh(tmp_path: Path, server: AuthorizationServer) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path) as made:
        (made.sandbox / "notes.txt").write_text("hello")
        config = made.sidecar.config.model_copy(
            update={"oauth": OAuthConfig(issuer=server.url, jwks_url=f"{server.url}/jwks", scope="mcp")}
        )
        await made.stop("sidecar")
        made.sidecar = Sidecar(config)
        await made.sidecar.start()
        made.url = f"http://127.0.0.1:{made.sidecar.port}"
        await made.ready()
        yield made


def resource(mesh: Mesh) -> str:
    return f"{mesh.url}/mcp/workbench"


async def call(mesh: Mesh, token: str) -> Answer:
    headers = {**MODERN, **({"Authorization": f"Bearer {token}"} if token else {})}
    return await mesh.request("POST", resource(mesh), json=CALL, headers=headers)


async def test_the_official_client_finds_its_way_from_401_to_the_tool(mesh: Mesh, server: AuthorizationServer) -> None:
    class Storage:
        tokens: Any = None
        info: Any = None

        async def get_tokens(self) -> Any:
            return self.tokens

        async def set_tokens(self, tokens: Any) -> None:
            self.tokens = tokens

        async def get_client_info(self) -> Any:
            return self.info

        async def set_client_info(self, client_info: Any) -> None:
            self.info = client_info

    came: asyncio.Queue[dict[str, list[str]]] = asyncio.Queue()

    async def browser(url: str) -> None:
        async with mesh.http.get(url, allow_redirects=False) as answer:
            came.put_nowait(parse_qs(urlsplit(answer.headers["Location"]).query))

    async def back() -> AuthorizationCodeResult:
        found = await came.get()
        return AuthorizationCodeResult(code=found["code"][0], state=found["state"][0], iss=found["iss"][0])

    metadata = OAuthClientMetadata(
        client_name="test", redirect_uris=["http://127.0.0.1:1/callback"], token_endpoint_auth_method="none"
    )
    provider = OAuthClientProvider(resource(mesh), metadata, Storage(), browser, back)
    async with httpx2.AsyncClient(auth=provider, trust_env=False) as http:
        async with Client(streamable_http_client(resource(mesh), http_client=http)) as client:
            result = await client.call_tool("read_file", {"path": "notes.txt"})
    assert result.content[0].text == "hello"  # type: ignore[union-attr]
    intent = [e for e in mesh.entries() if isinstance(e, Intent) and e.deed.tool == "read_file"][-1]
    assert (intent.deed.authn, intent.deed.principal) == ("oauth:client-1", "ada")


async def test_without_a_token_one_is_told_where_to_ask(mesh: Mesh, server: AuthorizationServer) -> None:
    answer = await call(mesh, "")
    where = f"{mesh.url}/.well-known/oauth-protected-resource/mcp/workbench"
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (
        401,
        f'Bearer resource_metadata="{where}", scope="mcp"',
    )
    told = (await mesh.request("GET", where)).json
    assert told["resource"] == resource(mesh)
    assert told["authorization_servers"] == [server.url]
    native = await mesh.request("POST", f"{mesh.url}/v1/actions", json={"tool": "workbench/read_file"})
    assert native.headers["WWW-Authenticate"] == 'Bearer realm="licet"'


async def test_the_local_token_goes_on_working_and_an_access_token_is_for_mcp_only(
    mesh: Mesh, server: AuthorizationServer
) -> None:
    assert (await call(mesh, mesh.sidecar.token)).status == 200
    token = server.issue(resource(mesh))
    native = await mesh.request(
        "POST",
        f"{mesh.url}/v1/actions",
        token=token,
        json={"tool": "workbench/read_file", "args": {"path": "notes.txt"}},
    )
    assert native.status == 401


def maced(token: str) -> str:
    """The classic confusion: the public key, which everybody has, taken for the secret of a MAC."""
    signed = ".".join([b64url(b'{"alg":"HS256","kid":"k1","typ":"at+jwt"}'), token.split(".")[1]])
    return f"{signed}.{b64url(hmac.digest(KEY.as_pem(private=False), signed.encode(), 'sha256'))}"


OTHER = RSAKey.generate_key(2048, {"kid": "k1"})
BAD: dict[str, Callable[[AuthorizationServer, str], str]] = {
    "another audience": lambda s, r: s.issue("https://elsewhere.test/mcp"),
    "another server's audience": lambda s, r: s.issue(r.replace("workbench", "other")),
    "two audiences": lambda s, r: s.issue([r, "https://elsewhere.test"]),
    "no audience": lambda s, r: s.issue(None),
    "another issuer": lambda s, r: s.issue(r, iss="https://elsewhere.test"),
    "another issuer's key": lambda s, r: s.issue(r, key=OTHER),
    "an unknown key": lambda s, r: s.issue(r, {"kid": "k9"}),
    "an id token": lambda s, r: s.issue(r, {"typ": "JWT"}),
    "expired": lambda s, r: s.issue(r, exp=int(time.time()) - 1),
    "not yet": lambda s, r: s.issue(r, nbf=int(time.time()) + 60),
    "from the future": lambda s, r: s.issue(r, iat=int(time.time()) + 60),
    "without an end": lambda s, r: s.issue(r, exp=None),
    "an end that is text": lambda s, r: s.issue(r, exp=str(int(time.time()) + 600)),
    "an end that is true": lambda s, r: s.issue(r, exp=True),
    "for a year": lambda s, r: s.issue(r, exp=int(time.time()) + 365 * 86_400),
    "without the scope": lambda s, r: s.issue(r, scope="other"),
    "without a subject": lambda s, r: s.issue(r, sub=None),
    "a MAC under the public key": lambda s, r: maced(s.issue(r)),
    "another algorithm": lambda s, r: s.issue(r, key=ECKey.generate_key("P-256", {"kid": "k1"}), alg="ES256"),
    "a header with more in it": lambda s, r: s.issue(r, {"jku": "https://elsewhere.test/keys"}),
    "nonsense": lambda s, r: "a.b.c",
    "none": lambda s, r: ".".join(
        [base64.urlsafe_b64encode(b'{"alg":"none","typ":"at+jwt"}').rstrip(b"=").decode(), s.issue(r).split(".")[1], "AA"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in BAD if name != "without the scope"])
def test_a_token_that_is_not_for_us_is_refused(name: str) -> None:
    made, ours = AuthorizationServer(), "http://127.0.0.1:7410/mcp/workbench"
    made.url = "https://as.test"
    keys = oauth.keys_of(json.dumps({"keys": [KEY.as_dict(private=False)]}).encode(), "RS256")
    issuer = oauth.Issuer(made.url, "RS256", keys)
    assert oauth.verify(made.issue(ours), issuer=issuer, audience=ours, now=time.time()).client == "client-1"
    with pytest.raises(Unverifiable):
        oauth.verify(BAD[name](made, ours), issuer=issuer, audience=ours, now=time.time())


async def test_and_the_client_is_told_where_to_get_a_better_one(mesh: Mesh, server: AuthorizationServer) -> None:
    before = len([e for e in mesh.entries() if isinstance(e, Intent)])
    for name, make in BAD.items():
        answer = await call(mesh, make(server, resource(mesh)))
        assert answer.status == 401, name
        assert "resource_metadata" in answer.headers["WWW-Authenticate"]
    assert len([e for e in mesh.entries() if isinstance(e, Intent)]) == before


async def test_another_persons_token_is_refused(mesh: Mesh, server: AuthorizationServer) -> None:
    answer = await call(mesh, server.issue(resource(mesh), sub="mallory"))
    assert (answer.status, "not of the person" in answer.json["detail"]) == (403, True)


async def test_no_token_is_passed_on(mesh: Mesh, server: AuthorizationServer) -> None:
    """What the node gets to send on: neither the token nor any header of the client's."""
    token = server.issue(resource(mesh))
    sent: list[Any] = []
    upstream: Any = mesh.node.offers.upstreams["workbench"]
    real = upstream.exchange

    def watch(payload: Any, credentials: Any) -> Any:
        sent.append((payload, credentials))
        return real(payload, credentials)

    upstream.exchange = watch
    assert (await call(mesh, token)).status == 200
    payload, credentials = sent[-1]
    assert set(credentials) == {"traceparent"}  # no credential: only which trace this belongs to
    assert token not in json.dumps([list(payload.headers), payload.body.decode()])
    assert not [name for name, _ in payload.headers if name == "authorization"]
    for part in ("sidecar", "gateway", "node"):
        for path in (mesh.home / part).rglob("*"):
            assert not path.is_file() or token.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [
        ("EdDSA", OKPKey.generate_key("Ed25519", {"kid": "k1"})),
        ("ES256", ECKey.generate_key("P-256", {"kid": "k1"})),
        ("RS256", KEY),
    ],
)
def test_each_algorithm_has_its_own_keys(algorithm: Any, key: Any) -> None:
    made = AuthorizationServer()
    made.url = "https://as.test"
    jwks = json.dumps({"keys": [key.as_dict(private=False)]}).encode()
    issuer = oauth.Issuer(made.url, algorithm, oauth.keys_of(jwks, algorithm))
    token = made.issue("me", key=key, alg=algorithm)
    assert oauth.verify(token, issuer=issuer, audience="me", now=time.time()).subject == "ada"
    for other in {"EdDSA", "ES256", "RS256"} - {algorithm}:
        assert oauth.keys_of(jwks, other) == {}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "jwks",
    [
        b"[]", b"{}", b'{"keys": {}}', b'{"keys": [], "keys": []}',
        json.dumps({"keys": [RSAKey.generate_key(1024, {"kid": "small"}, auto_kid=False).as_dict(private=False)]}).encode(),
    ],
)  # fmt: skip
def test_a_key_set_that_cannot_be_trusted_is_refused(jwks: bytes) -> None:
    with pytest.raises(Unverifiable):
        oauth.keys_of(jwks, "RS256")
