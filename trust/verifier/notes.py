"""Signed notes, checkpoints, cosignatures and inclusion proofs, after C2SP and RFC 6962."""

from __future__ import annotations

import base64
import hashlib
import re

from . import ed25519

_VKEY = re.compile(r"([^+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/=]+)")
LOG, WITNESS = b"\x01", b"\x04"
"""The algorithm bytes of a log's key, and of a witness's."""


class Fault(Exception):
    """Something does not hold; the text says what."""


def key_of(vkey: str, algorithm: bytes) -> tuple[str, bytes, bytes]:
    """(name, key id, public key) of a verifier key, ``name+id+base64``."""
    match = _VKEY.fullmatch(vkey.strip())  # base64 may hold a plus sign too
    if match is None:
        raise Fault(f"not a verifier key: {vkey}")
    name, named, rest = match.groups()
    try:
        raw = _unb64(rest)
    except ValueError:
        raise Fault(f"not a verifier key: {vkey}") from None
    expected = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
    if raw[:1] != algorithm or len(raw) != 33 or named != expected.hex():
        raise Fault(f"not a verifier key of this kind: {vkey}")
    return name, expected, raw[1:]


class Checkpoint:
    """What a log claims of itself, in a note whose signatures can be asked for."""

    def __init__(self, note: str) -> None:
        text, mark, signatures = note.rpartition("\n\n")
        lines = text.split("\n")
        if not mark or len(lines) < 3 or not lines[1].isdigit():
            raise Fault("a checkpoint is malformed")
        self.text = text + "\n"
        self.origin, self.size = lines[0], int(lines[1])
        self.root = _unb64(lines[2])
        self._signatures = []
        for line in signatures.split("\n"):
            if line:
                dash, name, blob = ([*line.split(" "), "", ""])[:3]
                if dash != "\u2014":
                    raise Fault("a signature line is malformed")
                self._signatures.append((name, _unb64(blob)))

    def _by(self, name: str, named: bytes) -> bytes | None:
        for who, blob in self._signatures:
            if who == name and blob[:4] == named:
                return blob[4:]
        return None

    def require_signed(self, vkey: str) -> None:
        """By the log itself."""
        name, named, key = key_of(vkey, LOG)
        blob = self._by(name, named)
        if name != self.origin or blob is None or not ed25519.verifies(key, self.text.encode(), blob):
            raise Fault(f"the checkpoint of {self.origin} is not signed by its key")

    def cosigned_at(self, vkey: str) -> int:
        """When the witness saw it (Unix seconds)."""
        name, named, key = key_of(vkey, WITNESS)
        blob = self._by(name, named)
        if blob is None or len(blob) <= 8:
            raise Fault(f"the checkpoint of {self.origin} is not cosigned by {name}")
        when = int.from_bytes(blob[:8], "big")
        if not ed25519.verifies(key, f"cosignature/v1\ntime {when}\n{self.text}".encode(), blob[8:]):
            raise Fault(f"the cosignature of {name} on {self.origin} does not verify")
        return when


class Proof:
    """A tlog-proof: entry ``index`` under ``checkpoint``."""

    def __init__(self, text: str) -> None:
        head, mark, note = text.partition("\n\n")
        lines = head.split("\n")
        if not mark or lines[0] != "c2sp.org/tlog-proof@v1":
            raise Fault("not a tlog-proof")
        lines = [line for line in lines[1:] if not line.startswith("extra ")]
        if not lines or not lines[0].startswith("index ") or not lines[0][6:].isdigit():
            raise Fault("a tlog-proof without index")
        self.index = int(lines[0][6:])
        self.hashes = [_unb64(line) for line in lines[1:]]
        self.note = note

    def require_holds(self, entry: bytes, checkpoint: Checkpoint) -> None:
        """*entry* (its exact bytes) is number ``index`` of what *checkpoint* seals (RFC 9162, section 2.1.3.2)."""
        at, last, made = self.index, checkpoint.size - 1, _hashed(b"\x00" + entry)
        if not 0 <= at <= last:
            raise Fault(f"there is no entry {self.index} among {checkpoint.size}")
        for sibling in self.hashes:
            if last == 0:
                raise Fault("an inclusion proof is too long")
            if at & 1 or at == last:
                made = _hashed(b"\x01" + sibling + made)
                while at and not at & 1:
                    at, last = at >> 1, last >> 1
            else:
                made = _hashed(b"\x01" + made + sibling)
            at, last = at >> 1, last >> 1
        if last or made != checkpoint.root:
            raise Fault(f"these bytes are not entry {self.index} of the {checkpoint.size} that were sealed")


def _unb64(text: str) -> bytes:
    """The only bytes that are written so: base64 leaves bits over at its end, and they must be zero."""
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode("ascii") != text:
        raise ValueError("base64 that is not canonical")
    return data


def _hashed(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
