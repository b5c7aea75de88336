"""This process's own identity: its key, its WIT, and requests to the gateway signed with them."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLContext
from typing import Final, Self

import msgspec

from edge import keyservice, tls
from edge.client import Broken, Client, Reply, Unreachable
from edge.clock import SystemClock, new_nonce
from sidecar.enrolment import CURRENT_KEY, ENROLMENT, RECERTIFY_S, Enrolment, FormerKey
from trust.identity import httpsig, jws, session, wit
from trust.identity.keys import Exchange, PublicKey, SecretKey, Signer, b64url, unb64url
from trust.ledger.tiles import write_atomically
from trust.reasons import Reason, Unverifiable

NEXT_KEY: Final = "identity.next.key"
RENEW_BEFORE_S: Final = 600
GIVE_UP_S: Final = 5.0
REOPEN_BEFORE_S: Final = 60
"""A session is replaced while it still holds, so that no request has to wait for the next one."""


class _Session(msgspec.Struct, frozen=True):
    """An open session; ``secret`` never leaves this process."""

    name: str
    secret: bytes
    expires_at: int


class NotEnrolled(Exception):
    """There is no enrolment and no token to get one."""


@dataclass(slots=True)
class Identity:
    """Signs requests to one gateway: within a session while one is open, else with the key.

    ``enrolment`` changes when the WIT is renewed. ``back_keys``: by session, the key of what the gateway sends on its
    own, and when that ends. ``instance``: which of several processes with this identity. ``certificates``: where this
    process keeps those of its own; None: in ``home``.
    """

    key: Signer
    enrolment: Enrolment
    gateways: Gateways
    gateway: PublicKey
    client: Client
    clock: SystemClock
    home: Path
    session: _Session | None = None
    back_keys: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    instance: str = ""
    certificates: Path | None = None
    _certified: float = 0.0
    _files: tls.Files | None = None
    _read_at: int = 0

    @classmethod
    async def obtain(
        cls,
        home: Path,
        gateway_urls: Sequence[str],
        token: str,
        client: Client,
        clock: SystemClock,
        key_service: str = "",
        instance: str = "",
    ) -> Self:
        """The enrolment kept in *home*, or a new one for the one-time *token*. The key is in a file there, or with
        *key_service*."""
        key = keyservice.connect(key_service) if key_service else _own_key(home)
        path, gateways = home / ENROLMENT, Gateways(gateway_urls)
        if path.exists():
            enrolment = msgspec.json.decode(path.read_bytes(), type=Enrolment)
        elif token:
            enrolment = await _enroll(gateways, token, key, client)
            write_atomically(path, msgspec.json.encode(enrolment), flush=True)
        else:
            raise NotEnrolled(
                f"{home} holds no enrolment: register with `licet agents register` (or `licet nodes register`) "
                "and set enrolment_token"
            )
        gateway = PublicKey.from_jwk(enrolment.gateway_key)
        made = cls(key, enrolment, gateways, gateway, client, clock, home, instance=instance)
        if (
            not made.expires_at()
        ):  # it was away for longer than its token lives; what it asks first needs one that holds
            with suppress(Unreachable, Broken, Unverifiable):
                await made.renew_when_due()
        return made

    async def certify(
        self, context: SSLContext | None, certificate: Path | None = None, key: Path | None = None
    ) -> None:
        """Show a certificate to the gateway from the next connection on: the one in these files, or a fresh one of the
        gateway's authority, for a key of its own."""
        if context is None:
            return
        if certificate is not None and key is not None:
            self._files = tls.Files(certificate, key)
        else:
            certificate, key = await self._certificate()
        tls.show(context, certificate, key)
        self._certified = self.clock.mono()

    async def certify_when_due(self, context: SSLContext | None) -> bool:
        """Renew at a third of its life, or show what is in the files now; whether there is a new one."""
        if context is None:
            return False
        if self._files is not None:
            return self._files.show_renewed(context)
        if self.clock.mono() - self._certified < RECERTIFY_S:
            return False
        await self.certify(context)
        return True

    async def _certificate(self) -> tuple[Path, Path]:
        own = SecretKey.generate()
        body = msgspec.json.encode({"key": b64url(own.public.raw)})
        headers = {"Content-Type": "application/json", "Connection": "close"}
        async with self.send("POST", "/v1/certificate", body, headers, strong=True) as reply:
            answer = await reply.read()
        if reply.status != 201:
            raise Unverifiable(Reason.UNAUTHENTICATED, f"no certificate was issued: {detail_of(answer)}")
        directory = self.certificates or self.home
        paths = directory / "tls.pem", directory / "tls.key"
        write_atomically(paths[0], json.loads(answer)["certificate"].encode("ascii"), flush=True)
        write_atomically(paths[1], own.pem, flush=True)
        return paths

    @property
    def name(self) -> str:
        return self.enrolment.name

    def expires_at(self) -> int:
        """When the WIT ends, Unix seconds; 0 when it is over already."""
        try:
            return wit.verify(
                self.enrolment.wit,
                now=self.clock.now(),
                trust_domain=self.enrolment.trust_domain,
                issuer=self.gateway,
            ).expires_at
        except Unverifiable:
            return 0

    async def renew_when_due(self) -> None:
        """Get a fresh WIT while the old one still signs."""
        if self.expires_at() - self.clock.now() > RENEW_BEFORE_S:
            return
        async with self.send("POST", "/v1/wit", strong=True) as reply:
            body = await reply.read()
        if reply.status != 200:
            raise Unverifiable(Reason.UNAUTHENTICATED, f"the WIT was not renewed: {body[:200]!r}")
        self._keep(msgspec.structs.replace(self.enrolment, wit=json.loads(body)["wit"]))

    def follow_files(self) -> bool:
        """Have the enrolment and the key that another worker has now, who looks after them; whether the key is new."""
        path = self.home / ENROLMENT
        changed = path.stat().st_mtime_ns
        if changed == self._read_at:
            return False
        enrolment, replaced = msgspec.json.decode(path.read_bytes(), type=Enrolment), False
        if isinstance(self.key, SecretKey):
            bound = jws.peek(enrolment.wit, wit.TYP).get("cnf")
            files = (self.home / CURRENT_KEY, self.home / NEXT_KEY)  # while it is replaced, it may be in either
            keys = (SecretKey.load(file) for file in files if file.exists())
            key = next((one for one in keys if bound == {"jwk": dict(one.public.jwk)}), None)
            if key is None:
                return False
            replaced = key.public != self.key.public
            if replaced:
                self.key, self.session = key, None
        self.enrolment, self._read_at = enrolment, changed
        return replaced

    def _keep(self, enrolment: Enrolment) -> None:
        write_atomically(self.home / ENROLMENT, msgspec.json.encode(enrolment), flush=True)
        self.enrolment = enrolment

    def own_keys(self) -> frozenset[bytes]:
        """Raw public keys that are this workload's: the current one, and those that drain."""
        now = self.clock.now()
        former = (unb64url(one.key) for one in self.enrolment.former if now < one.until)
        return frozenset((self.key.public.raw, *former))

    async def rotate(self, hand_over: Callable[[Signer, PublicKey], None]) -> None:
        """Replace the key: the new one is bound by the old one, which drains. *hand_over* is called with both before
        the old one is forgotten. Whatever is interrupted is finished by doing it again."""
        if not isinstance(self.key, SecretKey):
            raise Unverifiable(
                Reason.MALFORMED_REQUEST,
                "the key is with a key service: put a new one there, then `licet agents rotate --lost` and enrol it",
            )
        path = self.home / NEXT_KEY
        following = SecretKey.load_or_create(path)
        proof = b64url(following.sign(f"licet-rotate {self.subject}".encode()))
        body = msgspec.json.encode({"key": following.public.jwk, "proof": proof})
        headers = {"Content-Type": "application/json"}
        async with self.send("POST", "/v1/keys", body, headers, strong=True) as reply:
            answer = await reply.read()
        if reply.status != 201:
            raise Unverifiable(Reason.UNAUTHENTICATED, f"the key was not replaced: {detail_of(answer)}")
        told = json.loads(answer)
        hand_over(self.key, following.public)
        drained = FormerKey(b64url(self.key.public.raw), int(told["drains_until"]))
        now = self.clock.now()
        former = (drained, *(one for one in self.enrolment.former if now < one.until))
        enrolment = msgspec.structs.replace(self.enrolment, wit=told["wit"], former=former)
        # The WIT names the key: from here on a restart finds which of the two files belongs to it.
        self._keep(enrolment)
        path.replace(self.home / CURRENT_KEY)
        self.key = following
        self.session = None

    async def open_session_when_due(self) -> None:
        """Have a session that lasts: the first one, or the next before the last one ends."""
        if self.session is not None and self.session.expires_at - self.clock.now() > REOPEN_BEFORE_S:
            return
        own = Exchange()
        body = msgspec.json.encode({"key": b64url(own.public)})
        async with self.send("POST", "/v1/session", body, {"Content-Type": "application/json"}, strong=True) as reply:
            answer = await reply.read()
        if reply.status != 201:
            raise Unverifiable(Reason.UNAUTHENTICATED, f"no session was opened: {detail_of(answer)}")
        terms, secret = session.accept(
            json.loads(answer)["statement"],
            own,
            subject=self.subject,
            audience=self.enrolment.audience,
            now=self.clock.now(),
            responder=self.gateway,
        )
        self.session = _Session(terms.session, secret, terms.expires_at)
        now = self.clock.now()
        kept = {name: known for name, known in self.back_keys.items() if now < known[1]}
        self.back_keys = {**kept, terms.session: (session.backward(secret), terms.expires_at)}

    def back_key(self, name: str) -> bytes | None:
        """The key of what the gateway sends within the session *name*, while that is open."""
        key, expires = self.back_keys.get(name, (None, 0))
        return key if self.clock.now() < expires else None

    @property
    def subject(self) -> str:
        return f"wimse://{self.enrolment.trust_domain}/{self.enrolment.kind}/{self.enrolment.name}"

    async def request(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
        strong: bool = False,
    ) -> Reply:
        """One signed request to the gateway; the caller reads or closes the reply. *strong*: with the key. Where no
        connection is made nothing was asked, so the next address is asked."""
        given = dict(headers or {})
        within = None if strong else self._usable_session()

        async def ask(base: str) -> Reply:
            signature = self._signature(base, method, target, given, body, within)
            return await self.client.request(
                method, base + target, given | signature, body or None, timeout_s=timeout_s
            )

        reply = await self.gateways.ask(ask)
        if reply.status == 401 and within is not None:
            # A gateway that was started again knows none of its sessions; it did nothing, so ask with the key.
            reply.close()
            if self.session is within:
                self.session = None
            return await self.request(method, target, body, headers, timeout_s=timeout_s, strong=True)
        return reply

    def signed(self, base: str, method: str, target: str) -> dict[str, str]:
        """Headers that sign a request without a body to the gateway at *base*, with the key; for whoever sends it
        itself."""
        return self._signature(base, method, target, {}, b"", None)

    def _usable_session(self) -> _Session | None:
        found = self.session
        return found if found is not None and self.clock.now() < found.expires_at - 1 else None

    def _signature(
        self, base: str, method: str, target: str, given: dict[str, str], body: bytes, within: _Session | None
    ) -> dict[str, str]:
        request = httpsig.Request(method, authority_of(base), target, httpsig.headers_of(given), body)
        audience, created, nonce = self.enrolment.audience, int(self.clock.now()), new_nonce()
        if within is not None:
            return httpsig.mac(
                request, session=within.name, key=within.secret, audience=audience, created=created, nonce=nonce
            )
        token = self.enrolment.wit
        return httpsig.sign(request, wit=token, key=self.key, audience=audience, created=created, nonce=nonce)

    @asynccontextmanager
    async def send(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
        strong: bool = False,
    ) -> AsyncIterator[Reply]:
        """Like :meth:`request`, closed at the end."""
        reply = await self.request(method, target, body, headers, timeout_s=timeout_s, strong=strong)
        try:
            yield reply
        finally:
            reply.close()


