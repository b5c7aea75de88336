"""What programs use: calls to sidecar and gateway, signing with an agent's own key, delegation offline."""

from licet.client.api import Answer, Api, ApiError, Unavailable
from licet.client.delegating import delegate, describe, narrow
from licet.client.signing import Credentials, SignAiohttp, SignHttpx, enroll

__all__ = [
    "Answer",
    "Api",
    "ApiError",
    "Credentials",
    "SignAiohttp",
    "SignHttpx",
    "Unavailable",
    "delegate",
    "describe",
    "enroll",
    "narrow",
]
