"""Deciding again what a ledger recorded, with the bundles and arguments that lie beside it."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

import msgspec

from edge.blobs import Blobs
from trust.canonical import read_object
from trust.identity.keys import PublicKey, SecretKey
from trust.ledger.entries import Deed, Judgement, Line, Refusal
from trust.ledger.verify import Undecidable
from trust.policy import judge
from trust.policy.bundle import BundleRejected, Compiled, compile_bundle, open_bundle
from trust.policy.cedar import Uid
from trust.policy.engine import Request, World
from trust.reasons import Unverifiable

MAX_COMPILED: Final = 16
"""A bundle is compiled in some ten milliseconds and holds some megabytes; neighbouring decisions share one."""


class Judge:
    """For the ledger of one process, whose home holds ``bundles/`` and ``blobs/``."""

    def __init__(self, home: Path) -> None:
        self._bundles = home / "bundles"
        self._signer = _signer(home)
        self._blobs = Blobs(home / "blobs")
        self._compiled: OrderedDict[str, Compiled | None] = OrderedDict()

    def __call__(self, line: Line) -> str | None:
        entry: Any = line.entry
        if isinstance(entry, Refusal) and entry.step != 5:
            raise Undecidable("it was refused before or after policy")
        return judge.disagreement(self.bundle(entry.judgement.bundle), line, self.with_arguments(entry.deed))

    def bundle(self, digest: str) -> Compiled:
        """The bundle with exactly this digest, or :class:`Undecidable`."""
        if digest not in self._compiled:
            self._compiled[digest] = self._load(digest)
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        found = self._compiled[digest]
        if found is None:
            raise Undecidable(f"bundle {digest} is not here")
        return found

    def _load(self, digest: str) -> Compiled | None:
        path = self._bundles / f"{digest}.bundle"
        if not path.exists():
            return None
        try:
            if self._signer is None:
                return None
            sealed = open_bundle(path.read_bytes(), self._signer)
            return compile_bundle(sealed.content, digest) if sealed.digest == digest else None
        except (Unverifiable, BundleRejected):
            return None

    def with_arguments(self, deed: Deed) -> Deed:
        """*deed* with its arguments, from beside the log if they were too large for the entry."""
        if deed.arguments is not None:
            return deed
        kept = self._blobs.get(deed.arguments_sha256)
        return deed if kept is None else msgspec.structs.replace(deed, arguments=read_object(kept))

    def request(self, deed: Deed, judgement: Judgement) -> tuple[Compiled, Request, World]:
        """What Cedar was asked."""
        bundle, complete = self.bundle(judgement.bundle), self.with_arguments(deed)
        agent, context, args = judge.recorded(bundle, complete, judgement)
        name = f"{deed.server}/{deed.tool}"
        request = Request(agent.uid, name, Uid("Server", deed.server), {**context, "args": args})
        return bundle, request, bundle.engine.world(agent.entities())


def _signer(home: Path) -> PublicKey | None:
    """The gateway's key: its own in its home, in others' the one that the enrolment named."""
    own, enrolment = home / "gateway.key", home / "enrolment.json"
    if own.exists():
        return SecretKey.load(own).public
    if enrolment.exists():
        return PublicKey.from_jwk(read_object(enrolment.read_bytes()).get("gateway_key"))
    return None
