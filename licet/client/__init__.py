"""What programs use: calls to sidecar and gateway, signing with an agent's own key, delegating, guarding data."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from licet.client.api import Answer, Api, ApiError, Unavailable

if TYPE_CHECKING:
    from licet.client.delegating import delegate, describe, narrow
    from licet.client.guarding import Guard
    from licet.client.signing import Credentials, SignAiohttp, SignHttpx, enroll

__all__ = [
    "Answer",
    "Api",
    "ApiError",
    "Credentials",
    "Guard",
    "SignAiohttp",
    "SignHttpx",
    "Unavailable",
    "delegate",
    "describe",
    "enroll",
    "narrow",
]


def __getattr__(name: str) -> object:
    """Keys and signatures are imported by whoever uses them: a command that only asks must not wait for them."""
    if name in ("delegate", "describe", "narrow"):
        return getattr(import_module("licet.client.delegating"), name)
    if name == "Guard":
        return getattr(import_module("licet.client.guarding"), name)
    if name in __all__:
        return getattr(import_module("licet.client.signing"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
