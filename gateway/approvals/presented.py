"""What people are shown of a request, and its digest: a vote is for exactly that."""

from __future__ import annotations

from typing import Any, Final

from trust.canonical import JsonObject, digest_of

_OF_THE_REQUEST: Final = (
    "agent",
    "principal",
    "authority",
    "run",
    "server",
    "tool",
    "place",
    "bundle",
    "terms",
    "policies",
    "because",
)


def presented(asked: dict[str, Any], editors: tuple[str, ...]) -> JsonObject:
    """Everything that a screen says of the stored request *asked*. Its arguments are in the action digest, which may
    be salted: a digest of them here could be guessed."""
    shown: JsonObject = {name: asked[name] for name in _OF_THE_REQUEST}
    return {**shown, "action_digest": asked["action_digest"], "editors": list(editors)}


def digest(asked: dict[str, Any], editors: tuple[str, ...] = ()) -> str:
    """SHA-256 of its JCS form."""
    return digest_of(presented(asked, editors))
