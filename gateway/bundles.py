"""The active bundle: built, checked, signed, activated, rolled back; sidecars wait here for the next one."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from edge.clock import SystemClock
from gateway.editions import (
    NO_SOURCES,
    PREFIX,
    Draft,
    Prepared,
    of_the_mesh,
    own_of,
    permits_elsewhere,
    prefix,
    prepare,
    require_bounded,
)
from gateway.fold import active_key
from gateway.people import People
from gateway.records import Records
from gateway.servers import Servers
from gateway.state import ActiveBundle, AgentRecord
from trust.identity.keys import SecretKey
from trust.ledger import entries
from trust.ledger.entries import AnyEntry
from trust.ledger.tiles import write_atomically
from trust.policy import bundle
from trust.policy.bundle import BundleRejected, Compiled, Sealed, Sources
from trust.policy.lint import Problem
from trust.policy.terms import parse_terms
from trust.reasons import Reason, Unverifiable

MAX_WAIT_S: Final = 25.0
MAX_TRIES: Final = 5
Event = Literal["activated", "rolled_back"]
_log = logging.getLogger("licet.gateway")


class BundleFiles:
    """Sealed bundles by their digest, one file each. What is read is verified by whoever reads it; what is not what it
    is called is not put there, or it would stay for ever."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _path(self, digest: str) -> Path:
        return self._directory / f"{digest}.bundle"

    def holds(self, digest: str) -> bool:
        return self._path(digest).exists()

    def get(self, digest: str) -> bytes | None:
        return self._path(digest).read_bytes() if self.holds(digest) else None

    async def put(self, digest: str, data: bytes) -> None:
        found = bundle.digest_of(data)
        if found != digest:
            raise ValueError(f"its digest is {found}")
        await asyncio.to_thread(write_atomically, self._path(digest), data, flush=True)


class _Made(msgspec.Struct, frozen=True):
    """An edition that was prepared, and of what."""

    basis: object
    found: Prepared | BundleRejected


_RESTLESS: Final = BundleRejected([], "its policies or servers change all the time")


