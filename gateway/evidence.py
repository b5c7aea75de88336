"""An evidence pack: everything about one run, with proofs, bundles, keys, and a verifier that needs only Python.

The pack is a ZIP that Python runs (``python3 evidence.zip``). Its form is :data:`trust.verifier.pack.FORMAT`.
"""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

from edge.blobs import Blobs
from gateway.ledgers import Ledgers, Sealed
from gateway.questions import MAX_ROWS, Filter
from gateway.state import Person
from trust.canonical import JsonObject, jcs
from trust.identity.keys import PublicKey, b64url
from trust.ledger import entries
from trust.ledger.entries import Deed
from trust.ledger.merkle import TILE_WIDTH
from trust.ledger.rows import Row
from trust.reasons import Reason, Unverifiable, visible
from trust.verifier import SOURCE
from trust.verifier.pack import FORMAT

MAX_ENTRIES: Final = 20_000
_CONTEXT: Final = ("person", "bundle", "deputy", "passkey", "void")
"""Of the gateways' logs, beside the run itself: who had which role, deputy or passkey; which policies were active; and
what did not come to be."""
AFTER_US: Final = 60 * 1_000_000
_EARLIEST: Final = (1980, 1, 1, 0, 0, 0)
"""The time of every file in the pack: two packs of the same evidence are the same bytes."""
_README: Final = """This is the evidence of one run, as the logs of a Licet mesh recorded it.

Verify it with nothing but Python (3.8 or later):

    python3 {name}

It checks, from the exact bytes in entries/, that each entry stands in its log (proofs/, C2SP tlog-proof), that the
log's key signed it and the witness cosigned it, that each decision follows from its recorded facts by the policies that
were active (bundles/), and that what needed people had them. Give keys that you hold yourself with --key and --witness.

The verifier itself is verifier/*.py: some two thousand lines, written to be read.
"""


class _Reader:
    """Neighbouring entries lie in one file, which is read once."""

    def __init__(self) -> None:
        self._number = -1
        self._bundle: list[bytes] = []

    def __call__(self, log: Sealed, index: int) -> bytes:
        number, place = divmod(index, TILE_WIDTH)
        if number != self._number:
            self._number, self._bundle = number, log.bundle(number)
        return self._bundle[place]


