"""Checkpoints: C2SP tlog-checkpoints as signed notes (Ed25519).

The text is origin, size, root hash (base64) and one extension line ``licet.time <Unix milliseconds>``, which
says until when the log was sealed even if nothing was written. A witness adds a line of its own: that it saw this
checkpoint, when, and that it is consistent with all that it saw before. Sources: c2sp.org/signed-note,
c2sp.org/tlog-checkpoint, c2sp.org/tlog-cosignature.
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
_ALGORITHM_COSIGNATURE: Final = b"\x04"
_TIMESTAMP_BYTES: Final = 8
_TIME: Final = "licet.time "
_VKEY: Final = re.compile(r"([!-*,-~]{1,255})\+([0-9a-f]{8})\+([A-Za-z0-9+/=]{44,48})")
_SIGNATURE: Final = re.compile(r"— (\S+) ([A-Za-z0-9+/=]+)")
_BODY: Final = re.compile(
    r"(?P<origin>[!-*,-~]{1,255})\n(?P<size>0|[1-9][0-9]{0,18})\n(?P<root>[A-Za-z0-9+/]{43}=)\n"
    rf"{re.escape(_TIME)}(?P<time>[0-9]{{1,15}})\n"
)


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.MALFORMED_REQUEST, f"checkpoint: {detail}")


def key_id(origin: str, key: PublicKey, algorithm: bytes = _ALGORITHM_ED25519) -> bytes:
    """The four bytes that name a note key."""
    return hashlib.sha256(origin.encode() + b"\n" + algorithm + key.raw).digest()[:4]


def witness_vkey(name: str, key: PublicKey) -> str:
    """The verifier key of the witness *name*, as :func:`vkey` has it for a log."""
    encoded = base64.b64encode(_ALGORITHM_COSIGNATURE + key.raw).decode("ascii")
    return f"{name}+{key_id(name, key, _ALGORITHM_COSIGNATURE).hex()}+{encoded}"


def vkey(origin: str, key: PublicKey) -> str:
    """The note verifier key: ``<origin>+<key id>+<base64>``."""
    encoded = base64.b64encode(_ALGORITHM_ED25519 + key.raw).decode("ascii")
    return f"{origin}+{key_id(origin, key).hex()}+{encoded}"


def parse_witness_vkey(text: str) -> tuple[str, PublicKey]:
    """Inverse of :func:`witness_vkey`."""
    return _parse_vkey(text, _ALGORITHM_COSIGNATURE)


def parse_vkey(text: str) -> tuple[str, PublicKey]:
    """Inverse of :func:`vkey`."""
    return _parse_vkey(text, _ALGORITHM_ED25519)


def _parse_vkey(text: str, algorithm: bytes) -> tuple[str, PublicKey]:
    match = _VKEY.fullmatch(text.removesuffix("\n"))
    if match is None:
        raise _refuse("not a note verifier key")
    raw = unb64(match[3])
    if raw[:1] != algorithm:
        kinds = {_ALGORITHM_ED25519: "a log", _ALGORITHM_COSIGNATURE: "a witness"}
        raise _refuse(f"not an Ed25519 verifier key of {kinds[algorithm]}")
    origin, key = match[1], PublicKey(raw[1:])
    if key_id(origin, key, algorithm).hex() != match[2]:
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
    text, signatures = _parts(note)
    body = _BODY.fullmatch(text)
    if body is None:
        raise _refuse("expected origin, size, root and time, each on its line")
    if body["origin"] != origin:
        raise _refuse(f"it is of the log {body['origin']}, expected {origin}")
    blob = _by(signatures, origin, key_id(origin, key))
    if blob is None:
        raise _refuse(f"no signature by the key of {origin}")
    key.verify(blob, text.encode())
    return Checkpoint(origin, int(body["size"]), unb64(body["root"]), int(body["time"]))


def cosign(note: bytes, name: str, key: SecretKey, time_s: int) -> bytes:
    """The line that the witness *name* adds to *note*, seen at *time_s* (Unix seconds)."""
    signature = key.sign(_seen(_parts(note)[0], time_s))
    named = key_id(name, key.public, _ALGORITHM_COSIGNATURE)
    blob = named + time_s.to_bytes(_TIMESTAMP_BYTES, "big") + signature
    return f"— {name} {base64.b64encode(blob).decode('ascii')}\n".encode()


def cosigned_at(note: bytes, name: str, key: PublicKey) -> int:
    """When the witness *name* saw *note* (Unix seconds), or :class:`Unverifiable`."""
    text, signatures = _parts(note)
    blob = _by(signatures, name, key_id(name, key, _ALGORITHM_COSIGNATURE))
    if blob is None or len(blob) <= _TIMESTAMP_BYTES:
        raise _refuse(f"no cosignature by the witness {name}")
    time_s = int.from_bytes(blob[:_TIMESTAMP_BYTES], "big")
    key.verify(blob[_TIMESTAMP_BYTES:], _seen(text, time_s))
    return time_s


def _seen(text: str, time_s: int) -> bytes:
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()


def _parts(note: bytes) -> tuple[str, list[tuple[str, bytes]]]:
    """The signed text, and (name, key id and signature) of each line below it."""
    try:
        text, _, signatures = note.decode("utf-8").rpartition("\n\n")
    except UnicodeDecodeError:
        raise _refuse("not UTF-8") from None
    *lines, end = signatures.split("\n")
    if end:
        raise _refuse("the last line does not end")
    matches = [_SIGNATURE.fullmatch(line) for line in lines]
    if None in matches:
        raise _refuse("a signature line is malformed")
    return text + "\n", [(match[1], unb64(match[2])) for match in matches if match is not None]


def _by(signatures: list[tuple[str, bytes]], name: str, named: bytes) -> bytes | None:
    return next((blob[4:] for who, blob in signatures if who == name and blob[:4] == named), None)
