"""The gateway's own log held fast outside: in a directory that is only added to, and by an outside witness.

Nobody in the mesh witnesses the gateway. So what it sealed can be kept where whoever rewrites its disk does not reach:
on write-once storage, or by a witness that speaks C2SP tlog-witness (``POST …/add-checkpoint``).
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import re
from pathlib import Path
from typing import Final

from edge.client import Broken, Client, Unreachable
from trust.identity.keys import PublicKey
from trust.ledger import checkpoint
from trust.ledger.checkpoint import Checkpoint
from trust.ledger.proofs import Tree
from trust.ledger.tiles import write_atomically
from trust.reasons import Reason, Unverifiable

INTERVAL_S: Final = 10.0
TIMEOUT_S: Final = 10.0
MAX_ANSWER: Final = 10_000
COSIGNED: Final = "checkpoint.cosigned"
_SIZE: Final = re.compile(rb"(\d{1,18})\n?")
_log = logging.getLogger("licet.gateway")


class Anchors:
    """Of one gateway. ``fault`` says what is wrong, if anything is; ``size`` how far the log is held fast."""

    def __init__(self, root: Path, directory: Path | None, url: str, vkey: str, client: Client) -> None:
        self._root = root
        self._directory = directory
        self._url = url.rstrip("/")
        self._name, self._key = _witness(vkey)
        self._client = client
        self._seen = 0
        self.size = 0
        self.fault = ""

    async def work(self) -> None:
        """For ever, as long as there is anything to hold it fast with."""
        while self._directory is not None or self._url:
            try:
                await self.hold()
                self.fault = ""
            except (Unverifiable, OSError, Unreachable, Broken) as bad:
                if str(bad) != self.fault:
                    _log.error("the gateway's log is not held fast outside: %s", bad)
                self.fault = str(bad)
            await asyncio.sleep(INTERVAL_S)

    async def hold(self) -> None:
        """The last checkpoint, if the log has grown since."""
        note = (self._root / "checkpoint").read_bytes()
        origin, key = checkpoint.parse_vkey((self._root / "vkey").read_text())
        sealed = checkpoint.open_checkpoint(note, origin, key)
        if sealed.size == self.size or not sealed.size:
            return
        if self._key is not None:
            line = await self._cosignature(note, sealed)
            checkpoint.cosigned_at(note + line, self._name, self._key)  # only what it really signed counts
            note += line
            write_atomically(self._root / COSIGNED, note, flush=True)
        if self._directory is not None:
            await asyncio.to_thread(keep, self._directory, note, sealed)
        self.size = sealed.size

    async def _cosignature(self, note: bytes, sealed: Checkpoint) -> bytes:
        """What the witness says to *note*; if it has seen another size than we think, once more from there."""
        for _ in range(2):
            status, answer = await self._ask(note, sealed)
            if status == 200:
                return answer
            found = _SIZE.fullmatch(answer) if status == 409 else None
            if found is None:
                raise Unverifiable(Reason.UNWITNESSED, f"the witness answers {status}: {answer[:200]!r}")
            if int(found[1]) > sealed.size:
                raise Unverifiable(
                    Reason.FORKED, f"the witness has seen {int(found[1])} entries, and {sealed.size} are here"
                )
            self._seen = int(found[1])
        raise Unverifiable(Reason.UNWITNESSED, "the witness changes its mind about how much it has seen")

    async def _ask(self, note: bytes, sealed: Checkpoint) -> tuple[int, bytes]:
        hashes: list[bytes] = []
        if self._seen:
            hashes = await asyncio.to_thread(Tree(self._root, sealed.size).consistency, self._seen)
        lines = [f"old {self._seen}", *(base64.b64encode(one).decode("ascii") for one in hashes), "", ""]
        body = "\n".join(lines).encode() + note
        async with self._client.send("POST", f"{self._url}/add-checkpoint", {}, body, timeout_s=TIMEOUT_S) as reply:
            answer = await reply.read()
        if reply.status == 200:
            self._seen = sealed.size
        return reply.status, answer[:MAX_ANSWER]


def _witness(vkey: str) -> tuple[str, PublicKey | None]:
    return checkpoint.parse_witness_vkey(vkey) if vkey else ("", None)


def keep(directory: Path, note: bytes, sealed: Checkpoint) -> None:
    """Add a checkpoint; what is there is never written again. :class:`Unverifiable` if it says something else."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{sealed.origin.replace('/', '_')}-{sealed.size:016d}.checkpoint"
    try:
        with path.open("xb") as file:
            file.write(note)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        if root_in(path.read_bytes()) != sealed.root:
            raise Unverifiable(
                Reason.FORKED, f"{path} was kept with another root: the gateway's log is not the one that it was"
            ) from None


def root_in(note: bytes) -> bytes:
    """The root that a note names, whoever signed it."""
    return base64.b64decode(note.split(b"\n")[2])