class Packer:
    """Makes packs. *gateway*: its name as a witness, beside which its logs are; *witness*: its verifier key as one."""

    def __init__(self, ledgers: Ledgers, gateway: str, witness: str, key: PublicKey) -> None:
        self._ledgers = ledgers
        self._gateway = gateway
        self._below = gateway.rpartition("/")[0] + "/"
        self._one = asyncio.Lock()
        self._witness = witness
        self._key = key
        self._bundles = ledgers.home / "bundles"
        self._blobs = Blobs(ledgers.home / "blobs")

    async def pack(self, run: str, by: Person, *, personal: bool = False) -> bytes:
        """The evidence of *run*; that *by* took it is recorded first. *personal*: with what is sealed of it opened, as
        far as its keys are here; whoever has the pack then has that for ever."""
        async with self._one:
            rows = await self._ledgers.whole_run(run, MAX_ENTRIES, by, "personal evidence" if personal else "evidence")
            if not rows:
                raise Unverifiable(Reason.NOT_FOUND, f"no log has a run {visible(run)} (the index is a second behind)")
            if len(rows) > MAX_ENTRIES:
                raise Unverifiable(Reason.MALFORMED_REQUEST, f"this run has more than {MAX_ENTRIES} entries")
            until_us = max(row.wall_us for row in rows) + AFTER_US
            for kind in _CONTEXT:
                rows += [row async for row in self._all(kind, until_us)]
            return await asyncio.to_thread(self._write, run, rows, by.namespace, personal)

    async def _all(self, kind: str, until_us: int) -> AsyncIterator[Row]:
        """Every entry of one kind in the gateways' own logs until then (Unix microseconds)."""
        after = ""
        while True:
            asked = Filter(kind=kind, origin=f"{self._below}*", until_us=until_us, limit=MAX_ROWS, after=after)
            page = await self._ledgers.index.find(asked)
            for row in page.rows:
                yield row
            after = page.next
            if not after:
                return

    def _write(self, run: str, rows: list[Row], namespace: str, personal: bool) -> bytes:
        files: dict[str, bytes] = {}
        listed: list[dict[str, Any]] = []
        bundles: set[str] = set()
        arguments: set[str] = set()
        about = self._voters(rows)
        for origin in sorted({row.origin for row in rows}):
            log, read = self._ledgers.sealed(origin), _Reader()
            for index in sorted({row.index for row in rows if row.origin == origin and row.index < log.size}):
                if origin.startswith(self._below) and _of_others(read(log, index), about, namespace):
                    continue
                name = f"{origin.replace('/', '_')}/{index}"
                entry, proof = f"entries/{name}.json", f"proofs/{name}.tlog-proof"
                files[entry], files[proof] = read(log, index), log.proof(index)
                listed.append({"origin": origin, "index": index, "file": entry, "proof": proof})
                _named(files[entry], bundles, arguments)
                if personal:
                    files |= self._opened(files[entry])
        files |= self._kept(bundles, arguments)
        manifest = {
            "format": FORMAT,
            "run": run,
            "gateway": self._gateway,
            "gateway_key": b64url(self._key.raw),
            "witness": self._witness,
            "logs": {origin: self._ledgers.vkey(origin) for origin in sorted({row.origin for row in rows})},
            "entries": listed,
            "bundles": sorted(name for name in bundles if f"bundles/{name}.bundle" in files),
        }
        files["manifest.json"] = json.dumps(manifest, indent=1).encode()
        files["README.txt"] = _README.format(name=f"evidence-{run}.zip").encode()
        for path in sorted(SOURCE.glob("*.py")):
            files[f"verifier/{path.name}"] = path.read_bytes()
        files["__main__.py"] = _MAIN
        return _zipped(files)

    def _voters(self, rows: list[Row]) -> set[str]:
        """Who voted in this run, and in whose seats: of nobody else's roles, deputies and passkeys anything is told."""
        found: set[str] = set()
        for origin in sorted({row.origin for row in rows if row.origin.startswith(self._below)}):
            log, read = self._ledgers.sealed(origin), _Reader()
            for index in sorted({row.index for row in rows if row.origin == origin and row.index < log.size}):
                entry = entries.decode(read(log, index)).entry
                if isinstance(entry, entries.Approval) and entry.event == "vote":
                    found |= {entry.by, entry.seat or entry.by}
        return found

    def _opened(self, data: bytes) -> dict[str, bytes]:
        """What opens the personal arguments of an entry: they and the salt are what its digest is of."""
        deed: Deed | None = getattr(entries.decode(data).entry, "deed", None)
        if deed is None or deed.sealed is None:
            return {}
        opened = self._ledgers.opened(deed)
        if opened.missing:
            return {}
        told: JsonObject = {"salt": opened.salt.hex(), "arguments": opened.arguments}
        return {f"opened/{deed.arguments_sha256}.json": jcs(told)}

    def _kept(self, bundles: Iterable[str], arguments: Iterable[str]) -> dict[str, bytes]:
        """What decisions name, as far as it is here."""
        found: dict[str, bytes] = {}
        for digest in bundles:
            path = self._bundles / f"{digest}.bundle"
            if path.exists():
                found[f"bundles/{digest}.bundle"] = path.read_bytes()
        for digest in arguments:
            kept = self._blobs.get(digest)
            if kept is not None:
                found[f"arguments/{digest}.json"] = kept
        return found


_MAIN: Final = b"""import sys
from verifier.__main__ import main

sys.exit(main(sys.argv[1:], sys.path[0]))
"""


def _named(data: bytes, bundles: set[str], arguments: set[str]) -> None:
    """Add what an entry refers to by its digest."""
    entry: Any = entries.decode(data).entry
    judgement, deed = getattr(entry, "judgement", None), getattr(entry, "deed", None)
    if judgement is not None:
        bundles.add(judgement.bundle)
    if deed is not None and deed.arguments is None and deed.sealed is None:
        arguments.add(deed.arguments_sha256)


def _of_others(data: bytes, about: set[str], namespace: str) -> bool:
    """Whether an entry tells of people who have nothing to do with it, or of policies of another namespace than that
    of who asks."""
    entry = entries.decode(data).entry
    if isinstance(entry, entries.Bundle) and namespace:
        return entry.namespace not in ("", namespace) or entry.event == "refused"
    if isinstance(entry, entries.Person) and entry.event == "login":
        return True
    return isinstance(entry, entries.Person | entries.Deputy | entries.Passkey) and entry.person not in about


def _zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, _EARLIEST), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()
