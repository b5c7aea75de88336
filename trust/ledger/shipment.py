"""Entries on their way to the witness: a checkpoint, and what it seals beyond what the witness has."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Annotated, Final

import msgspec

from trust.ledger.merkle import TILE_WIDTH
from trust.ledger.pruning import first_kept
from trust.ledger.tiles import pack_entries, read_entries, read_hashes, unpack_entries
from trust.reasons import Reason, Unverifiable, visible

SHIPMENT_TYPE: Final = "application/licet-shipment"
MAX_SHIPMENT_BYTES: Final = 2 << 20
MAX_BYTES: Final = 1 << 20
"""Of the entries that are shipped at once."""
TILES_OF_HASHES: Final = 100
"""So many at once."""
_LENGTH_BYTES: Final = 4
_INSTANCE: Final = re.compile(r"[a-z0-9][a-z0-9.\-]{0,62}")


class Shipment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Entries from index ``first`` on; ``checkpoint`` (a signed note) comes with the last of those that it seals.
    ``vkey`` is the log's verifier key. ``pruned``: these are hashes, of entries that whoever ships them has not any
    more below this index; they go to where a tile ends."""

    vkey: Annotated[str, msgspec.Meta(max_length=400)]
    first: Annotated[int, msgspec.Meta(ge=0)]
    checkpoint: Annotated[str, msgspec.Meta(max_length=4000)] = ""
    pruned: Annotated[int, msgspec.Meta(ge=0)] = 0


class Received(msgspec.Struct, frozen=True):
    """How many entries the witness has, and its line under the checkpoint, if it came and holds."""

    size: int
    cosignature: str = ""


def log_of(trust_domain: str, kind: str, name: str, instance: str = "") -> str:
    """The origin of a workload's log; several processes of one workload are *instance*s with a log each. Raises
    :class:`Unverifiable` for what is no name of one."""
    if instance and _INSTANCE.fullmatch(instance) is None:
        raise Unverifiable(
            Reason.MALFORMED_REQUEST, f"instance {visible(instance)}: expected a-z 0-9 . and -, at most 63"
        )
    return f"{trust_domain}/{kind}/{name}" + (f"/{instance}" if instance else "")


def is_log_of(origin: str, trust_domain: str, kind: str, name: str) -> bool:
    """Whether *origin* is a log of this workload, whichever instance writes it."""
    own = log_of(trust_domain, kind, name)
    return origin == own or (origin.startswith(own + "/") and _INSTANCE.fullmatch(origin[len(own) + 1 :]) is not None)


def following(root: Path, vkey: str, first: int, sealed: int, note: bytes) -> bytes:
    """What the log under *root*, of *sealed* entries as *note* says, has from index *first* on, as much as one shipment
    takes."""
    begin, bundle = first_kept(root), first // TILE_WIDTH
    if first < begin:
        end = min(begin, (bundle + TILES_OF_HASHES) * TILE_WIDTH)
        hashes = [one for at in range(bundle, end // TILE_WIDTH) for one in read_hashes(root, 0, at, TILE_WIDTH)]
        return pack(Shipment(vkey, first, pruned=begin), hashes[first - bundle * TILE_WIDTH :])
    found: list[bytes] = []
    size = 0
    for entry in islice(read_entries(root, sealed, bundle), first - bundle * TILE_WIDTH, None):
        size += len(entry) + 2
        if size > MAX_BYTES:
            break
        found.append(entry)
    whole = first + len(found) == sealed
    return pack(Shipment(vkey, first, note.decode() if whole else ""), found)


def pack(shipment: Shipment, entries: list[bytes]) -> bytes:
    head = msgspec.json.encode(shipment)
    return len(head).to_bytes(_LENGTH_BYTES, "big") + head + pack_entries(entries)


def unpack(data: bytes) -> tuple[Shipment, list[bytes]]:
    """Inverse of :func:`pack`, or :class:`Unverifiable`."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "big")
    head = data[_LENGTH_BYTES : _LENGTH_BYTES + length]
    if len(data) < _LENGTH_BYTES or len(head) < length:
        raise Unverifiable(Reason.MALFORMED_REQUEST, "the shipment is cut short")
    try:
        shipment = msgspec.json.decode(head, type=Shipment)
    except msgspec.DecodeError as bad:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f"shipment: {bad}") from None
    return shipment, unpack_entries(data[_LENGTH_BYTES + length :])
