"""Entries on their way to the witness: a checkpoint, and what it seals beyond what the witness has."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from trust.ledger.tiles import pack_entries, unpack_entries
from trust.reasons import Reason, Unverifiable

SHIPMENT_TYPE: Final = "application/licet-shipment"
MAX_SHIPMENT_BYTES: Final = 2 << 20
_LENGTH_BYTES: Final = 4


class Shipment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Entries from index ``first`` on; ``checkpoint`` (a signed note) comes with the last of those that it seals.
    ``vkey`` is the log's verifier key."""

    vkey: Annotated[str, msgspec.Meta(max_length=400)]
    first: Annotated[int, msgspec.Meta(ge=0)]
    checkpoint: Annotated[str, msgspec.Meta(max_length=4000)] = ""


class Received(msgspec.Struct, frozen=True):
    """How many entries the witness has, and its line under the checkpoint, if it came and holds."""

    size: int
    cosignature: str = ""


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
