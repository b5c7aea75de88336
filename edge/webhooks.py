"""Signed webhooks, after Standard Webhooks 1.0: who gets one can tell that it is ours, whole, and of now."""

from __future__ import annotations

import base64
import hmac
from pathlib import Path
from typing import Any, Final

import msgspec

from edge.client import Client
from edge.clock import SystemClock

TIMEOUT_S: Final = 10.0
MIN_SECRET: Final = 24
"""Bytes, as the standard has it."""


class Refused(Exception):
    """The other side did not take it."""


class Webhook:
    """One place that is told. Whoever tells tries again: :meth:`send` raises what went wrong."""

    def __init__(self, url: str, secret_file: Path, client: Client, clock: SystemClock) -> None:
        """*secret_file*: as other programs write it, ``whsec_`` and base64."""
        self._url = url
        self._secret = base64.b64decode(secret_file.read_text("utf-8").strip().removeprefix("whsec_"), validate=True)
        if len(self._secret) < MIN_SECRET:
            raise ValueError(f"{secret_file}: expected whsec_ and base64 of {MIN_SECRET} bytes or more")
        self._client = client
        self._clock = clock

    async def send(self, message: str, kind: str, data: Any) -> None:
        """*message*: its id, the same each time that it is tried. Raises :class:`Refused`, ``Unreachable`` or
        ``Broken``."""
        body, now = msgspec.json.encode({"type": kind, "data": data}), str(int(self._clock.now()))
        headers = {
            "webhook-id": message,
            "webhook-timestamp": now,
            "webhook-signature": signature(self._secret, message, now, body),
        }
        await post(self._client, self._url, headers, body)


async def post(client: Client, url: str, headers: dict[str, str], body: bytes) -> None:
    """JSON to *url*; :class:`Refused` unless it is taken."""
    sent = {"Content-Type": "application/json", **headers}
    reply = await client.request("POST", url, sent, body, timeout_s=TIMEOUT_S)
    await reply.read()
    if reply.status >= 300:
        raise Refused(f"it answered {reply.status}")


def signature(secret: bytes, message: str, timestamp: str, body: bytes) -> str:
    """The value of ``webhook-signature``: HMAC-SHA256 over id, time and body."""
    signed = f"{message}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret, signed, "sha256")).decode()
