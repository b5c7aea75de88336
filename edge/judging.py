"""Deciding again what a ledger recorded, with the bundles and arguments that lie beside it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from edge.blobs import Blobs
from trust.canonical import JsonObject, jcs, read_object, sha256_hex
from trust.identity.keys import PublicKey, SecretKey, unb64url
from trust.ledger.entries import Deed, Judgement, Line, Refusal, SealedArguments
from trust.ledger.signed import SignedVotes
from trust.ledger.verify import Undecidable
from trust.personal import SubjectKey, opened
from trust.policy import judge
from trust.policy.bundle import BundleRejected, Compiled, compile_bundle, open_bundle
from trust.policy.cedar import Uid
from trust.policy.engine import Request, World
from trust.reasons import Reason, Unverifiable

MAX_COMPILED: Final = 16
"""A bundle is compiled in some ten milliseconds and holds some megabytes; neighbouring decisions share one."""


KeyOf = Callable[[str, str], SubjectKey | None]
"""A subject's key by its id, for one agent; None if it is not here, or was destroyed."""


def no_keys(_key: str, _agent: str) -> None:
    """Where nobody has the keys of subjects: what is personal stays sealed."""


class Judge:
    """For the ledger of one process, whose home holds ``bundles/`` and ``blobs/``."""

    def __init__(self, home: Path, key_of: KeyOf = no_keys) -> None:
        self._key_of = key_of
        self._bundles = home / "bundles"
        self._signer = _signer(home)
        self._blobs = Blobs(home / "blobs")
        self._signed = SignedVotes()
        self._compiled: OrderedDict[str, Compiled | None] = OrderedDict()

    @property
    def votes(self) -> int:
        return self._signed.checked

    def followed(self, line: Line) -> str | None:
        return self._signed.read(line.entry)

    def decided(self, line: Line) -> str | None:
        entry: Any = line.entry
        if isinstance(entry, Refusal) and entry.step != 5:
            raise Undecidable("it was refused before or after policy")
        bundle = self.bundle(entry.judgement.bundle)
        wrong = judge.wrongly_kept(bundle, entry.deed)
        if wrong is not None:
            return wrong
        try:
            deed, salt = self.complete(entry.deed)
        except Unverifiable as bad:
            return f"what is personal of {entry.deed.server}/{entry.deed.tool} is not what was decided: {bad.detail}"
        return judge.disagreement(bundle, line, deed, salt)

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

    def complete(self, deed: Deed) -> tuple[Deed, bytes]:
        """*deed* with all of its arguments, and the salt of its digests: from beside the log if they were too large for
        the entry, and opened if they are personal. :class:`Undecidable` if nobody here can open them,
        :class:`Unverifiable` if they are not what their digest says."""
        if deed.sealed is None:
            if deed.arguments is not None:
                return deed, b""
            kept = self._blobs.get(deed.arguments_sha256)
            return deed if kept is None else msgspec.structs.replace(deed, arguments=read_object(kept)), b""
        arguments, salt = open_sealed(deed, deed.sealed, self._blobs, self._key_of)
        return msgspec.structs.replace(deed, arguments=arguments), salt

    def request(self, deed: Deed, judgement: Judgement) -> tuple[Compiled, Request, World]:
        """What Cedar was asked."""
        bundle = self.bundle(judgement.bundle)
        try:
            complete, _ = self.complete(deed)
        except Unverifiable as bad:
            raise Undecidable(bad.detail) from None
        agent, context, args = judge.recorded(bundle, complete, judgement)
        name = f"{deed.server}/{deed.tool}"
        request = Request(agent.uid, name, Uid("Server", deed.server), {**context, "args": args})
        return bundle, request, bundle.engine.world(agent.entities())


def open_sealed(deed: Deed, sealed: SealedArguments, blobs: Blobs, key_of: KeyOf) -> tuple[JsonObject, bytes]:
    """(all arguments of *deed*, the salt of its digests). :class:`Undecidable` if nobody here can open them,
    :class:`Unverifiable` if they are not what their digest says."""
    key = key_of(sealed.key, deed.agent) if sealed.key else None
    if key is None:
        raise Undecidable("personal values are sealed, and their key is not here or was destroyed")
    box = blobs.get(sealed.blob) if sealed.blob else unb64url(sealed.box)
    if box is None:
        raise Undecidable("the arguments are not here")
    arguments = opened(key, box, deed.arguments)
    canonical = jcs(arguments)
    salt = key.salt(canonical)
    if sha256_hex(salt + canonical) != deed.arguments_sha256:
        raise Unverifiable(Reason.MALFORMED_REQUEST, "its digest is another")
    return arguments, salt


def _signer(home: Path) -> PublicKey | None:
    """The gateway's key: its own in its home, in others' the one that the enrolment named."""
    own, enrolment = home / "gateway.key", home / "enrolment.json"
    if own.exists():
        return SecretKey.load(own).public
    if enrolment.exists():
        return PublicKey.from_jwk(read_object(enrolment.read_bytes()).get("gateway_key"))
    return None
