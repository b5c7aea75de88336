"""Signing in by OpenID Connect: the code flow with PKCE (RFC 7636), its ID token checked claim by claim.

Who signs in is somebody whom an operator registered with that ``login``; the issuer names people and gives no roles.
What a flow needs is made from its state with a secret, so nothing is remembered while somebody is at the issuer.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from edge.client import Broken, Client, Unreachable
from edge.clock import SystemClock
from gateway.config import OidcConfig
from gateway.records import Records
from gateway.state import Person
from trust.canonical import JsonObject, read_object
from trust.identity import oauth
from trust.identity.keys import b64url, unb64url
from trust.identity.oauth import Issuer
from trust.identity.replay import Nonces
from trust.reasons import Reason, Unverifiable, visible

FLOW_S: Final = 10 * 60
TIMEOUT_S: Final = 10.0
KNOWN_S: Final = 300.0
"""For how long the issuer's own description is believed without asking again."""
REST_S: Final = 3.0
"""After an issuer that did not answer: nobody makes us ask it more often."""
MAX_ANSWER: Final = 1 << 18
MAX_TEXT: Final = 500
BACK: Final = "/console/sign-in/oidc/back"
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


class Provider(msgspec.Struct, frozen=True):
    """What the issuer says of itself (OpenID Connect Discovery 1.0, section 3)."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str = ""
    authorization_response_iss_parameter_supported: bool = False


class Oidc:
    """Of one gateway that has an issuer."""

    def __init__(
        self, config: OidcConfig, records: Records, clock: SystemClock, secret: bytes, origin: Callable[[], str]
    ) -> None:
        """*secret*: 32 bytes that outlive a restart; *origin*: where browsers find the console."""
        self._config = config
        self._records = records
        self._clock = clock
        self._secret = hmac.new(secret, b"oidc", hashlib.sha256).digest()
        self._origin = origin
        self._client = Client(total_timeout_s=TIMEOUT_S)
        self._password = config.client_secret_file.read_text("utf-8").strip() if config.client_secret_file else ""
        self._provider: Provider | None = None
        self._asked = self._failed = float("-inf")
        self._asking = asyncio.Lock()
        self._used = Nonces()

    @property
    def name(self) -> str:
        """How the page calls it."""
        return urlsplit(self._config.issuer).hostname or self._config.issuer

    async def begin(self, following: str) -> tuple[str, str]:
        """(where the browser goes, the value of the cookie that it brings back). *following*: the page after that."""
        provider = await self._known()
        state = b64url(secrets.token_bytes(32))
        head = f"{state}.{int(self._clock.now()) + FLOW_S}.{b64url(following.encode())}"
        verifier = self._of(state, "verifier")
        asked = {
            "response_type": "code",
            "client_id": self._config.client_id,
            "redirect_uri": self._origin() + BACK,
            "scope": "openid email" if self._config.claim == "email" else "openid",
            "state": state,
            "nonce": self._of(state, "nonce"),
            "code_challenge": b64url(hashlib.sha256(verifier.encode()).digest()),
            "code_challenge_method": "S256",
        }
        glue = "&" if "?" in provider.authorization_endpoint else "?"
        return f"{provider.authorization_endpoint}{glue}{urlencode(asked)}", f"{head}.{self._of(head, 'cookie')}"

    async def finish(self, cookie: str, answer: Mapping[str, str]) -> tuple[Person, str]:
        """Who came back with *answer*, and the page that they want; or :class:`Unverifiable`."""
        state, following = self._begun(cookie)
        if not hmac.compare_digest(answer.get("state", "").encode(), state.encode()):
            raise _refuse("this answer belongs to no sign-in that was begun in this browser")
        self._used.spend(state, self._clock.now() + FLOW_S, self._clock.now())
        if "error" in answer:
            told = answer.get("error_description", "")[:MAX_TEXT]
            raise _refuse(f"{self.name} says {visible(answer['error'])}{': ' + visible(told) if told else ''}")
        provider = await self._known()
        told_issuer = answer.get("iss", "")
        expected = provider.authorization_response_iss_parameter_supported
        if (expected or told_issuer) and told_issuer != self._config.issuer:
            raise _refuse("somebody else answered than the issuer that was asked")
        claims = await self._claims(provider, answer.get("code", ""), state)
        return self._person(claims), following

    def _begun(self, cookie: str) -> tuple[str, str]:
        head, _, seal = cookie.rpartition(".")
        parts = head.split(".")
        if len(parts) != 3 or not hmac.compare_digest(seal.encode(), self._of(head, "cookie").encode()):
            raise _refuse("no sign-in was begun in this browser; begin again")
        if int(parts[1]) <= self._clock.now():
            raise _refuse("it took longer than ten minutes; begin again")
        return parts[0], unb64url(parts[2]).decode()

    async def _claims(self, provider: Provider, code: str, state: str) -> JsonObject:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._origin() + BACK,
            "client_id": self._config.client_id,
            "code_verifier": self._of(state, "verifier"),
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        if self._password:
            pair = f"{quote(self._config.client_id, safe='')}:{quote(self._password, safe='')}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        told = read_object(await self._ask("POST", provider.token_endpoint, headers, urlencode(form).encode()))
        token = told.get("id_token")
        if not isinstance(token, str):
            raise _refuse(f"{self.name} gave no id_token")
        keys = oauth.keys_of(await self._ask("GET", provider.jwks_uri, {}), self._config.algorithm)
        claims = oauth.verify_id_token(
            token,
            issuer=Issuer(self._config.issuer, self._config.algorithm, keys),
            client=self._config.client_id,
            nonce=self._of(state, "nonce"),
            now=self._clock.now(),
        )
        if self._config.claim in claims or not provider.userinfo_endpoint:
            return claims
        return await self._more(provider.userinfo_endpoint, str(told.get("access_token", "")), claims)

    async def _more(self, endpoint: str, access_token: str, claims: JsonObject) -> JsonObject:
        """What the ID token leaves out (OpenID Connect Core 1.0, sections 5.3 and 5.4), said of the same subject."""
        headers = {"Authorization": f"Bearer {access_token}", "Accept": "application/json"}
        told = read_object(await self._ask("GET", endpoint, headers))
        if told.get("sub") != claims.get("sub"):
            raise _refuse(f"{self.name} told of somebody else than it had signed in")
        return told

    def _person(self, claims: JsonObject) -> Person:
        login = claims.get(self._config.claim)
        if not isinstance(login, str) or not login:
            raise _refuse(f"{self.name} says no {self._config.claim} of who signed in")
        if self._config.claim == "email" and claims.get("email_verified") is not True:
            raise _refuse(f"{self.name} has not verified that {visible(login)} is theirs")
        for person in self._records.store.all(Person):
            if person.login and person.login == login:
                return person
        raise _refuse(f"nobody is registered with the login {visible(login)}: licet people login NAME LOGIN")

    async def _known(self) -> Provider:
        async with self._asking:
            now = self._clock.mono()
            if self._provider is None or now - self._asked > KNOWN_S:
                if now - self._failed < REST_S:
                    raise _refuse(f"{self.name} did not answer just now; try again in some seconds")
                try:
                    self._provider, self._asked = await self._described(), now
                except Unverifiable:
                    self._failed = self._clock.mono()
                    raise
            return self._provider

    async def _described(self) -> Provider:
        url = self._config.issuer.rstrip("/") + "/.well-known/openid-configuration"
        try:
            found = msgspec.json.decode(await self._ask("GET", url, {}), type=Provider)
        except msgspec.DecodeError as bad:
            raise _refuse(f"{self.name} does not describe itself as OpenID Connect says: {bad}") from None
        if found.issuer != self._config.issuer:
            raise _refuse(f"{url} describes {visible(found.issuer)}; expected {self._config.issuer}")
        endpoints = [found.authorization_endpoint, found.token_endpoint, found.jwks_uri]
        for endpoint in endpoints + [found.userinfo_endpoint] * bool(found.userinfo_endpoint):
            require_safe(endpoint)
        return found

    async def _ask(self, method: str, url: str, headers: dict[str, str], body: bytes | None = None) -> bytes:
        try:
            async with self._client.send(method, url, headers, body, timeout_s=TIMEOUT_S) as reply:
                data = await reply.read(MAX_ANSWER)
                if reply.status != 200:
                    told = visible(data[:MAX_TEXT].decode("utf-8", "replace"))
                    raise _refuse(f"{self.name} answered {reply.status} at {urlsplit(url).path}: {told}")
                return data
        except (Unreachable, Broken) as bad:
            raise _refuse(f"{self.name} cannot be asked: {bad}") from None

    def _of(self, text: str, what: str) -> str:
        return b64url(hmac.new(self._secret, f"{what} {text}".encode(), hashlib.sha256).digest())

    async def close(self) -> None:
        await self._client.close()


def require_safe(url: str) -> None:
    """That nobody on the way can read or change it: https, or this machine."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise _refuse(f"{visible(url)} is not https")


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.UNAUTHENTICATED, f"single sign-on: {detail}")
