"""This process's log on its way to the witness: what is sealed is shipped, and the cosignature kept beside it.

The gateway says how many entries it has, so nothing is remembered here about that, and nothing can be skipped. While
it cannot be reached everything is still recorded; what may do great harm waits until somebody has seen the record.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Final

import msgspec

from edge.backoff import REFUSED, Backoff
from edge.client import Broken, Unreachable
from edge.clock import SystemClock
from sidecar.identity import Identity, detail_of
from trust.ledger import checkpoint, shipment
from trust.ledger.shipment import Received
from trust.ledger.tiles import write_atomically
from trust.reasons import Reason, Unverifiable

IDLE_S: Final = 30.0
"""A log that does not grow is shipped so often: silence must mean that something is wrong."""
INTERVAL_S: Final = 1.0
REST_WITHIN_S: Final = 1.0
COSIGNED: Final = "checkpoint.cosigned"
_log = logging.getLogger("licet")


class Shipper:
    """Of the log under *root*, which this process writes."""

    def __init__(self, identity: Identity, root: Path, clock: SystemClock) -> None:
        self._identity = identity
        self._root = root
        self._clock = clock
        self._vkey = (root / "vkey").read_text().strip()
        self._origin, self._key = checkpoint.parse_vkey(self._vkey)
        self._there = 0
        self._seen_at = clock.mono()
        self._shipped_at = float("-inf")
        self.cosigned = 0
        """So many entries the gateway has, as it said last."""
        self.fault = ""

    async def work(self) -> None:
        """Ship each second, for ever."""
        backoff = Backoff()
        while True:
            wait = INTERVAL_S
            try:
                await self.ship()
                self.fault = ""
                backoff.reset()
            except (Unreachable, Broken) as bad:
                self._fails(str(bad))
            except Unverifiable as bad:
                self._fails(bad.detail)
                wait = max(wait, backoff.next() if bad.reason is Reason.FORKED else wait)
            except Exception:
                _log.exception("shipping the ledger failed; it is tried again")
            await asyncio.sleep(wait)

    def _fails(self, fault: str) -> None:
        if fault != self.fault:
            _log.warning("the ledger is not witnessed, trying again: %s", fault)
        self.fault = fault

    def unwitnessed_s(self) -> float:
        """How long ago everything that was sealed then was known to be witnessed; seconds. It grows whatever goes
        wrong, here or there: that nobody complains is no witness."""
        return self._clock.mono() - self._seen_at

    async def ship_the_rest(self) -> None:
        """At the end, when all is sealed: what nobody has seen yet may be gone with the machine."""
        with contextlib.suppress(TimeoutError, Unreachable, Broken, Unverifiable):
            async with asyncio.timeout(REST_WITHIN_S):
                await self.ship()

    async def ship(self) -> None:
        """Everything that is sealed now."""
        begun = self._clock.mono()
        note = (self._root / "checkpoint").read_bytes()
        sealed = checkpoint.open_checkpoint(note, self._origin, self._key).size
        if sealed != self.cosigned or begun - self._shipped_at > IDLE_S:
            await self._ship(note, sealed)
            self._shipped_at = begun
        self._seen_at = begun

    async def _ship(self, note: bytes, sealed: int) -> None:
        """Until *note*, a checkpoint of so many entries, is cosigned."""
        while True:
            received = await self._send(
                await asyncio.to_thread(shipment.following, self._root, self._vkey, self._there, sealed, note)
            )
            self.cosigned = min(self.cosigned, received.size)  # it may have lost some
            if received.cosignature:
                self._keep(note, received.cosignature.encode())
                self.cosigned, self._there = sealed, received.size
                return
            if received.size > sealed:
                raise Unverifiable(Reason.FORKED, f"the witness has {received.size} entries, and {sealed} are sealed")
            if received.size == self._there:
                raise Unverifiable(Reason.UNWITNESSED, f"the witness stays at {received.size} of {sealed} entries")
            self._there = received.size

    async def _send(self, body: bytes) -> Received:
        headers = {"Content-Type": shipment.SHIPMENT_TYPE}
        async with self._identity.send("POST", "/v1/ledger", body, headers, timeout_s=30.0) as reply:
            answer = await reply.read()
        if reply.status != 200:
            reason = Reason.FORKED if reply.status in REFUSED else Reason.UNWITNESSED
            raise Unverifiable(reason, f"the witness refused it: {detail_of(answer)}")
        return msgspec.json.decode(answer, type=Received)

    def _keep(self, note: bytes, cosignature: bytes) -> None:
        """Only what the gateway really signed counts as witnessed."""
        checkpoint.cosigned_at(note + cosignature, self._witness, self._identity.gateway)
        write_atomically(self._root / COSIGNED, note + cosignature, flush=True)

    @property
    def _witness(self) -> str:
        return f"{self._identity.enrolment.trust_domain}/gateway/main"
