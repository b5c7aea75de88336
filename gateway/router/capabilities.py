"""Capabilities of nodes, and how sure we are of each: claimed, signed, bound, verified. Pure.

- *claimed*: the node says so. That is shown, and never satisfies anything.
- *signed*: an operator said so when the node was registered, under their name in the ledger.
- *bound*: somebody whom the configuration names as issuer of this capability vouches for the node's key.
- *verified*: the node passed a challenge not long ago.

What a node holds is a set of words: ``gpu``, and with how it is known ``gpu@signed``, ``gpu@verified``. Policies and
the ``requires`` of tools name such words; the bare word is held if anything but a claim says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec

from trust.reasons import Reason, Unverifiable, visible

Level = Literal["claimed", "signed", "bound", "verified"]
GPU: Final = "gpu"
LOCALITY: Final = "data_locality"
MAX_CAPABILITIES: Final = 32
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_VALUE: Final = re.compile(r"[A-Za-z0-9_.:\-]{1,64}")

Given = Mapping[str, str | int | bool]
"""Capabilities by name; ``true`` for those that have no value."""


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A capability (as a word) is ``bound`` or ``verified`` until ``until_us`` (Unix microseconds)."""

    capability: str
    level: Literal["bound", "verified"]
    until_us: int


def word(name: str, value: str | int | bool) -> str:
    """A capability as a word: ``gpu``, ``region=eu-west``; empty for one that is denied."""
    if value is False:
        return ""
    return name if value is True else f"{name}={value}"


def words(given: Given) -> tuple[str, ...]:
    return tuple(sorted(filter(None, (word(name, value) for name, value in given.items()))))


def require_given(given: Given) -> None:
    """:class:`Unverifiable` for what cannot be a capability."""
    if len(given) > MAX_CAPABILITIES:
        raise _wrong(f"{len(given)} capabilities; the limit is {MAX_CAPABILITIES}")
    for name, value in given.items():
        if _NAME.fullmatch(name) is None:
            raise _wrong(f'capability "{visible(name)}": expected 1 to 63 of a-z, 0-9 and "_"')
        if not isinstance(value, bool) and _VALUE.fullmatch(str(value)) is None:
            raise _wrong(f'capability {name}="{visible(str(value))}": expected 1 to 64 letters, digits and _ . : -')


def held(
    signed: Given,
    evidence: Iterable[Evidence],
    suspended: Iterable[str],
    now_us: int,
    shown: Iterable[str] = (),
) -> frozenset[str]:
    """The words that a node holds now. *shown*: those that the gateway finds out itself, which count while they are
    verified and not a moment longer, whoever says so."""
    evidence = tuple(evidence)
    verified = {one.capability for one in evidence if one.level == "verified" and one.until_us > now_us}
    out = frozenset(suspended) | (frozenset(shown) - verified)
    found = {one for name in words(signed) if name not in out for one in (name, f"{name}@signed")}
    for one in evidence:
        if one.until_us > now_us and one.capability not in out:
            found |= {one.capability, f"{one.capability}@{one.level}"}
    return frozenset(found)


def level_of(capability: str, holds: frozenset[str]) -> Level:
    """How sure we are of a capability (a word without ``@``): the strongest that is known."""
    strongest: tuple[Level, ...] = ("verified", "bound", "signed")
    return next((level for level in strongest if f"{capability}@{level}" in holds), "claimed")


def _wrong(what: str) -> Unverifiable:
    return Unverifiable(Reason.MALFORMED_REQUEST, what)
