"""Entries on their way to the witness: a checkpoint, and what it seals beyond what the witness has."""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec

from trust.ledger.tiles import pack_entries, unpack_entries
from trust.reasons import Reason, Unverifiable, visible

SHIPMENT_TYPE: Final = "application/licet-shipment"
MAX_SHIPMENT_BYTES: Final = 2 << 20
_LENGTH_BYTES: Final = 4
_INSTANCE: Final = re.compile(r"[a-z0-9][a-z0-9.\-]{0,62}")


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
