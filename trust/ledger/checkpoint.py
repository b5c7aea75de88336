"""Checkpoints: C2SP tlog-checkpoints as signed notes (Ed25519).

The text is origin, size, root hash (base64) and one extension line ``licet.time <Unix milliseconds>``, which
says until when the log was sealed even if nothing was written. Sources: c2sp.org/signed-note,
c2sp.org/tlog-checkpoint.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import Final

from trust.identity.keys import PublicKey, SecretKey, unb64
from trust.reasons import Reason, Unverifiable

_ALGORITHM_ED25519: Final = b"\x01"
_TIME: Final = "licet.time "
_VKEY: Final = re.compile(r"([!-*,-~]{1,255})\+([0-9a-f]{8})\+([A-Za-z0-9+/=]{44,48})")
_BODY: Final = re.compile(
    r"(?P<origin>[!-*,-~]{1,255})\n(?P<size>0|[1-9][0-9]{0,18})\n(?P<root>[A-Za-z0-9+/]{43}=)\n"
    rf"{re.escape(_TIME)}(?P<time>[0-9]{{1,15}})\n"
)


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.MALFORMED_REQUEST, f"checkpoint: {detail}")


def key_id(origin: str, key: PublicKey) -> bytes:
    """The four bytes that name a note key."""
    return hashlib.sha256(origin.encode() + b"\n" + _ALGORITHM_ED25519 + key.raw).digest()[:4]


def vkey(origin: str, key: PublicKey) -> str:
    """The note verifier key: ``<origin>+<key id>+<base64>``."""
    encoded = base64.b64encode(_ALGORITHM_ED25519 + key.raw).decode("ascii")
    return f"{origin}+{key_id(origin, key).hex()}+{encoded}"


def parse_vkey(text: str) -> tuple[str, PublicKey]:
    """Inverse of :func:`vkey`."""
    match = _VKEY.fullmatch(text.removesuffix("\n"))
    if match is None:
        raise _refuse("not a note verifier key")
    raw = unb64(match[3])
    if raw[:1] != _ALGORITHM_ED25519:
        raise _refuse("not an Ed25519 verifier key")
    origin, key = match[1], PublicKey(raw[1:])
    if key_id(origin, key).hex() != match[2]:
        raise _refuse("the key id does not belong to this key")
    return origin, key


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log claims of itself: its *root* (32 bytes) at *size* entries, at *time_ms*."""

    origin: str
    size: int
    root: bytes
    time_ms: int


def seal(checkpoint: Checkpoint, key: SecretKey) -> bytes:
    """The signed note."""
    root = base64.b64encode(checkpoint.root).decode("ascii")
    text = f"{checkpoint.origin}\n{checkpoint.size}\n{root}\n{_TIME}{checkpoint.time_ms}\n"
    signature = key_id(checkpoint.origin, key.public) + key.sign(text.encode())
    return f"{text}\n— {checkpoint.origin} {base64.b64encode(signature).decode('ascii')}\n".encode()


def open_checkpoint(note: bytes, origin: str, key: PublicKey) -> Checkpoint:
    """The checkpoint in *note* if *key* signed it as *origin*. Other signatures (witnesses) are passed over."""
    try:
        text, _, signatures = note.decode("utf-8").rpartition("\n\n")
    except UnicodeDecodeError:
        raise _refuse("not UTF-8") from None
    text += "\n"
    body = _BODY.fullmatch(text)
    if body is None:
        raise _refuse("expected origin, size, root and time, each on its line")
    if body["origin"] != origin:
        raise _refuse(f"it is of the log {body['origin']}, expected {origin}")
    *lines, end = signatures.split("\n")
    if end:
        raise _refuse("the last line does not end")
    for line in lines:
        match = re.fullmatch(r"— (\S+) ([A-Za-z0-9+/=]+)", line)
        if match is None:
            raise _refuse("a signature line is malformed")
        blob = unb64(match[2])
        if match[1] == origin and blob[:4] == key_id(origin, key):
            key.verify(blob[4:], text.encode())
            return Checkpoint(origin, int(body["size"]), unb64(body["root"]), int(body["time"]))
    raise _refuse(f"no signature by the key of {origin}")
