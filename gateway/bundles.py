"""The active bundle: built, checked, signed, activated, rolled back; sidecars wait here for the next one."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, Final

from edge.clock import SystemClock
from gateway.fold import ACTIVE
from gateway.people import People
from gateway.records import Records
from gateway.servers import Servers
from gateway.state import ActiveBundle
from trust.identity.keys import SecretKey
from trust.ledger import entries
from trust.ledger.entries import AnyEntry
from trust.ledger.tiles import write_atomically
from trust.policy import bundle, cases
from trust.policy.bundle import BundleRejected, Compiled, Content, Sealed, Sources
from trust.policy.lint import Problem
from trust.policy.terms import parse_terms
from trust.reasons import Unverifiable

MAX_WAIT_S: Final = 25.0
_log = logging.getLogger("licet.gateway")


class BundleFiles:
    """Sealed bundles by their digest, one file each. What is read is verified by whoever reads it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _path(self, digest: str) -> Path:
        return self._directory / f"{digest}.bundle"

    def holds(self, digest: str) -> bool:
        return self._path(digest).exists()

    def get(self, digest: str) -> bytes | None:
        return self._path(digest).read_bytes() if self.holds(digest) else None

    async def put(self, digest: str, data: bytes) -> None:
        await asyncio.to_thread(write_atomically, self._path(digest), data, flush=True)


class Bundles:
    """A bundle becomes active only as a whole: one reference is swapped, or nothing changes."""

    def __init__(
        self,
        files: BundleFiles,
        records: Records,
        servers: Servers,
        people: People,
        key: SecretKey,
        clock: SystemClock,
        ttl_s: int,
    ) -> None:
        self._files = files
        self._records = records
        self._servers = servers
        self._people = people
        self._key = key
        self._clock = clock
        self._ttl_s = ttl_s
        self._changed = asyncio.Event()
        self.sealed: Sealed | None = None
        self.compiled: Compiled | None = None
        self.degraded = ""
        self._load()
        records.listen(self._on_change)

    def _on_change(self, entry: AnyEntry) -> None:
        """Whoever activated it: this gateway or another. With one that cannot be read nothing is decided."""
        if not isinstance(entry, entries.Bundle) or entry.event not in ("activated", "rolled_back"):
            return
        try:
            self._load()
            self.degraded = ""
        except (BundleRejected, Unverifiable) as bad:
            self.sealed = self.compiled = None
            self.degraded = f"the active bundle cannot be read: {bad}"
            _log.error("%s", self.degraded)

    def _load(self) -> None:
        active = self._records.store.get(ActiveBundle, ACTIVE)
        if active is not None and (self.sealed is None or self.sealed.digest != active.digest):
            self._swap(self._read(active.digest))

    def _read(self, digest: str) -> Sealed:
        data = self._files.get(digest)
        if data is None:
            raise BundleRejected([], f"bundle {digest} is not here")
        sealed = bundle.open_bundle(data, self._key.public)
        if sealed.digest != digest:
            raise BundleRejected([], f"the file of bundle {digest} holds another one")
        return sealed

    def _swap(self, sealed: Sealed) -> None:
        self.compiled = bundle.compile_bundle(sealed.content, sealed.digest)
        self.sealed = sealed
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait_for_other_than(self, digest: str, seconds: float) -> Sealed | None:
        """The active bundle as soon as it is not *digest*; after *seconds*, whatever there is."""
        if self.sealed is None or self.sealed.digest == digest:
            try:
                async with asyncio.timeout(min(seconds, MAX_WAIT_S)):
                    await self._changed.wait()
            except TimeoutError:
                pass
        return self.sealed

    def close(self) -> None:
        """Nobody waits any more."""
        self._changed.set()

    async def activate(self, sources: Sources, by: str) -> Sealed:
        """Check everything, then make it active, or :class:`BundleRejected` and nothing has changed."""
        async with self._records.deciding:
            return await self._activate(sources, by, "activated")

    async def rollback(self, by: str) -> Sealed:
        """The sources of the bundle before this one, as a new version (versions only rise)."""
        async with self._records.deciding:
            active = self._records.store.get(ActiveBundle, ACTIVE)
            if active is None or not active.previous:
                raise BundleRejected([], "there is no earlier bundle to roll back to")
            sources = self._read(active.previous).content.sources
            return await self._activate(sources, by, "rolled_back")

    async def refresh(self, by: str) -> None:
        """The same sources with the inventory and time of now. If that fails, the last good one stays."""
        async with self._records.deciding:
            if self.sealed is None:
                return
            try:
                await self._activate(self.sealed.content.sources, by, "activated")
            except BundleRejected as bad:
                self.degraded = f"the bundle could not follow the inventory: {bad}"

    async def renew_when_due(self) -> None:
        """Sign anew at half of its life, so that sidecars never see it end."""
        if self.sealed is not None:
            half = self.sealed.content.issued_at + self._ttl_s // 2
            if self._clock.now() >= half:
                await self.refresh("gateway")

    async def _activate(self, sources: Sources, by: str, event: str) -> Sealed:
        now = int(self._clock.now())
        active = self._records.store.get(ActiveBundle, ACTIVE)
        version = (active.version if active else 0) + 1
        content = Content(version, now, now + self._ttl_s, sources, self._servers.inventory())
        try:
            compiled = bundle.compile_bundle(content)
            self._require_people(compiled)
            cases.require(compiled)
        except BundleRejected as bad:
            await self._records.change(entries.Bundle("refused", version, "", by, str(bad)[:2000]))
            raise
        sealed = bundle.seal(content, self._key)
        await self._files.put(sealed.digest, sealed.data)
        await self._records.change(
            entries.Bundle(
                "rolled_back" if event == "rolled_back" else "activated",
                version,
                sealed.digest,
                by,
                not_after=content.not_after,
            )
        )
        return sealed

    def _require_people(self, compiled: Compiled) -> None:
        """Every role that an ``@approval`` names must have as many people as its quorum, who can vote as asked."""
        problems = []
        for key, node in compiled.read.nodes.static_policies.items():
            if "approval" not in node.annotations:
                continue
            terms = parse_terms(node.annotations["approval"])
            for group, quorum in {**dict.fromkeys(terms.escalate, 1), **terms.quorum}.items():
                there, signing = len(self._people.of(group)), len(self._people.signing(group))
                if there < quorum:
                    message = f'@approval asks for {quorum} of "{group}", but {there} people have that role'
                    option = f"--team {group.removeprefix('team:')}" if group.startswith("team:") else f"--role {group}"
                    hint = f"licet people register NAME {option}"
                elif terms.step_up and signing < quorum:
                    message = f'step_up asks {quorum} of "{group}" to sign, but {signing} of them have a passkey'
                    hint = "each adds one in the console, under their name: licet console --as TOKEN-FILE"
                else:
                    continue
                source = compiled.read.sources[key]
                place = source.statement.place("approval")
                problems.append(Problem("error", source.file, place.line, place.column, message, hint))
        if problems:
            raise BundleRejected(problems)

    def status(self) -> dict[str, Any]:
        if self.sealed is None:
            return {"active": None, "degraded": "no bundle is active; every action is refused"}
        content = self.sealed.content
        return {
            "active": self.sealed.digest,
            "version": content.version,
            "issued_at": content.issued_at,
            "not_after": content.not_after,
            "policies": len(self.compiled.read.sources) if self.compiled else 0,
            "servers": sorted(content.inventory.servers),
            "degraded": self.degraded,
        }
