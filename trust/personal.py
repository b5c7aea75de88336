"""Personal values: which of a call's arguments are about somebody, and how they are kept so that they can be erased.

What a manifest (``personal``) or a tool's schema (``x-licet-personal``) marks never stands in a ledger in plain. It is
encrypted (AES-SIV, RFC 5297) under a key per subject, and whatever is a digest of it is salted with what only that key
gives. Destroy the key and nobody can read or guess the values; no entry changes, and every proof holds as before.
"""

from __future__ import annotations

import hmac
import unicodedata
from collections.abc import Iterator
from typing import Final, Self

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from trust.canonical import JsonObject, JsonValue, jcs, read_object, sha256_hex
from trust.policy.inventory import Tool
from trust.reasons import Reason, Unverifiable

MARK: Final = "x-licet-personal"
"""``true`` beside a property's type: this argument, or something within it, is personal."""
SALT_BYTES: Final = 32
_LENGTH_BYTES: Final = 4
QUIET: Final = "what was wrong is not quoted here, because the arguments are personal"


class Marked(msgspec.Struct, frozen=True):
    """What of one tool's arguments is personal, if ``anything`` is: all but those in ``plain``, which the tool's schema
    declares and nobody marked. ``subject``: the argument that says about whom they are; empty: about the principal."""

    anything: bool = False
    plain: frozenset[str] = frozenset()
    subject: str = ""

    def split(self, arguments: JsonObject) -> tuple[JsonObject, JsonObject]:
        """(what may stand in plain, what may not)."""
        plain = {name: value for name, value in arguments.items() if name in self.plain}
        return plain, {name: value for name, value in arguments.items() if name not in self.plain}

    def about(self, arguments: JsonObject, principal: str) -> str:
        """Whom a call is about, as everybody names it who holds no name: SHA-256, hexadecimal."""
        named = arguments.get(self.subject) if self.subject else None
        if named is None or named == "":
            return principal_id(principal)
        return subject_id(named if isinstance(named, str) else jcs(named).decode())


ALL: Final = Marked(anything=True)
"""Where nobody can say yet what is personal."""


def subject_id(name: str) -> str:
    """What a subject is called where its name must not stand; how a name is composed or framed by spaces is all one."""
    return sha256_hex(b"licet subject\n" + unicodedata.normalize("NFC", name.strip()).encode())


def principal_id(name: str) -> str:
    """The same for a principal; no argument can name one."""
    return sha256_hex(b"licet principal\n" + name.encode())


def marks_of(tool: Tool) -> Marked:
    """What the manifest and the schema of *tool* mark. A mark that stands elsewhere than within one property of the
    schema makes everything personal, and so does a name that the schema does not declare: it is not for us to guess
    what was meant."""
    manifest, schema = tool.manifest, tool.input_schema
    properties = schema.get("properties")
    declared = properties if isinstance(properties, dict) else {}
    elsewhere = _is_marked({key: value for key, value in schema.items() if key != "properties"})
    named = {*manifest.personal, *([manifest.subject] if manifest.subject else ())}
    marked = named | {name for name, inner in declared.items() if _is_marked(inner)}
    if not marked and not elsewhere:
        return Marked()
    marked |= {name for name, inner in declared.items() if _refers(inner)}  # to what is marked, perhaps
    unclear = elsewhere or not named <= declared.keys()
    return Marked(True, frozenset() if unclear else frozenset(declared) - marked, manifest.subject)


def _is_marked(schema: JsonValue) -> bool:
    """Whether the mark stands anywhere in it."""
    return any(part.get(MARK, False) is not False for part in _objects(schema))


def _refers(schema: JsonValue) -> bool:
    return any("$ref" in part or "$dynamicRef" in part for part in _objects(schema))


def _objects(schema: JsonValue) -> Iterator[JsonObject]:
    """Every object in it."""
    stack: list[JsonValue] = [schema]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            yield part
            stack.extend(part.values())
        elif isinstance(part, list):
            stack.extend(part)


def padded(size: int) -> int:
    """*size* bytes, made so large that little can be told from it: to the next 256, and from 2 KiB on to at most an
    eighth more (after Padmé, Nikitin et al. 2019)."""
    step = max(256, 1 << max(0, size.bit_length() - 4))
    return max(step, -(-size // step) * step)


class SubjectKey(msgspec.Struct, frozen=True):
    """The key of one subject for one agent. ``id`` names the subject's key in entries, and says nothing of who it is;
    empty: a key that nobody keeps, so that what it seals is erased from the start. ``secret``: 32 bytes."""

    id: str
    secret: bytes

    def of(self, agent: str) -> Self:
        """The key that only this agent's sidecar is told: it opens nothing of what others recorded."""
        return type(self)(self.id, hmac.digest(self.secret, b"licet subject key of " + agent.encode(), "sha256"))

    def salt(self, canonical: bytes) -> bytes:
        """What the digests of a call with these *canonical* arguments are salted with: equal calls have equal digests,
        and without the key no digest can be guessed."""
        return hmac.digest(self.secret, b"licet salt\n" + canonical, "sha256")

    def seal(self, data: bytes, use: str) -> bytes:
        """*data*, encrypted for this *use*; equal data gives equal bytes. Their number tells little of how long it is:
        what is erased must not be guessed by its length."""
        framed = len(data).to_bytes(_LENGTH_BYTES, "big") + data
        return self._cipher().encrypt(framed.ljust(padded(len(framed)), b"\0"), [use.encode()])

    def unseal(self, box: bytes, use: str) -> bytes:
        """Inverse of :meth:`seal`, or :class:`Unverifiable`."""
        try:
            framed = self._cipher().decrypt(box, [use.encode()])
        except (InvalidTag, ValueError):
            raise Unverifiable(Reason.NOT_FOUND, f"this was not sealed under {self.id}") from None
        return framed[_LENGTH_BYTES:][: int.from_bytes(framed[:_LENGTH_BYTES], "big")]

    def _cipher(self) -> AESSIV:
        return AESSIV(hmac.digest(self.secret, b"licet seal", "sha512"))


class Personal(msgspec.Struct, frozen=True):
    """What of a call is personal, and under which key it is kept."""

    marks: Marked
    key: SubjectKey


ARGUMENTS: Final = "arguments"
REQUEST: Final = "request"
"""What is sealed: a call's personal arguments, or the complete request that waits for a person."""


def opened(key: SubjectKey, box: bytes, plain: JsonObject | None) -> JsonObject:
    """A call's complete arguments, from what an entry keeps of them in *plain* and in its *box*; none stands in both,
    else :class:`Unverifiable`: what people read must be what was decided."""
    hidden, shown = read_object(key.unseal(box, ARGUMENTS)), plain or {}
    if hidden.keys() & shown.keys():
        raise Unverifiable(Reason.MALFORMED_REQUEST, "an argument stands in plain and sealed")
    return {**shown, **hidden}