class Edition:
    """What is active for one namespace; empty: for the mesh's own agents, and where nodes may run what."""

    def __init__(self) -> None:
        self.sealed: Sealed | None = None
        self.compiled: Compiled | None = None
        self.degraded = ""
        self._changed = asyncio.Event()

    def swap(self, sealed: Sealed, compiled: Compiled | None) -> None:
        """*compiled*: of the same content, if it was made here."""
        if compiled is not None:
            self.compiled = compiled.dated(sealed.content, sealed.digest)
        else:
            self.compiled = bundle.compile_bundle(sealed.content, sealed.digest, validated=True)
        self.sealed = sealed
        self.wake()

    def wake(self) -> None:
        """Whoever waits for another one looks again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def lose(self, why: str) -> None:
        """With one that cannot be read nothing is decided."""
        self.sealed = self.compiled = None
        self.degraded = why

    async def wait_for_other_than(self, digest: str, seconds: float) -> Sealed | None:
        """The active bundle as soon as it is not *digest*; after *seconds*, whatever there is."""
        if self.sealed is None or self.sealed.digest == digest:
            try:
                async with asyncio.timeout(min(seconds, MAX_WAIT_S)):
                    await self._changed.wait()
            except TimeoutError:
                pass
        return self.sealed


class Bundles:
    """A bundle becomes active only as a whole: one reference is swapped, or nothing changes. Each namespace has an
    edition of its own: the policies of the mesh and its own, which permit on its own servers only, and the inventory of
    what its agents may call. What the mesh activates is in every edition at once."""

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
        self._editions: defaultdict[str, Edition] = defaultdict(Edition)
        self._looked_at: dict[str, str] = {}
        self._making: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._made: dict[str, Compiled] = {}
        for namespace in ("", *self._namespaces()):
            self._load(namespace)
        records.listen(self._on_change)

    @property
    def sealed(self) -> Sealed | None:
        """What the mesh itself has active."""
        return self._editions[""].sealed

    @property
    def compiled(self) -> Compiled | None:
        """The same, ready to answer."""
        return self._editions[""].compiled

    @property
    def degraded(self) -> str:
        """What is wrong with any edition."""
        return "; ".join(one.degraded for _, one in sorted(self._editions.items()) if one.degraded)

    def of(self, namespace: str) -> Edition:
        """What is active in *namespace*."""
        return self._editions[namespace]

    def for_agent(self, name: str) -> Edition:
        """What decides about the agent *name*."""
        record = self._records.store.get(AgentRecord, name)
        return self._editions[record.namespace if record is not None else ""]

    def _on_change(self, entry: AnyEntry) -> None:
        """Whoever activated it: this gateway or another."""
        if not isinstance(entry, entries.Bundle) or entry.event not in ("activated", "rolled_back", "withdrawn"):
            return
        edition = self._editions[entry.namespace]
        try:
            edition.degraded = ""
            self._load(entry.namespace)
        except (BundleRejected, Unverifiable) as bad:
            edition.lose(f"the active bundle cannot be read: {bad}")
            _log.error("%s", edition.degraded)

    def _load(self, namespace: str) -> None:
        active, edition = self._active(namespace), self._editions[namespace]
        if active is not None and not active.digest:
            edition.lose(f"the policies of {namespace} could not follow those of the mesh; activate some that can")
        elif active is not None and (edition.sealed is None or edition.sealed.digest != active.digest):
            edition.swap(self._read(active.digest), self._made.pop(active.digest, None))

    def _namespaces(self) -> list[str]:
        """Those that have agents or policies, in their order."""
        found = {one.namespace for one in self._records.cached(AgentRecord)}
        found |= {one.namespace for one in self._records.cached(ActiveBundle)}
        return sorted(found - {""})

    def runs(self, namespace: str, server: str) -> bool:
        """Whether *server* is one that *namespace* itself runs."""
        return bool(namespace) and self._servers.is_of(namespace, server)

    def asks_at_home(self, namespace: str, server: str, policies: Iterable[str]) -> bool:
        """Whether *namespace* itself asks a person: for its own *server*, or by its own *policies* only."""
        if not namespace or self.runs(namespace, server):
            return True
        compiled = self._editions[namespace].compiled
        known = compiled.read.sources if compiled is not None else {}
        files = [known[one].file if one in known else "" for one in policies]
        return bool(files) and all(file.startswith(prefix(namespace)) for file in files)

    def _active(self, namespace: str) -> ActiveBundle | None:
        return self._records.store.get(ActiveBundle, active_key(namespace))

    def _read(self, digest: str) -> Sealed:
        data = self._files.get(digest)
        if data is None:
            raise BundleRejected([], f"bundle {digest} is not here")
        sealed = bundle.open_bundle(data, self._key.public)
        if sealed.digest != digest:
            raise BundleRejected([], f"the file of bundle {digest} holds another one")
        return sealed

    def close(self) -> None:
        """Nobody waits any more."""
        for edition in self._editions.values():
            edition.wake()

    async def activate(
        self, sources: Sources, by: str, namespace: str = "", without: frozenset[str] = frozenset()
    ) -> None:
        """Check everything, then make it active, or :class:`BundleRejected` and nothing has changed. *without*:
        namespaces of which nothing is active afterwards, if their own policies cannot follow."""
        require_bounded(sources, namespace)
        await self._activate(lambda: sources, by, "activated", namespace, without=without)

    async def rollback(self, by: str, namespace: str = "") -> None:
        """The sources of the bundle before this one, as a new version (versions only rise)."""

        def previous() -> Sources:
            active = self._active(namespace)
            if active is None or not active.previous:
                raise BundleRejected([], "there is no earlier bundle to roll back to")
            return own_of(self._read(active.previous).content.sources, namespace)

        await self._activate(previous, by, "rolled_back", namespace)

    async def refresh(self, by: str, due: Callable[[], bool] = lambda: True) -> None:
        """The same sources with the inventory and time of now. If that fails, the last good one stays."""
        try:
            await self._activate(self._present, by, "activated", "", renewed=True, due=due)
        except BundleRejected as bad:
            if self.sealed is not None:
                self._editions[""].degraded = f"the bundle could not follow the inventory: {bad}"

    def _present(self) -> Sources:
        if self.sealed is None:
            raise BundleRejected([], "the mesh has no policies yet")
        return self.sealed.content.sources

    async def ensure(self, namespace: str, by: str) -> None:
        """Agents of *namespace* have policies: those of the mesh, until it has some of its own."""
        while namespace and self.sealed is not None and self._active(namespace) is None:
            basis = self._basis(namespace)
            made = await asyncio.to_thread(prepare, self._draft(namespace, NO_SOURCES, self._present()))
            if isinstance(made, BundleRejected):
                raise made
            async with self._records.deciding:
                if self._basis(namespace) == basis:
                    await self._write(made, by, "activated")

    async def settle(self) -> None:
        """Whoever activated something for the mesh may have died before every namespace had it: they have it now."""
        if self._lags():
            await self._activate(self._present, "gateway", "activated", "", renewed=True, due=self._lags)
            self._looked_at = self._digests()

    def _lags(self) -> bool:
        """Whether an edition has other policies of the mesh than the mesh; looked at once for what is active."""
        digests = self._digests()
        if digests == self._looked_at or self.sealed is None:
            return False
        lags = any(not self._has(self.sealed.content.sources, name) for name in digests if name)
        if not lags:
            self._looked_at = digests
        return lags

    def _digests(self) -> dict[str, str]:
        return {name: one.sealed.digest for name, one in self._editions.items() if one.sealed is not None}

    def _has(self, mesh: Sources, namespace: str) -> bool:
        """Whether the edition of *namespace* has just the policies of the mesh, beside its own."""
        sealed = self._editions[namespace].sealed
        return sealed is not None and of_the_mesh(sealed) == mesh.policies

    async def renew_when_due(self) -> None:
        """Sign anew at half of its life, so that sidecars never see it end."""
        if self._half_over():
            await self.refresh("gateway", self._half_over)

    def _half_over(self) -> bool:
        return self.sealed is not None and self._clock.now() >= self.sealed.content.issued_at + self._ttl_s // 2

    async def _activate(
        self,
        sources: Callable[[], Sources],
        by: str,
        event: Event,
        namespace: str,
        *,
        renewed: bool = False,
        without: frozenset[str] = frozenset(),
        due: Callable[[], bool] = lambda: True,
    ) -> None:
        """All editions that it concerns are prepared before the first of them is written: beside everything else that
        goes on, so each is done again if what it is made of changed meanwhile, for as long as it is *due*. Whatever
        changes all the time cannot follow, and holds up nobody."""
        async with self._making[namespace]:
            made: dict[str, _Made] = {}
            for last in reversed(range(MAX_TRIES)):
                if not due():
                    return
                await self._prepare(sources(), namespace, made)
                async with self._records.deciding:
                    changed = self._changed(namespace, made)
                    if namespace not in changed and (not changed or not last):
                        made |= {name: _Made(None, _RESTLESS) for name in changed}
                        await self._settled(made, by, event, namespace, renewed=renewed, without=without)
                        return
                    for name in list(made) if namespace in changed else changed:
                        made.pop(name, None)
        raise Unverifiable(Reason.OVERLOADED, "others change policies or servers at the same time; try again")

    def _changed(self, namespace: str, made: Mapping[str, _Made]) -> list[str]:
        """The editions that are to be prepared, or prepared again."""
        changed = [name for name, one in made.items() if one.basis != self._basis(name)]
        if isinstance(made[namespace].found, BundleRejected):
            return changed
        return changed + [name for name in self._following(namespace) if name not in made]

    async def _prepare(self, sources: Sources, namespace: str, made: dict[str, _Made]) -> None:
        """First the edition of *namespace*, and after that of the mesh those of all that follow it; whatever was *made*
        of what there still is stays."""
        try:
            if (odd := next((name for name in sources.policies if name.startswith(PREFIX)), "")) != "":
                raise BundleRejected([], f'{odd}: no file begins with "{PREFIX}"')
            if namespace and self.sealed is None:
                raise BundleRejected([], "the mesh has no policies yet; what a namespace adds comes after them")
        except BundleRejected as bad:
            made[namespace] = _Made(self._basis(namespace), bad)
            return
        mesh = self._present() if namespace else sources
        for name in (namespace, *self._following(namespace)):
            if name in made:
                continue
            first = name == namespace
            basis = self._basis(name)
            own = (sources if namespace else NO_SOURCES) if first else None
            made[name] = _Made(basis, await asyncio.to_thread(prepare, self._draft(name, own, mesh, tried=first)))
            if isinstance(made[namespace].found, BundleRejected):
                return

    def _following(self, namespace: str) -> list[str]:
        """The namespaces whose editions follow that of *namespace*. The cases of each are its own concern."""
        if namespace:
            return []
        active = {name: self._active(name) for name in self._namespaces()}
        return [name for name, one in active.items() if one is None or one.digest]

    async def _settled(
        self,
        made: dict[str, _Made],
        by: str,
        event: Event,
        namespace: str,
        *,
        renewed: bool,
        without: frozenset[str],
    ) -> None:
        """What was prepared is active, or refused."""
        first = made[namespace].found
        try:
            if isinstance(first, BundleRejected):
                raise first
            self._require_people(first)
            if first.failed is not None:
                raise first.failed
            following = {name: one.found for name, one in made.items() if name != namespace}
            rest, lost = self._rest(following, without, renewed=renewed)
        except BundleRejected as bad:
            version = self._next_version(namespace)
            await self._records.change(entries.Bundle("refused", version, "", by, str(bad)[:2000], 0, namespace))
            raise
        await self._write(first, by, event, renewed=renewed)
        for one in rest:
            await self._write(one, by, "activated", renewed=True)
        for name, why in lost:
            await self._records.change(
                entries.Bundle("withdrawn", self._next_version(name), "", by, why[:2000], 0, name)
            )

    def _rest(
        self, made: Mapping[str, Prepared | BundleRejected], without: frozenset[str], *, renewed: bool
    ) -> tuple[list[Prepared], list[tuple[str, str]]]:
        """The editions of all namespaces over what the mesh activates, and those that are lost by it, with why. One
        that cannot follow refuses an author of the mesh who does not go on *without* it, and holds up nobody else when
        nothing but inventory and time are new: its last good one ends by itself, unless it permits on a server that is
        not its own any more."""
        found: list[Prepared] = []
        lost: list[tuple[str, str]] = []
        for namespace, one in made.items():
            if isinstance(one, Prepared):
                found.append(one)
                continue
            told = f"the namespace {namespace} could not follow: {one}"
            if namespace in without or (renewed and not self._may_stay(namespace)):
                lost.append((namespace, told))
            elif renewed:
                self._editions[namespace].degraded = told
                _log.error("%s", told)
            else:
                raise BundleRejected(one.problems, told)
        return found, lost

    def _may_stay(self, namespace: str) -> bool:
        """Whether the edition of *namespace* has just the policies of the mesh, and permits at home only."""
        sealed = self._editions[namespace].sealed
        if sealed is None or not self._has(self._present(), namespace):
            return False
        return not permits_elsewhere(sealed.content.sources, namespace, self._servers.own(namespace))

    def _next_version(self, namespace: str) -> int:
        active = self._active(namespace)
        return (active.version if active else 0) + 1

    def _draft(self, namespace: str, own: Sources | None, mesh: Sources, *, tried: bool = False) -> Draft:
        now = int(self._clock.now())
        edition, active = self._editions[namespace], self._active(namespace)
        return Draft(
            namespace,
            self._next_version(namespace),
            now,
            now + self._ttl_s,
            mesh,
            own,
            edition.compiled,
            self._servers.inventory(namespace),
            self._servers.own(namespace),
            lost=active is not None and bool(active.digest) and edition.compiled is None,
            tried=tried,
        )

    def _basis(self, namespace: str) -> object:
        """What the edition of *namespace* is made of, beside what is handed in: equal while nothing of it changed."""
        servers = (one for one in self._servers.all() if one.namespace in ("", namespace))
        mesh = self._active("") if namespace else None
        return self._active(namespace), mesh, {one.name: (one.admitted, one.namespace) for one in servers}

    async def _write(self, made: Prepared, by: str, event: Event, *, renewed: bool = False) -> None:
        content = made.content
        sealed = bundle.seal(content, self._key)
        await self._files.put(sealed.digest, sealed.data)
        self._made = {sealed.digest: made.compiled}
        await self._records.change(
            entries.Bundle(
                event,
                content.version,
                sealed.digest,
                by,
                not_after=content.not_after,
                namespace=made.namespace,
                renewed=renewed,
            )
        )

    def _require_people(self, made: Prepared) -> None:
        """Every role that an ``@approval`` names must have as many people as its quorum, who can vote as asked."""
        problems, compiled, within = [], made.compiled, made.namespace
        for key, node in compiled.read.nodes.static_policies.items():
            if "approval" not in node.annotations:
                continue
            terms = parse_terms(node.annotations["approval"])
            for group, quorum in {**dict.fromkeys(terms.escalate, 1), **terms.quorum}.items():
                there, signing = len(self._people.of(group, within)), len(self._people.signing(group, within))
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

    def status(self, namespace: str = "") -> dict[str, Any]:
        edition = self._editions[namespace]
        if edition.sealed is None:
            return {"active": None, "degraded": "no bundle is active; every action is refused"}
        content = edition.sealed.content
        return {
            "active": edition.sealed.digest,
            "version": content.version,
            "issued_at": content.issued_at,
            "not_after": content.not_after,
            "policies": len(edition.compiled.read.sources) if edition.compiled else 0,
            "servers": sorted(content.inventory.servers),
            "degraded": edition.degraded,
        }
