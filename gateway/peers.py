"""Gateways that share their state copy each other's logs: their own, and those that they witness.

So each has every log whole, finds and proves every entry by itself, and none is lost with one machine. What is copied
proves itself: a log's own key signed it, and what sidecars and nodes wrote was cosigned before anybody copies it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from edge.client import Broken, Client, Reply, Unreachable
from edge.clock import SystemClock
from edge.http import Incoming
from gateway.ledgers import Sealed
from gateway.records import Records
from gateway.state import LogRecord, Peer
from gateway.witness import Witness
from trust.canonical import sha256_hex
from trust.identity import jws
from trust.identity.keys import SecretKey
from trust.ledger import shipment
from trust.reasons import Reason, Unverifiable, visible

TYP: Final = "licet-peer+jwt"
LIVES_S: Final = 30
SKEW_S: Final = 5
INTERVAL_S: Final = 1.0
TIMEOUT_S: Final = 10.0
LOGS: Final = "/v1/peers/logs"
LOG: Final = "/v1/peers/log"
WORK: Final = "/v1/peers/work"
NOT_HERE: Final = "Licet-Node-Elsewhere"
BROKE: Final = "Licet-Node-Broke"
"""In an answer that is none of the node's."""
_LENGTH_BYTES: Final = 4
_log = logging.getLogger("licet.gateway")


class Pass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One gateway asks another; ``asked`` is the digest of method, target and body. Times are Unix seconds."""

    by: str
    to: str
    asked: str
    expires_at: int


class Work(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A POST to a node that is connected to whoever gets this; its body follows."""

    node: str
    path: str
    headers: dict[str, str]


class Known(msgspec.Struct, frozen=True):
    """A log and how much of it is sealed there."""

    origin: str
    size: int