def authority_of(base: str) -> str:
    """Host and port of a gateway, as they are signed."""
    return base.partition("://")[2].partition("/")[0]


class Gateways:
    """The addresses of one gateway, which may be several processes. Whoever answers is asked again."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = tuple(url.rstrip("/") for url in urls)
        self._at = 0
        self._waiting: defaultdict[str, set[asyncio.Timeout]] = defaultdict(set)

    @property
    def url(self) -> str:
        """The one that is asked first."""
        return self.urls[self._at]

    def leave(self, url: str) -> None:
        """*url* cannot be reached, or knows nothing new: ask the next, unless somebody does so already."""
        if url == self.url:
            self._at = (self._at + 1) % len(self.urls)

    def give_up(self, url: str) -> None:
        """Whoever waits for an answer of *url* does so for some seconds more only: it says nothing at all any more."""
        end = asyncio.get_running_loop().time() + GIVE_UP_S
        for limit in self._waiting[url]:
            limit.reschedule(end)

    async def ask(self, send: Callable[[str], Awaitable[Reply]]) -> Reply:
        """The answer of the first that can be reached; :class:`Unreachable` if none can be, :class:`Broken` if one that
        was asked fell silent."""
        for _ in self.urls[1:]:
            url = self.url
            try:
                return await self._wait(url, send)
            except Unreachable:
                self.leave(url)
        return await self._wait(self.url, send)

    async def _wait(self, url: str, send: Callable[[str], Awaitable[Reply]]) -> Reply:
        waiting = self._waiting[url]
        try:
            async with asyncio.timeout(None) as limit:
                waiting.add(limit)
                return await send(url)
        except TimeoutError:
            raise Broken("the gateway fell silent") from None
        finally:
            waiting.discard(limit)


def _own_key(home: Path) -> SecretKey:
    """The key in *home*; if a rotation was interrupted after the gateway had answered, the one that its WIT names."""
    following, enrolment = home / NEXT_KEY, home / ENROLMENT
    if following.exists() and enrolment.exists():
        kept = msgspec.json.decode(enrolment.read_bytes(), type=Enrolment)
        if jws.peek(kept.wit, wit.TYP).get("cnf") == {"jwk": dict(SecretKey.load(following).public.jwk)}:
            following.replace(home / CURRENT_KEY)
    return SecretKey.load_or_create(home / CURRENT_KEY)


async def _enroll(gateways: Gateways, token: str, key: Signer, client: Client) -> Enrolment:
    proof = b64url(key.sign(f"licet-enroll {token}".encode()))
    body = msgspec.json.encode({"token": token, "key": key.public.jwk, "proof": proof})
    headers = {"Content-Type": "application/json", "Connection": "close"}
    reply = await gateways.ask(lambda base: client.request("POST", base + "/v1/enroll", headers, body))
    try:
        answer = await reply.read()
    finally:
        reply.close()
    if reply.status != 200:
        raise NotEnrolled(f"the gateway refused the enrolment: {detail_of(answer)}; register again for a new token")
    return msgspec.json.decode(answer, type=Enrolment)


def detail_of(answer: bytes) -> str:
    """The sentence in a problem document."""
    try:
        return str(json.loads(answer)["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.decode("utf-8", "replace")[:200]
