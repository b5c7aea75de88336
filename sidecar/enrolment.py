"""What is kept in the home of a process with an identity: the key that was bound, and what the gateway said of it."""

from __future__ import annotations

from typing import Final

import msgspec

ENROLMENT: Final = "enrolment.json"
CURRENT_KEY: Final = "identity.key"
RECERTIFY_S: Final = 8 * 3600
"""A certificate lives a day."""


class FormerKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key that was replaced: ``key`` (raw, base64url) still ends chains until ``until`` (Unix seconds)."""

    key: str
    until: int


class Enrolment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the gateway said when the key was bound; kept in ``enrolment.json``."""

    kind: str
    name: str
    did: str
    wit: str
    trust_domain: str
    audience: str
    gateway_key: dict[str, str]
    former: tuple[FormerKey, ...] = ()