class Peers:
    """Of one gateway, whose *name* is among those that share the state."""

    def __init__(
        self,
        name: str,
        records: Records,
        witness: Witness,
        logs: Callable[[], Iterable[Sealed]],
        client: Client,
        key: SecretKey,
        clock: SystemClock,
    ) -> None:
        self._name = name
        self._records = records
        self._witness = witness
        self._logs = logs
        self._client = client
        self._key = key
        self._clock = clock
        self.silent: dict[str, str] = {}
        """Why a gateway does not tell what its logs are, by its name."""
        self._heard: dict[str, dict[str, int]] = {}
        """How much each gateway has of each log, as it last said."""
        self._stuck: set[tuple[str, str]] = set()
        witness.elsewhere = self._has_more

    # Asked

    def require(self, incoming: Incoming) -> str:
        """The name of the gateway that asks, or :class:`Unverifiable`."""
        token = incoming.bearer
        if not token:
            raise Unverifiable(Reason.UNAUTHENTICATED, "this is for the other gateways of this mesh")
        try:
            shown = msgspec.json.decode(jws.open_sealed(token, TYP, self._key.public), type=Pass)
        except msgspec.DecodeError as bad:
            raise Unverifiable(Reason.UNAUTHENTICATED, f"pass: {bad}") from None
        left, asked = shown.expires_at - self._clock.now(), _asked(incoming.method, incoming.target, incoming.body)
        if (shown.to, shown.asked) != (self._name, asked) or not 0 < left <= LIVES_S + SKEW_S:
            raise Unverifiable(Reason.UNAUTHENTICATED, "a pass for something else, or one that is over")
        return shown.by

    def told(self) -> list[Known]:
        """Every log that is here, as far as it is sealed."""
        return [Known(log.origin, log.size) for log in self._logs()]

    async def shipped(self, origin: str, first: int) -> bytes:
        """What is sealed of a log from index *first* on, as much as one answer takes."""
        log = next((one for one in self._logs() if one.origin == origin), None)
        if log is None or first > log.size:
            raise Unverifiable(Reason.NOT_FOUND, f"no entries of {visible(origin)} from {first} on are here")
        vkey = (log.root / "vkey").read_text().strip()
        return await asyncio.to_thread(shipment.following, log.root, vkey, first, log.size, log.note)

    # Asking

    async def work(self) -> None:
        """Copy each second what others have and this one has not, for ever."""
        while True:
            await asyncio.gather(*(self._follow(peer) for peer in self.others()))
            await asyncio.sleep(INTERVAL_S)

    async def _follow(self, peer: Peer) -> None:
        try:
            known = msgspec.json.decode(await self._get(peer, LOGS), type=list[Known])
            self._heard[peer.name] = {log.origin: log.size for log in known}
            for log in known:
                await self._copy_one(peer, log)
            if self.silent.pop(peer.name, ""):
                _log.warning("gateway %s is heard again", peer.name)
        except (Unreachable, Broken, Unverifiable, msgspec.DecodeError) as bad:
            why = bad.detail if isinstance(bad, Unverifiable) else str(bad)
            if self.silent.get(peer.name) != why:
                _log.warning("the logs of gateway %s are not copied, trying again: %s", peer.name, why)
            self.silent[peer.name] = why
        except Exception:
            _log.exception("copying the logs of gateway %s failed; it is tried again", peer.name)

    async def _copy_one(self, peer: Peer, log: Known) -> None:
        """One log that cannot be copied hides no other."""
        try:
            await self._copy(peer, log)
            self._stuck.discard((peer.name, log.origin))
        except (Unverifiable, msgspec.DecodeError, OSError) as bad:
            if (peer.name, log.origin) not in self._stuck:
                _log.warning("%s is not copied from gateway %s, trying again: %s", log.origin, peer.name, bad)
            self._stuck.add((peer.name, log.origin))

    async def _copy(self, peer: Peer, log: Known) -> None:
        """Until as much of *log* is here as was said, or no more comes."""
        while (have := await self._witness.copied(log.origin)) is not None and have < log.size:
            data = await self._get(peer, f"{LOG}?origin={log.origin}&first={have}")
            shipped, bundle = await asyncio.to_thread(shipment.unpack, data)
            await self._witness.adopt(log.origin, shipped, bundle, peer.name)
            if await self._witness.copied(log.origin) == have:
                raise Unverifiable(Reason.UNWITNESSED, f"nothing of it is taken after {have} entries")

    def _has_more(self, origin: str, have: int) -> bool:
        """Whether another gateway has more of a log than so many entries, and gives it, or has not been asked yet."""
        names = [one.name for one in self.others() if one.name not in self.silent]
        names = [name for name in names if (name, origin) not in self._stuck]
        return any(name not in self._heard or self._heard[name].get(origin, 0) > have for name in names)

    def others(self) -> list[Peer]:
        """The gateways that can be asked."""
        store = self._records.store
        found = (one for one in store.all(Peer) if one.name != self._name and one.url)
        return [one for one in found if (log := store.get(LogRecord, one.origin)) is None or not log.closed]

    @asynccontextmanager
    async def through(self, node: str, path: str, headers: dict[str, str], body: bytes) -> AsyncIterator[Reply]:
        """Send a POST to a node that is connected to another gateway; :class:`Unreachable` if it is to none."""
        data = packed_work(Work(node, path, headers), body)
        for peer in (one for one in self.others() if one.name not in self.silent):
            try:
                reply = await self._client.request("POST", peer.url + WORK, self._pass(peer, "POST", WORK, data), data)
            except Unreachable:
                continue
            try:
                if reply.header(NOT_HERE):
                    continue
                if reply.header(BROKE):
                    raise Broken(f"between gateway {peer.name} and the node: {reply.header(BROKE)}")
                yield reply
                return
            finally:
                reply.close()
        raise Unreachable(f"no connection of {node} waits for work, here or at another gateway")

    def _pass(self, peer: Peer, method: str, target: str, body: bytes = b"") -> dict[str, str]:
        shown = Pass(self._name, peer.name, _asked(method, target, body), int(self._clock.now()) + LIVES_S)
        return {"Authorization": "Bearer " + jws.seal(msgspec.json.encode(shown), TYP, self._key)}

    async def _get(self, peer: Peer, target: str) -> bytes:
        headers = self._pass(peer, "GET", target)
        async with self._client.send("GET", peer.url + target, headers, timeout_s=TIMEOUT_S) as reply:
            answer = await reply.read()
        if reply.status != 200:
            raise Unverifiable(Reason.GATEWAY_UNREACHABLE, f"it answers {reply.status}: {answer[:200]!r}")
        return answer


def _asked(method: str, target: str, body: bytes) -> str:
    return sha256_hex(b"%b %b\n%b" % (method.encode(), target.encode(), body))


def packed_work(work: Work, body: bytes) -> bytes:
    head = msgspec.json.encode(work)
    return len(head).to_bytes(_LENGTH_BYTES, "big") + head + body


def unpacked_work(data: bytes) -> tuple[Work, bytes]:
    """Inverse of :func:`packed_work`, or :class:`Unverifiable`."""
    end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "big")
    try:
        return msgspec.json.decode(data[_LENGTH_BYTES:end], type=Work), data[end:]
    except msgspec.DecodeError as bad:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f"work: {bad}") from None
